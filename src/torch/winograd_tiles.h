// The transforms of convolutions of 3 × 3 kernels by Winograd's algorithm: F(2×2, 3×3) and F(4×4, 3×3), on tiles whose channels lie
// next to each other. winograd_tiles.cpp is compiled as product_tiles.cpp is.
#pragma once
#include <stdint.h>

enum {
  // All numbers of channels are multiples of it.
  CAMLENS_WINOGRAD_CHANNELS = 16,
  CAMLENS_WINOGRAD_LARGEST_EDGE = 6,
};

// Transforms between pixels and values at `edge`² positions. Values are floats; pixels are too, or bfloat16. Strides count floats.
struct CamlensWinogradTransforms {
  // Bᵀ d B of one tile: `pixels` are its edge² pixels, `to` has its edge² values, `stride` apart.
  void (*input)(const void* const* pixels, int64_t channels, float* to, int64_t stride);
  // Aᵀ m A of one tile, plus `bias` (may be null), between `low` and `high`, into the step² `pixels` that are not null.
  void (*output)(const float* products, int64_t stride, int64_t channels, const float* bias, float low, float high, void* const* pixels);
};

struct CamlensWinogradScheme {
  // Pixels along the edge of a tile, and of what comes of it.
  int64_t edge, step;
  struct CamlensWinogradTransforms of_floats, of_bfloat16;
};

struct CamlensWinogradTiles {
  struct CamlensWinogradScheme two, four;
};

extern "C" {
#if defined(__x86_64__)
extern const struct CamlensWinogradTiles camlens_winograd_tiles_avx2;
extern const struct CamlensWinogradTiles camlens_winograd_tiles_avx512;
#else
extern const struct CamlensWinogradTiles camlens_winograd_tiles_default;
#endif
}
