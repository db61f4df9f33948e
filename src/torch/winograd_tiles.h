// The arithmetic of convolutions of 3 × 3 kernels by Winograd's algorithm: F(2×2, 3×3) and F(4×4, 3×3), on tiles whose channels lie
// next to each other. winograd_tiles.cpp is compiled once for each instruction set and shares no header with the rest of the
// program: what such a header defines inline could be taken from the wrong one.
#pragma once
#include <stdint.h>

enum {
  // Outputs that lie together in the transformed weights. All numbers of channels are multiples of it.
  CAMLENS_WINOGRAD_PANEL = 16,
  CAMLENS_WINOGRAD_LARGEST_EDGE = 6,
};

// Transforms between pixels and values at `edge`² positions. Strides and channels count floats.
struct CamlensWinogradScheme {
  // Pixels along the edge of a tile, and of what comes of it.
  int64_t edge, step;
  // Bᵀ d B of one tile: `pixels` are its edge² pixels, `to` has its edge² values, `stride` apart.
  void (*input)(const float* const* pixels, int64_t channels, float* to, int64_t stride);
  // Aᵀ m A of one tile, plus `bias` (may be null), between `low` and `high`, into the step² `pixels` that are not null.
  void (*output)(const float* products, int64_t stride, int64_t channels, const float* bias, float low, float high, float* const* pixels);
};

struct CamlensWinogradTiles {
  struct CamlensWinogradScheme two, four;
  // One panel of one position: `tiles`, [count, inputs], times `weights`, [inputs, 16], into `products`, [count, outputs].
  void (*multiply)(const float* tiles, int64_t count, int64_t inputs, const float* weights, float* products, int64_t outputs);
};

extern "C" {
#if defined(__x86_64__)
extern const struct CamlensWinogradTiles camlens_winograd_tiles_avx2;
extern const struct CamlensWinogradTiles camlens_winograd_tiles_avx512;
#else
extern const struct CamlensWinogradTiles camlens_winograd_tiles_default;
#endif
}
