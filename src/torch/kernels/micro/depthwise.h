// Micro-kernels for convolutions that treat each channel alone. The channels of a pixel are adjacent. depthwise.cpp is
// compiled once per instruction set.
#pragma once
#include <stdint.h>

namespace camlens {

// A tap of the kernel, as seen from a tile's first pixel: elements from `DepthwiseTile::source` to the pixel that it
// reads, floats from `DepthwiseTile::weight` to its weights.
struct DepthwiseTap {
  int64_t source, weight;
};

// Some pixels of a result that all read through the same taps:
// clamp(bias + Σ source[tap] · weight[tap], low, high) for each channel.
struct DepthwiseTile {
  const void* source;
  // Elements from what one pixel reads to what the next one reads.
  int64_t source_step;
  const float* weight;
  const DepthwiseTap* taps;
  int64_t tap_count;
  // May be null.
  const float* bias;
  // A bound that is NaN does not limit.
  float low, high;
  void* result;
  // Elements from pixel to pixel.
  int64_t result_step;
  int64_t pixels, channels;
};

struct DepthwiseKernels {
  void (*compute)(const DepthwiseTile* tile);
};

extern "C" {
extern const DepthwiseKernels camlens_depthwise_default;
#if defined(__x86_64__)
extern const DepthwiseKernels camlens_depthwise_avx2;
extern const DepthwiseKernels camlens_depthwise_avx512;
extern const DepthwiseKernels camlens_depthwise_avx512_bf16;
#endif
}

}  // namespace camlens
