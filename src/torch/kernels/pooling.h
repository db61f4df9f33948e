// Pooling of channels-last, dense images, of float32 or bfloat16 as `element` says. Sums are float32.
#pragma once
#include "convolution_parameters.h"

#include <cstdint>

namespace camlens {

// Windows over images [batch, height, width, channels], without dilation. A window has at most 255 pixels.
struct PoolingWindows {
  int32_t element;
  int64_t batch, height, width, channels;
  int64_t kernel[2];
  ConvolutionParameters parameters;
  // Windows along the height and the width: the size of the result.
  int64_t result_height, result_width;
};

}  // namespace camlens

extern "C" {

// The maximum of each window, and the index of the first maximum in its window, row-major. NaN counts as greatest.
int camlens_max_pool(const camlens::PoolingWindows* windows, const void* input, void* maxima, uint8_t* indices,
                     char** error);

// The gradient to the images, from the gradient of the maxima. Windows are summed in their order.
int camlens_max_pool_gradient(const camlens::PoolingWindows* windows, const void* gradient, const uint8_t* indices,
                              void* result, char** error);

// The mean of each channel: from [batch, pixels, channels] to [batch, channels].
int camlens_global_average_pool(int32_t element, const void* input, int64_t batch, int64_t pixels, int64_t channels,
                                void* result, char** error);
}
