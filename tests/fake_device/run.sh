#!/usr/bin/env bash
# Builds the fake CUDA device and runs its checks.
#
#   tests/fake_device/run.sh [LIBTORCH [OUT]]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
libtorch=$(realpath "${1:-.libtorch}")
out=${2:-target/fake_device}
here=tests/fake_device
"$here/build.sh" "$libtorch" "$out"
out=$(realpath "$out")

die() { printf 'error: %s\n' "$*" >&2; exit 1; }

compile() {
  local object=$out/$1.o part
  for part in "$here/$1.cpp" "$here"/*.h src/torch/cuda/interface.h "$here/run.sh"; do
    if [[ ! -e $object || $part -nt $object ]]; then
      "${CXX:-g++}" -std=c++17 -O1 -fPIC -Wall -Wextra -isystem "$libtorch/include" \
        -isystem "$libtorch/include/torch/csrc/api/include" -c "$here/$1.cpp" -o "$object"
      return
    fi
  done
}

link=(-L"$libtorch/lib" -Wl,-rpath,"$libtorch/lib" -Wl,--no-as-needed -ltorch_cpu -lc10 -l:libgomp.so.1
  -Wl,--allow-shlib-undefined -ldl)
checks=()
for source in "$here"/check*.cpp; do
  name=$(basename "$source" .cpp)
  compile "$name"
  checks+=("$out/$name.o")
done
compile late
"${CXX:-g++}" "${checks[@]}" -o "$out/check" -L"$out" -lcamlens_cuda -Wl,-rpath,"$out" "${link[@]}"
"${CXX:-g++}" "$out/late.o" -o "$out/late" "${link[@]}"

FAKE_CUDA_DEVICES=2 "$out/check"

# libtorch counts the devices at the first gradient.
gradient=$("$out/late" "$out/libcamlens_cuda.so") || die "no gradient on a device that is loaded in time"
[[ $gradient == 6 ]] || die "the gradient on a device that is loaded in time is $gradient"
if said=$("$out/late" "$out/libcamlens_cuda.so" after 2>&1); then
  die "a device that is loaded late computes gradients: the rule can go"
fi
[[ $said == *"Cannot access accelerator device when none is available"* ]] || die "a device that is loaded late: $said"
echo "a device that is loaded late computes no gradient, as libtorch has it"
