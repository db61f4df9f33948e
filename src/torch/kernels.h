// Elementwise work on the CPU that ATen takes several passes over memory for, and changes of layout that it is slow at. The
// conventions are those of bridge.h.
#pragma once
#include <cstddef>
#include <cstdint>

namespace at {
class Tensor;
}

extern "C" {

// Takes a gradient back through a gate: the sum of `parts` (1 or 2, of the result's shape) where low < result < high, else 0;
// `guided`: max(sum, 0) there. A bound that is NaN does not close. The gradient is laid out as `result` is. It may use the memory
// of a part that nobody else holds.
int camlens_gate(const at::Tensor* const* parts, size_t part_count, const at::Tensor* result, double low, double high, bool guided,
                 at::Tensor** gradient, char** error);

// `sum` + `other`; in the memory of `sum` where nobody else holds it.
int camlens_add(const at::Tensor* sum, const at::Tensor* other, at::Tensor** result, char** error);

// min(max(`sum` + `other`, low), high), of one shape; in the memory of `sum` where nobody else holds it. Bounds may be infinite.
int camlens_add_clamped(const at::Tensor* sum, const at::Tensor* other, double low, double high, at::Tensor** result, char** error);

// `[N, C, H, W]` with its channels next to each other in memory: the tensor itself where it has them so.
int camlens_channels_last(const at::Tensor* tensor, at::Tensor** result, char** error);
}
