#include "depthwise.h"

#include "dot_step.h"
#include "gate_bits.h"
#include "gate_layout.h"

using namespace camlens;

namespace {

// Computes `pixels` pixels from the tile's pixel `first` on, in the channels c..c + parts vectors, of which the last
// has `last` channels.
template <int pixels, int parts>
inline void compute_block(const DepthwiseTile& tile, int64_t first, int64_t c, int64_t last) {
  const Element* const source = static_cast<const Element*>(tile.source) + first * tile.source_step + c;
  const float* const weight = tile.weight + c;
  Vector sum[pixels][parts];
  for (int part = 0; part < parts; ++part) {
    Vector bias = {};
    if (tile.bias != nullptr) {
      for (int64_t i = 0; part == parts - 1 && i < last; ++i) bias[i] = tile.bias[c + part * WIDTH + i];
      if (part < parts - 1 || last == WIDTH) bias = load(tile.bias + c + part * WIDTH);
    }
    for (int pixel = 0; pixel < pixels; ++pixel) sum[pixel][part] = bias;
  }
  if (last == WIDTH) {
    for (int64_t t = 0; t < tile.tap_count; ++t) {
      const float* const factors = weight + tile.taps[t].weight;
      const Element* const from = source + tile.taps[t].source;
      Vector factor[parts];
      for (int part = 0; part < parts; ++part) factor[part] = load(factors + part * WIDTH);
      for (int pixel = 0; pixel < pixels; ++pixel) {
        for (int part = 0; part < parts; ++part) {
          sum[pixel][part] += load(from + pixel * tile.source_step + part * WIDTH) * factor[part];
        }
      }
    }
  } else {
    static_assert(parts >= 1, "there is a last part");
    for (int64_t t = 0; t < tile.tap_count; ++t) {
      float factors[WIDTH] = {};
      for (int64_t i = 0; i < last; ++i) factors[i] = weight[tile.taps[t].weight + i];
      const Vector factor = load(factors);
      for (int pixel = 0; pixel < pixels; ++pixel) {
        sum[pixel][0] += load_first(source + tile.taps[t].source + pixel * tile.source_step, last) * factor;
      }
    }
  }
  Element* const to = static_cast<Element*>(tile.result) + first * tile.result_step + c;
  for (int pixel = 0; pixel < pixels; ++pixel) {
    for (int part = 0; part < parts; ++part) {
      const Vector result = clamp(sum[pixel][part], tile.low, tile.high);
      store_first(to + pixel * tile.result_step + part * WIDTH, result, part == parts - 1 ? last : WIDTH);
    }
  }
}

// Computes `pixels` pixels from the tile's pixel `first` on, in all channels. Their sums fill the registers: a product
// is added while the ones before it are on their way.
template <int pixels, int parts>
inline void compute_pixels(const DepthwiseTile& tile, int64_t first) {
  int64_t c = 0;
  for (; c + parts * WIDTH <= tile.channels; c += parts * WIDTH) compute_block<pixels, parts>(tile, first, c, WIDTH);
  for (; c < tile.channels; c += WIDTH) {
    const int64_t left = tile.channels - c;
    compute_block<pixels, 1>(tile, first, c, left < WIDTH ? left : WIDTH);
  }
}

void compute(const DepthwiseTile* tile) {
  int64_t first = 0;
  for (; first + 6 <= tile->pixels; first += 6) compute_pixels<6, 2>(*tile, first);
  for (; first + 2 <= tile->pixels; first += 2) compute_pixels<2, 4>(*tile, first);
  for (; first < tile->pixels; ++first) compute_pixels<1, 8>(*tile, first);
}

void find_gates(const void* results, int64_t pixels, int64_t step, int64_t channels, float low, float high,
                uint64_t* gates, int64_t gate_step) {
  const Element* from = static_cast<const Element*>(results);
  for (int64_t pixel = 0; pixel < pixels; ++pixel, from += step, gates += gate_step) {
    for (int64_t first = 0; first < channels; first += MASK_BITS) {
      const int64_t count = channels - first < MASK_BITS ? channels - first : MASK_BITS;
      uint64_t word = 0;
      for (int64_t c = 0; c < count; c += WIDTH) {
        word |= open_bits(load_first(from + first + c, count - c), low, high) << c;
      }
      gates[first / MASK_BITS] = count == MASK_BITS ? word : word & ((uint64_t{1} << count) - 1);
    }
  }
}

}  // namespace

extern "C" const DepthwiseKernels CAMLENS_TABLE(depthwise) = {compute, find_gates};
