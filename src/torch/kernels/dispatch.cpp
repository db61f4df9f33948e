#include "dispatch.h"

#include "isa.h"

namespace camlens {

namespace {

const MicroKernels portable = {&camlens_gemm_default, &camlens_sparse_default, &camlens_gates_default,
                               &camlens_depthwise_default, &camlens_winograd_default};
#if defined(__x86_64__)
const MicroKernels avx2 = {&camlens_gemm_avx2, &camlens_sparse_avx2, &camlens_gates_avx2, &camlens_depthwise_avx2,
                           &camlens_winograd_avx2};
const MicroKernels avx512 = {&camlens_gemm_avx512, &camlens_sparse_avx512, &camlens_gates_avx512,
                             &camlens_depthwise_avx512, &camlens_winograd_avx512};
const MicroKernels avx512_bf16 = {&camlens_gemm_avx512_bf16, &camlens_sparse_avx512_bf16, &camlens_gates_avx512_bf16,
                                  &camlens_depthwise_avx512_bf16, nullptr};
#endif

}  // namespace

const MicroKernels* micro_kernels(ElementType type) {
#if defined(__x86_64__)
  if (type == ElementType::BFLOAT16) return isa() >= Isa::AVX512_BF16 ? &avx512_bf16 : nullptr;
  if (isa() >= Isa::AVX512) return &avx512;
  if (isa() >= Isa::AVX2) return &avx2;
#endif
  return type == ElementType::FLOAT32 ? &portable : nullptr;
}

}  // namespace camlens

extern "C" {

int64_t camlens_panel_width(int32_t element) {
  const camlens::MicroKernels* const kernels = camlens::micro_kernels(static_cast<camlens::ElementType>(element));
  return kernels == nullptr ? 0 : kernels->gemm->panel_width;
}
}
