// Convolutions and their gradients on the CPU, of inputs and gradients that are zero in many places: zeros are left out. The conventions
// are those of bridge.h. Weights are finite: a zero may be multiplied with one or not.
#pragma once
#include "moves.h"

#include <cstdint>

namespace at {
class Tensor;
}

extern "C" {

// The weights `[outputs, inputs, h, w]` of a convolution, float32 or bfloat16 as `camlens_has_products` says, as the functions below take
// them: for the way there or for the way back.
int camlens_sparse_weight(const at::Tensor* weight, bool back, at::Tensor** result, char** error);

// min(max(convolution + `bias`, low), high) of an `input`, `[N, inputs, H, W]`, of the weights' type. `bias`, float32, may be null, bounds may
// be infinite. Sums are float32. The result has its channels next to each other in memory.
int camlens_sparse_convolution(const at::Tensor* input, const at::Tensor* weight, int64_t outputs, const at::Tensor* bias,
                               const CamlensMoves* moves, double low, double high, at::Tensor** result, char** error);

// The gradient to an input of `size`, `[N, inputs, H, W]`, of the convolution, from that of its result, of the weights' type. Where there are
// `gates`, as gates.h says, the gradient comes through them; without them `guided` means nothing. `of_there`: the weights are those for the way there, float32; they are transposed as they are read. As above.
int camlens_sparse_input_gradient(const at::Tensor* gradient, const at::Tensor* gates, bool guided, const at::Tensor* weight, bool of_there,
                                  const int64_t* size, const CamlensMoves* moves, at::Tensor** result, char** error);
}
