#!/usr/bin/env bash
# Builds the fake CUDA device, OUT/libcamlens_cuda.so, against a libtorch for CPUs. What is up to date is left alone.
#
#   tests/fake_device/build.sh LIBTORCH OUT
set -euo pipefail
libtorch=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
cd "$(dirname "${BASH_SOURCE[0]}")"
# One build at a time.
exec {lock}>"$out/lock"
flock "$lock"

kernels=../../src/torch/cuda/kernels
flags=(-std=c++17 -O1 -fPIC -fvisibility=hidden -Wall -Wextra -MMD
  -isystem "$libtorch/include" -isystem "$libtorch/include/torch/csrc/api/include")

# The twin adds as the card does: no multiplication and addition in one.
declare -A more=([twin]="-O2 -ffp-contract=off")

# Whether the first file is newer than the others, which exist.
is_newer() {
  local file=$1 other
  [[ -e $file ]] || return 1
  shift
  for other in "$@"; do [[ -e $other && ! $other -nt $file ]] || return 1; done
}

# Whether the object file, beside which the compiler has left what it is made of, is up to date.
is_current() {
  [[ -e ${1%.o}.d ]] || return 1
  local parts
  read -r -d '' -a parts < <(sed -e 's/^[^:]*: //' -e 's/\\$//' "${1%.o}.d") || true
  is_newer "$1" build.sh "${parts[@]}"
}

objects=()
for source in *.cpp "$kernels"/{kernel,kernels,launcher,twin}.cpp; do
  name=$(basename "$source" .cpp)
  case $name in check* | late) continue ;; esac
  object=$out/$name.o
  objects+=("$object")
  is_current "$object" && continue
  # shellcheck disable=SC2086
  "${CXX:-g++}" "${flags[@]}" ${more[$name]:-} -c "$source" -o "$object"
done

library=$out/libcamlens_cuda.so
if ! is_newer "$library" "${objects[@]}"; then
  "${CXX:-g++}" -shared "${objects[@]}" -o "$library" -L"$libtorch/lib" -Wl,-rpath,"$libtorch/lib" \
    -Wl,--no-as-needed -ltorch_cpu -lc10 -l:libgomp.so.1 -Wl,--allow-shlib-undefined -Wl,-z,now
fi
