#!/usr/bin/env bash
# Tests camlens's CUDA kernels without a card.
#
#   tests/cuda_kernels/run.sh           both
#   tests/cuda_kernels/run.sh twin      the kernels' source, compiled for the host under AddressSanitizer, against ATen;
#                                       then faults that are planted in it, each of which must be found
#   tests/cuda_kernels/run.sh nvrtc     compiles them for cards of several generations, with deploy/libtorch's NVRTC
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

kernels=src/torch/cuda/kernels
tests=tests/cuda_kernels
cxx=${CXX:-c++}
libtorch=${LIBTORCH:-$PWD/.libtorch}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

host=(-std=c++17 -g -Wall -Wextra -ffp-contract=off)
asan=(-O1 -fsanitize=address,undefined -fno-sanitize-recover=all)
torch=(-isystem "$libtorch/include" -isystem "$libtorch/include/torch/csrc/api/include")
torch_libraries=(-L"$libtorch/lib" -Wl,-rpath,"$libtorch/lib" -ltorch_cpu -lc10)
# libtorch keeps what it allocates once. Its threads would wait for small work longer than it takes.
export ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=1

# Planted faults: a file, what sed does to it, and the test that must fail.
gate=gate_is_that_of_the_cpu
sum=sum_adds_in_the_order_given
epilogue=epilogue_adds_and_clamps_in_place
cam=grad_cam_weights_channels_by_their_mean_gradients
fuse=fuse_multiplies_with_the_resized_map
normalize=normalize_computes_what_torchvision_computes
faults=(
  elementwise.cuh 's/source <= low/source < low/' $gate
  elementwise.cuh 's/gradient < floor/gradient <= floor/' $gate
  elementwise.cuh 's/are_aligned ? count/true ? count/' $gate
  elementwise.cuh 's/add_from(sums, third, i)/add_from(sums, second, i)/' $sum
  elementwise.cuh 's/packs \* WIDTH + thread_index()/packs * WIDTH + 1 + thread_index()/' $sum
  elementwise.cuh 's/? count \/ WIDTH/? (count + 1) \/ WIDTH/' $sum
  element.cuh 's/+ 0xfffu +/+ 0x1000u +/' $sum
  elementwise.cuh 's/++channel == channels/++channel > channels/' $epilogue
  elementwise.cuh 's/plane == 1 \&\& channels % PACK == 0/plane == 1/' $epilogue
  cam.cuh '0,/__syncthreads();/s///' $cam
  cam.cuh '/take the memory of these/{n;d}' $cam
  cam.cuh '0,/    __syncthreads();/s//    if (part == 0) __syncthreads();/' $cam
  elementwise.cuh 's/constexpr int WIDTH = decltype.*/& __syncthreads();/' $sum
  cam.cuh 's/if (first + slot < count)/if (true)/' $cam
  fuse.cuh 's/first + 1 < size/first + 1 <= size/' $fuse
  fuse.cuh 's/static_cast<float>(index) + 0.5f/static_cast<float>(index)/' $fuse
  normalize.cuh '0,/__syncthreads();/s///' $normalize
  normalize.cuh 's/first + tile_pixels <= pixels/first < pixels/' $normalize
  normalize.cuh 's/byte % PIXELS/k % PIXELS/' $normalize
)

# compile OBJECT SOURCE FLAGS...
compile() { "$cxx" "${host[@]}" "${@:3}" -c "$2" -o "$out/$1.o"; }

twin() {
  [[ -e $libtorch/include ]] || die "no libtorch in $libtorch: run deploy/libtorch first, or set LIBTORCH"
  say "building the twin"
  local jobs=()
  compile twin_test $tests/twin_test.cpp "${asan[@]}" "${torch[@]}" & jobs+=($!)
  {
    compile kernels $kernels/kernels.cpp "${asan[@]}" "${torch[@]}"
    compile launcher $kernels/launcher.cpp "${asan[@]}" "${torch[@]}"
    compile kernel $kernels/kernel.cpp "${asan[@]}"
    compile twin $kernels/twin.cpp "${asan[@]}"
    # What the gates of the CPU are compared with.
    compile elementwise src/torch/kernels/elementwise.cpp -O1
  } & jobs+=($!)
  for job in "${jobs[@]}"; do wait "$job"; done
  local objects=("$out"/{twin_test,kernels,launcher,kernel,elementwise}.o)
  link() { "$cxx" -fsanitize=address,undefined "${objects[@]}" "$1" "${torch_libraries[@]}" -o "$2"; }
  link "$out/twin.o" "$out/twin_test"
  say "every kernel against ATen"
  "$out/twin_test"

  local count=$((${#faults[@]} / 3))
  say "$count planted faults"
  plant() { # plant NUMBER
    local file=${faults[$1 * 3]} change=${faults[$1 * 3 + 1]} test=${faults[$1 * 3 + 2]} folder=$out/fault$1
    cp -r $kernels "$folder"
    sed -i "$change" "$folder/$file"
    if cmp -s "$kernels/$file" "$folder/$file"; then die "the fault \"$change\" changes nothing in $file"; fi
    compile "fault$1" "$folder/twin.cpp" "${asan[@]}" -O0 -g0 -w
    link "$out/fault$1.o" "$out/fault$1.test"
    if "$out/fault$1.test" "$test" >"$out/fault$1.log" 2>&1; then die "$test does not find \"$change\" in $file"; fi
  }
  # Two at a time.
  for ((i = 0; i < count; ++i)); do
    if ((i >= 2)); then wait -n; fi
    plant "$i" &
  done
  wait -n
  wait -n
}

nvrtc() {
  local store=$libtorch/cuda/lib
  [[ -e $store/libnvrtc.so.13 ]] || die "no libnvrtc.so.13 in $store: run deploy/libtorch first"
  say "compiling the kernels with NVRTC"
  "$cxx" "${host[@]}" -O1 -DCAMLENS_CUDA_KERNELS="\"$PWD/$kernels\"" $tests/nvrtc_test.cpp $kernels/source.cpp \
    $kernels/kernel.cpp -ldl -pthread -o "$out/nvrtc_test"
  LD_LIBRARY_PATH=$store${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} "$out/nvrtc_test" "$store/libnvrtc.so.13"
}

case ${1:-both} in
  twin) twin ;;
  nvrtc) nvrtc ;;
  both) twin && nvrtc ;;
  *) die "unknown part $1; the head of this file lists them" ;;
esac
