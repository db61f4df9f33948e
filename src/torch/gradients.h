// The sizes of what convolutions give, and gradients that come to them.
#pragma once
#include "moves.h"

#include <ATen/core/Tensor.h>

// How many places a kernel takes along an axis of so many pixels; none where it is larger. Raises where nothing moves so.
int64_t camlens_steps(int64_t size, int64_t kernel, const CamlensMoves& moves, int axis);

// Raises unless it is one of the result, `[N, outputs, h, w]`, of a convolution with such a kernel of an input of `size`, on the CPU.
void camlens_check_gradient(const at::Tensor& gradient, at::ScalarType type, int64_t outputs, at::IntArrayRef kernel, at::IntArrayRef size,
                            const CamlensMoves& moves);
