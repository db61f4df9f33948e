// Convolutions with 3 × 3 kernels and stride 1 by Winograd's algorithm. Numbers of channels are multiples of
// WINOGRAD_CHANNELS.
#pragma once
#include <cstdint>

namespace camlens {

// clamp(convolution + bias, low, high). Images are channels-last and dense, of float32 or bfloat16 as `element` says;
// the arithmetic is in float32.
struct WinogradConvolution {
  int32_t element;
  // [batch, height, width, inputs].
  const void* input;
  int64_t batch, height, width, inputs;
  // [edge², panels, inputs, panel width], transformed for F(step×step, 3×3), where edge = step + 2 and `step` is 2 or
  // 4.
  const float* weight;
  int64_t step;
  // [outputs]; may be null.
  const float* bias;
  // On all sides.
  int64_t padding;
  float low, high;
  // [batch, result_height, result_width, outputs].
  void* result;
  int64_t result_height, result_width, outputs;
};

}  // namespace camlens

extern "C" {

int camlens_winograd(const camlens::WinogradConvolution* convolution, char** error);
}
