// Gradients to the few channels of a network's input, on the CPU. The conventions are those of bridge.h.
#pragma once
#include "moves.h"

#include <cstdint>

namespace at {
class Tensor;
}

extern "C" {

// The weights `[outputs, inputs, h, w]` of a convolution, as those of sparse.h, for the function below.
int camlens_folded_weight(const at::Tensor* weight, at::Tensor** result, char** error);

// As `camlens_sparse_input_gradient`, of a convolution without dilation whose `kernel` has that height and width. The result is contiguous.
int camlens_folded_input_gradient(const at::Tensor* gradient, const at::Tensor* gates, bool guided, const at::Tensor* weight,
                                  const int64_t* kernel, const int64_t* size, const CamlensMoves* moves, at::Tensor** result,
                                  char** error);
}
