// Convolutions as matrix products (implicit GEMM) on the CPU. The conventions are those of bridge.h.
#pragma once
#include "moves.h"

namespace at {
class Tensor;
}

extern "C" {

// The weight `[outputs, inputs, h, w]` of a convolution, float32 or bfloat16 as `camlens_has_products` says, as the function below takes it:
// for each of the kernel's places, panels as in products.h. `by_lines`: for each of its lines, whose places are next to each other in memory
// as long as nothing lies between them. Of bfloat16, the number of a place's or line's inputs is even.
int camlens_gemm_weight(const at::Tensor* weight, bool by_lines, at::Tensor** result, char** error);

// min(max(convolution + `bias` + `other`, low), high) of an `input`, `[N, inputs, H, W]`, of the weight's type. `bias`, float32, and `other`, of
// the result's shape and type, may be null. A bound that is NaN is none. Sums are float32. The result has its channels next to each other in
// memory. Where `gates` is not null, it becomes the result's, as gates.h says. With a weight by lines, `line` is how many places these have; else
// it is 1.
int camlens_gemm(const at::Tensor* input, const at::Tensor* weight, int64_t line, int64_t outputs, const CamlensMoves* moves,
                 const at::Tensor* bias, const at::Tensor* other, double low, double high, at::Tensor** result, at::Tensor** gates, char** error);
}
