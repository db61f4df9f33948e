// Gradients to the inputs of convolutions on the CPU, where much of the gradient that comes is zero: zeros are left out. The conventions
// are those of bridge.h.
#pragma once
#include "moves.h"

#include <cstdint>

namespace at {
class Tensor;
}

extern "C" {

// The weights `[outputs, inputs, h, w]` of a convolution, float32 or bfloat16 as `camlens_has_products` says, as the function below takes
// them. Of bfloat16, the number of outputs is even.
int camlens_sparse_weight(const at::Tensor* weight, at::Tensor** result, char** error);

// The gradient to an input of `size`, `[N, inputs, H, W]`, of the convolution, from that of its result, of the weights' type. Sums are float32. The result has its channels next to each other in memory. Zeros count as nothing, whatever the weights are.
int camlens_sparse_input_gradient(const at::Tensor* gradient, const at::Tensor* weight, const int64_t* size, const CamlensMoves* moves,
                                  at::Tensor** result, char** error);
}
