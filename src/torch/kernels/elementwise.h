// Elementwise work for which ATen takes several passes over memory, and a change of layout at which it is slow.
#pragma once
#include <cstddef>
#include <cstdint>

namespace at {
class Tensor;
}

extern "C" {

// Passes a gradient through a rectifier: writes the sum of `parts` (1 or 2) where low < result < high, 0 elsewhere;
// with `guided`, max(sum, 0) there. `high` may be NaN, which does not close. All tensors have the gradient's shape, any
// strides, and are float32 or bfloat16 on the CPU, as `element` says; `gradient` may be one of the parts.
int camlens_gate(int32_t element, const at::Tensor* gradient, const at::Tensor* const* parts, size_t part_count,
                 const at::Tensor* result, float low, float high, bool guided, char** error);

// Writes min(max(left + right, low), high) to `sum`, which may be `left`. Tensors are as above.
int camlens_add_clamped(int32_t element, const at::Tensor* sum, const at::Tensor* left, const at::Tensor* right,
                        float low, float high, char** error);

// Copies contiguous images [images, channels, height, width] to channels-last ones. `channels` is 3 or 4; an element
// has 2 or 4 bytes.
int camlens_interleave(const void* from, int64_t images, int64_t channels, int64_t height, int64_t width,
                       int64_t element_bytes, void* to, char** error);
}
