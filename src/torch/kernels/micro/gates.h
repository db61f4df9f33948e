// Micro-kernels for the gates of rectifiers, stored as gate_layout.h says. Tensors are channels-last and dense.
#pragma once
#include "gate_layout.h"

#include <stdint.h>

namespace camlens {

struct PixelRange {
  int64_t pixels, channels;
};

// A gate is open where low < result < high. A bound that is NaN does not close a gate; a result that is NaN opens it.
struct GateKernels {
  // The gates of `results`.
  void (*find)(const void* results, PixelRange range, float low, float high, uint64_t* gates);
  // Writes clamp(left + right, least, most) to `sums`, and the gates of these sums. A clamp bound that is NaN does not
  // limit.
  void (*add)(const void* left, const void* right, PixelRange range, float least, float most, float low, float high,
              void* sums, uint64_t* gates);
  // Writes max(left + right, floor) where the gate is open, 0 elsewhere. `right` may be null. NaN stays NaN.
  void (*pass)(const void* left, const void* right, PixelRange range, const uint64_t* gates, float floor, void* passed);
};

extern "C" {
extern const GateKernels camlens_gates_default;
#if defined(__x86_64__)
extern const GateKernels camlens_gates_avx2;
extern const GateKernels camlens_gates_avx512;
extern const GateKernels camlens_gates_avx512_bf16;
#endif
}

}  // namespace camlens
