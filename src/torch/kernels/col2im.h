// Gradients to the input of a convolution that has few input channels.
#pragma once
#include "convolution_parameters.h"

#include <cstdint>

namespace camlens {

// Multiplies each gradient pixel with the whole kernel, skipping zeros, and adds the products where the kernel lies
// (col2im). No dilation. Elements are float32 or bfloat16 as `element` says; sums are float32.
struct Col2imGradient {
  int32_t element;
  // [batch, gradient_height, gradient_width, outputs], dense.
  const void* gradient;
  int64_t batch, gradient_height, gradient_width, outputs;
  // Gates of the gradient, as micro/gate_layout.h says; may be null. `is_guided`: elements that are not above zero
  // count as zero too; false without gates.
  const uint64_t* gates;
  bool is_guided;
  // [kernel[0] * panels, outputs, panel width], with columns in the order of `SparsePanels`: `panels` panels hold one
  // kernel row, [kernel[1], inputs], and padding.
  const void* weight;
  int64_t kernel[2], panels;
  ConvolutionParameters parameters;
  // [batch, inputs, height, width], contiguous.
  void* result;
  int64_t inputs, height, width;
};

}  // namespace camlens

extern "C" {

int camlens_col2im(const camlens::Col2imGradient* gradient, char** error);
}
