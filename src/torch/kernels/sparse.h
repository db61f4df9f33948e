// Convolutions whose input has many zeros, and input gradients whose gradient has: zeros are skipped. Weights are
// finite: a zero may be multiplied or not.
#pragma once
#include "convolution_parameters.h"

#include <cstdint>

namespace camlens {

// A convolution, or the gradient to its input. Images are channels-last and dense, of float32 or bfloat16 as `element`
// says; sums are float32. "Source" is what is read: the convolution's input, or the gradient of its result. "Target" is
// what is computed.
struct SparseConvolution {
  int32_t element;
  // Whether the target is the gradient to the convolution's input.
  bool is_gradient;
  // [batch, source_height, source_width, depth].
  const void* source;
  int64_t batch, source_height, source_width, depth;
  // [kernel[0], kernel[1], panels, depth, panel width], with columns in the order of `SparsePanels`; if
  // `is_transposed`, float32 only, [kernel[0], kernel[1], panels of depth, columns, panel width].
  const void* weight;
  bool is_transposed;
  int64_t kernel[2];
  ConvolutionParameters parameters;
  // As long as all panels' columns; may be null.
  const float* bias;
  float low, high;
  // Gates of the source, as micro/gate_layout.h says; may be null. `is_guided`: elements of the source that are not
  // above zero count as zero too; false without gates.
  const uint64_t* gates;
  bool is_guided;
  // [batch, target_height, target_width, columns].
  void* target;
  int64_t target_height, target_width, columns;
};

}  // namespace camlens

extern "C" {

// Whether the kernels of that `camlens::ElementType` take a transposed weight.
bool camlens_sparse_can_transpose(int32_t element);

int camlens_sparse_convolution(const camlens::SparseConvolution* convolution, char** error);
}
