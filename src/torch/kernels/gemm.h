// Convolutions as matrix products (implicit GEMM).
#pragma once
#include "convolution_parameters.h"

#include <cstdint>

namespace camlens {

// clamp(convolution + bias + addend, low, high). Images are channels-last and dense, of float32 or bfloat16 as
// `element` says; sums are float32.
struct GemmConvolution {
  int32_t element;
  // [batch, height, width, inputs].
  const void* input;
  int64_t batch, height, width, inputs;
  // [kernel[0], kernel[1], panels, steps, panel width], four bytes per step and column.
  const void* weight;
  int64_t kernel[2], steps;
  // Kernel taps that are packed as one: 1, or the kernel's width if each kernel row is packed as one tap.
  int64_t taps_per_step;
  ConvolutionParameters parameters;
  // As long as all panels' columns; may be null.
  const float* bias;
  // Of the result's shape; may be null.
  const void* addend;
  // A bound that is NaN does not limit.
  float low, high;
  // [batch, result_height, result_width, outputs].
  void* result;
  int64_t result_height, result_width, outputs;
  // The gates of the result, open between these bounds, as micro/gate_layout.h says; may be null. Bytes without a
  // channel are not written.
  uint64_t* gates;
  float gate_low, gate_high;
};

}  // namespace camlens

extern "C" {

int camlens_gemm(const camlens::GemmConvolution* convolution, char** error);
}
