// Convolutions of 3 × 3 kernels by Winograd's algorithm, on the CPU, where `camlens_has_products`. The conventions are those of bridge.h.
#pragma once
#include <cstdint>

namespace at {
class Tensor;
}

extern "C" {

// The weights `[outputs, inputs, 3, 3]` of a convolution, transformed for F(step×step, 3×3), `step` being 2 or 4. Both numbers of
// channels are multiples of 16.
int camlens_winograd_weight(const at::Tensor* weight, int64_t step, at::Tensor** result, char** error);

// min(max(convolution + `bias`, low), high) with stride 1, of an `input`, `[N, inputs, H, W]`, float32 or bfloat16, with such weights. `bias`,
// float32, may be null, bounds may be infinite. The result has its channels next to each other in memory.
int camlens_winograd(const at::Tensor* input, const at::Tensor* weight, int64_t outputs, const at::Tensor* bias, int64_t padding,
                     double low, double high, at::Tensor** result, char** error);
}
