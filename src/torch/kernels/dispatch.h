// The micro-kernels for this processor.
#pragma once
#include "micro/depthwise.h"
#include "micro/gates.h"
#include "micro/gemm.h"
#include "micro/sparse.h"
#include "micro/winograd.h"

#include <cstdint>

namespace camlens {

// Element types, numbered as in ffi.rs.
enum class ElementType : int32_t { FLOAT32 = 0, BFLOAT16 = 1 };

constexpr int64_t size_of(ElementType type) { return type == ElementType::FLOAT32 ? 4 : 2; }

// The micro-kernels of one instruction set for one element type.
struct MicroKernels {
  const GemmKernels* gemm;
  const SparseKernels* sparse;
  const GateKernels* gates;
  const DepthwiseKernels* depthwise;
  // Null for bfloat16: the transforms' values are float32.
  const WinogradKernels* winograd;
};

// The best that `isa()` allows. Null for bfloat16 without AVX-512 BF16.
const MicroKernels* micro_kernels(ElementType type);

}  // namespace camlens

extern "C" {

// The columns of a packed panel for that `camlens::ElementType`; 0 if there are no micro-kernels for it.
int64_t camlens_panel_width(int32_t element);
}
