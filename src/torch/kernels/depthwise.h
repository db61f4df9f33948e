// Convolutions that treat each channel alone, and their gradients to the input.
#pragma once
#include "convolution_parameters.h"

#include <cstdint>

namespace camlens {

// From the input to clamp(convolution + bias, low, high); with `is_gradient`, from the result's gradient to the
// input's. Images are channels-last and dense, of float32 or bfloat16 as `element` says; sums are float32.
struct DepthwiseConvolution {
  int32_t element;
  bool is_gradient;
  // [batch, source_height, source_width, channels].
  const void* source;
  int64_t batch, source_height, source_width, channels;
  // [kernel[0], kernel[1], channels].
  const float* weight;
  int64_t kernel[2];
  ConvolutionParameters parameters;
  // [channels]; may be null.
  const float* bias;
  // A bound that is NaN does not limit.
  float low, high;
  // [batch, target_height, target_width, channels].
  void* target;
  int64_t target_height, target_width;
  // The gates of the target, open between these bounds, as micro/gate_layout.h says; may be null.
  uint64_t* gates;
  float gate_low, gate_high;
};

}  // namespace camlens

extern "C" {

int camlens_depthwise(const camlens::DepthwiseConvolution* convolution, char** error);
}
