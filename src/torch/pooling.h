// Pooling of pictures whose channels lie next to each other in memory, float32 or bfloat16, on the CPU. The conventions are those of bridge.h.
#pragma once
#include "moves.h"

#include <cstdint>

namespace at {
class Tensor;
}

extern "C" {

// The maxima of an `input`, `[N, C, H, W]`, over windows of that height and width, without dilation; NaN is the largest. `places` says where in
// its window each one was, the first of several: bytes of the result's shape, so a window has at most 255 places.
int camlens_max_pool(const at::Tensor* input, const int64_t* kernel, const CamlensMoves* moves, at::Tensor** result, at::Tensor** places,
                     char** error);

// The gradient to an input of `size`, from that of the maxima at such `places`. Sums are float32, of windows in their order.
int camlens_max_pool_gradient(const at::Tensor* gradient, const at::Tensor* places, const int64_t* kernel, const int64_t* size,
                              const CamlensMoves* moves, at::Tensor** result, char** error);

// The mean of each channel: `[N, C, H, W]` to `[N, C, 1, 1]`. Sums are float32.
int camlens_mean_of_pixels(const at::Tensor* input, at::Tensor** result, char** error);
}
