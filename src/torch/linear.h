// Matrix products with constant matrices on the CPU: linear layers. The conventions are those of bridge.h.
#pragma once
#include <cstdint>

namespace at {
class Tensor;
}

extern "C" {

// Whether the processor has the instructions for this with numbers of that type, and, those for float32, for winograd.h.
bool camlens_has_products(bool of_bfloat16);

// A float32 or bfloat16 weight, `[outputs, inputs]`, as the functions below take it. Of bfloat16, the number of inputs is even.
int camlens_linear_weight(const at::Tensor* weight, at::Tensor** result, char** error);

// min(max(product + `bias`, low), high) of an `input`, `[..., inputs]`, with such a weight of the same type. `bias`, float32, may be null,
// bounds may be infinite. Sums are float32.
int camlens_linear(const at::Tensor* input, const at::Tensor* weight, int64_t outputs, const at::Tensor* bias, double low, double high,
                   at::Tensor** result, char** error);

// `product` + `bias` of an `input`, `[..., inputs]`, with a contiguous `weight`, `[outputs, inputs]`, both float32 or both bfloat16. `bias`,
// float32, may be null. Sums are float32. For an input of few rows: the weight is read once, as it is.
int camlens_linear_by_rows(const at::Tensor* input, const at::Tensor* weight, const at::Tensor* bias, at::Tensor** result, char** error);

// The gradient to the input of a linear layer with a contiguous `weight`, `[outputs, inputs]`, float32 or bfloat16, from that of its result,
// `[..., outputs]`, of the same type. The weight's rows are read whose gradient is not zero: zeros count as nothing. Sums are float32.
int camlens_linear_gradient(const at::Tensor* gradient, const at::Tensor* weight, at::Tensor** result, char** error);
}
