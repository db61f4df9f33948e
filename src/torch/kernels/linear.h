// Linear layers: products of a matrix with a constant weight. Sums are float32.
#pragma once
#include <cstdint>

namespace camlens {

// clamp(input · weight + bias, low, high) with a packed weight. Elements are float32 or bfloat16 as `element` says.
struct PackedLinear {
  int32_t element;
  // [rows, inputs], dense.
  const void* input;
  int64_t rows;
  // [panels, steps, panel width], four bytes per step and column: one float32 or two bfloat16.
  const void* weight;
  int64_t steps, outputs;
  // As long as all panels' columns; may be null.
  const float* bias;
  float low, high;
  // [rows, outputs], dense.
  void* result;
};

// A product with a weight [outputs, inputs] as it is. Matrices are dense, of float32 or bfloat16 as `element` says.
struct RowMajorLinear {
  int32_t element;
  // input · weightᵀ + bias, [rows, outputs], from an input [rows, inputs]; or gradient · weight, [rows, inputs], from a
  // gradient [rows, outputs].
  const void* input;
  int64_t rows;
  const void* weight;
  int64_t outputs, inputs;
  // [outputs], may be null; unused by the gradient.
  const float* bias;
  void* result;
};

}  // namespace camlens

extern "C" {

int camlens_linear(const camlens::PackedLinear* linear, char** error);

// For an input of few rows: the weight is read once.
int camlens_linear_few_rows(const camlens::RowMajorLinear* linear, char** error);

// The gradient to the input; `input` is the gradient of the result, in float32 for either type. Skips the weight's rows
// whose gradient is zero.
int camlens_linear_input_gradient(const camlens::RowMajorLinear* linear, char** error);
}
