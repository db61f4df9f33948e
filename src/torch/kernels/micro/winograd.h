// Micro-kernels for the tile transforms of Winograd convolutions with 3 × 3 kernels: F(2×2, 3×3) and F(4×4, 3×3). The
// channels of a pixel are adjacent. winograd.cpp is compiled once per instruction set.
#pragma once
#include <stdint.h>

namespace camlens {

// Every number of channels is a multiple of this.
constexpr int64_t WINOGRAD_CHANNELS = 16;
constexpr int64_t WINOGRAD_MAX_EDGE = 6;

// Transforms between the pixels of a tile and values at edge² positions. Values are float; pixels are float or
// bfloat16. Strides are in floats.
struct WinogradTransforms {
  // Bᵀ d B of one tile: from edge² pixels to edge² values, `stride` apart.
  void (*input)(const void* const* pixels, int64_t channels, float* values, int64_t stride);
  // clamp(Aᵀ m A + bias, low, high) of one tile, written to the step² pixels that are not null. `bias` may be null.
  void (*output)(const float* products, int64_t stride, int64_t channels, const float* bias, float low, float high,
                 void* const* pixels);
};

struct WinogradScheme {
  // Pixels along an edge of an input tile, and of its output.
  int64_t edge, step;
  WinogradTransforms float32, bfloat16;
};

struct WinogradKernels {
  // F(2×2, 3×3) and F(4×4, 3×3).
  WinogradScheme two, four;
};

extern "C" {
extern const WinogradKernels camlens_winograd_default;
#if defined(__x86_64__)
extern const WinogradKernels camlens_winograd_avx2;
extern const WinogradKernels camlens_winograd_avx512;
#endif
}

}  // namespace camlens
