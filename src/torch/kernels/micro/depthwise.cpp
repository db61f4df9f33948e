#include "depthwise.h"

#include "dot_step.h"

using namespace camlens;

namespace {

// Computes `pixels` pixels from the tile's pixel `first` on, in the channels from `c` on: `parts` vectors if
// `is_whole`, else the `count` last channels, less than one vector.
template <int pixels, int parts, bool is_whole>
inline void compute_block(const DepthwiseTile& tile, int64_t first, int64_t c, int64_t count) {
  const auto read = [&](const auto* from) { return is_whole ? load(from) : load_first(from, count); };
  const Element* const source = static_cast<const Element*>(tile.source) + first * tile.source_step + c;
  const float* const weight = tile.weight + c;
  Vector sum[pixels][parts];
  for (int part = 0; part < parts; ++part) {
    const Vector bias = tile.bias == nullptr ? Vector{} : read(tile.bias + c + part * WIDTH);
    for (int pixel = 0; pixel < pixels; ++pixel) sum[pixel][part] = bias;
  }
  for (int64_t t = 0; t < tile.tap_count; ++t) {
    const float* const factors = weight + tile.taps[t].weight;
    const Element* const from = source + tile.taps[t].source;
    Vector factor[parts];
    for (int part = 0; part < parts; ++part) factor[part] = read(factors + part * WIDTH);
    for (int pixel = 0; pixel < pixels; ++pixel) {
      for (int part = 0; part < parts; ++part) {
        sum[pixel][part] += read(from + pixel * tile.source_step + part * WIDTH) * factor[part];
      }
    }
  }
  Element* const to = static_cast<Element*>(tile.result) + first * tile.result_step + c;
  for (int pixel = 0; pixel < pixels; ++pixel) {
    for (int part = 0; part < parts; ++part) {
      const Vector result = clamp(sum[pixel][part], tile.low, tile.high);
      store_first(to + pixel * tile.result_step + part * WIDTH, result, is_whole ? WIDTH : count);
    }
  }
}

// Computes `pixels` pixels from the tile's pixel `first` on, in all channels. Their sums fill the registers: a product
// is added while the ones before it are on their way.
template <int pixels, int parts>
inline void compute_pixels(const DepthwiseTile& tile, int64_t first) {
  const int64_t all = tile.channels;
  int64_t c = 0;
  for (; c + parts * WIDTH <= all; c += parts * WIDTH) compute_block<pixels, parts, true>(tile, first, c, WIDTH);
  for (; c + WIDTH <= all; c += WIDTH) compute_block<pixels, 1, true>(tile, first, c, WIDTH);
  if (c < all) compute_block<pixels, 1, false>(tile, first, c, all - c);
}

void compute(const DepthwiseTile* tile) {
  int64_t first = 0;
  for (; first + 6 <= tile->pixels; first += 6) compute_pixels<6, 2>(*tile, first);
  for (; first + 2 <= tile->pixels; first += 2) compute_pixels<2, 4>(*tile, first);
  for (; first < tile->pixels; ++first) compute_pixels<1, 8>(*tile, first);
}

}  // namespace

extern "C" const DepthwiseKernels CAMLENS_TABLE(depthwise) = {compute};
