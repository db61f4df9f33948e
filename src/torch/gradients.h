// Gradients that come to convolutions.
#pragma once
#include "moves.h"

#include <ATen/core/Tensor.h>

// Raises unless it is one of the result, `[N, outputs, h, w]`, of a convolution with such a kernel of an input of `size`, on the CPU.
void camlens_check_gradient(const at::Tensor& gradient, at::ScalarType type, int64_t outputs, at::IntArrayRef kernel, at::IntArrayRef size,
                            const CamlensMoves& moves);
