// Sums, gates and clamps of elements. All operands have the same layout, so that an element is one index.
#pragma once
#include "element.cuh"
#include "geometry.cuh"

namespace camlens::cuda {

// Calls `work(width, first)` for packs that cover `count` elements, each element once: as wide as PACK_BYTES allows if
// the operands `are_aligned`, and single elements for what is left.
template <typename T, typename Work>
__device__ void for_each_pack(int64 count, bool are_aligned, const Work& work) {
  constexpr int WIDTH = PACK_BYTES / sizeof(T);
  const int64 packs = are_aligned ? count / WIDTH : 0;
  for (int64 i = thread_index(); i < packs; i += thread_count()) work(Width<WIDTH>{}, i * WIDTH);
  for (int64 i = packs * WIDTH + thread_index(); i < count; i += thread_count()) work(Width<1>{}, i);
}

// Adds `terms[first..]` unless `terms` is null.
template <int WIDTH, typename T>
__device__ void add_from(Values<WIDTH>& sums, const T* terms, int64 first) {
  if (terms != nullptr) add(sums, load<WIDTH>(terms + first));
}

// Where a gradient passes, and its least value there: with a floor of -∞ every gradient passes as it is. A bound that
// is NaN does not close; a source that is NaN lets the gradient pass.
struct Gate {
  float low, high, floor;

  __device__ float pass(float gradient, float source) const {
    const float raised = gradient < floor ? floor : gradient;
    return source <= low || source >= high ? 0.0f : raised;
  }
};

// NaN stays NaN, and a bound that is NaN does not limit.
struct Range {
  float low, high;

  __device__ float clamp(float value) const {
    const float raised = value < low ? low : value;
    return raised > high ? high : raised;
  }
};

// `second` to `fourth` may be null.
template <typename T>
__device__ void gate(const T* first, const T* second, const T* third, const T* fourth, const T* source, T* result,
                     int64 count, Gate gate) {
  const bool are_aligned = is_aligned(first, PACK_BYTES) && is_aligned(second, PACK_BYTES) &&
                           is_aligned(third, PACK_BYTES) && is_aligned(fourth, PACK_BYTES) &&
                           is_aligned(source, PACK_BYTES) && is_aligned(result, PACK_BYTES);
  for_each_pack<T>(count, are_aligned, [&](auto width, int64 i) {
    constexpr int WIDTH = decltype(width)::value;
    const Values<WIDTH> sources = load<WIDTH>(source + i);
    Values<WIDTH> sums = load<WIDTH>(first + i);
    add_from(sums, second, i);
    add_from(sums, third, i);
    add_from(sums, fourth, i);
    CAMLENS_UNROLL(WIDTH)
    for (int k = 0; k < WIDTH; ++k) sums.at[k] = gate.pass(sums.at[k], sources.at[k]);
    store(result + i, sums);
  });
}

// `third` and `fourth` may be null.
template <typename T>
__device__ void sum(const T* first, const T* second, const T* third, const T* fourth, T* result, int64 count) {
  const bool are_aligned = is_aligned(first, PACK_BYTES) && is_aligned(second, PACK_BYTES) &&
                           is_aligned(third, PACK_BYTES) && is_aligned(fourth, PACK_BYTES) &&
                           is_aligned(result, PACK_BYTES);
  for_each_pack<T>(count, are_aligned, [&](auto width, int64 i) {
    constexpr int WIDTH = decltype(width)::value;
    Values<WIDTH> sums = load<WIDTH>(first + i);
    add_from(sums, second, i);
    add_from(sums, third, i);
    add_from(sums, fourth, i);
    store(result + i, sums);
  });
}

// Elements of a channel are runs of `plane`: the pixels of an image in a contiguous tensor, 1 in a channels-last one.
// `bias` and `other` may be null; `other` may be `value`.
template <typename T>
__device__ void epilogue(T* value, const T* bias, const T* other, int64 count, int64 channels, int64 plane,
                         Range range) {
  constexpr int PACK = PACK_BYTES / sizeof(T);
  const bool are_aligned = is_aligned(value, PACK_BYTES) && is_aligned(other, PACK_BYTES);
  // Whether the biases of a pack of elements are a pack too.
  const bool has_packed_bias = plane == 1 && channels % PACK == 0 && is_aligned(bias, PACK_BYTES);
  for_each_pack<T>(count, are_aligned, [&](auto width, int64 i) {
    constexpr int WIDTH = decltype(width)::value;
    Values<WIDTH> sums = load<WIDTH>(value + i);
    if (bias != nullptr && has_packed_bias) {
      add(sums, load<WIDTH>(bias + i % channels));
    } else if (bias != nullptr) {
      int64 run = i / plane, pixel = i - run * plane, channel = run % channels;
      CAMLENS_UNROLL(WIDTH)
      for (int k = 0; k < WIDTH; ++k) {
        sums.at[k] += to_float(bias[channel]);
        if (++pixel == plane) {
          pixel = 0;
          if (++channel == channels) channel = 0;
        }
      }
    }
    add_from(sums, other, i);
    CAMLENS_UNROLL(WIDTH)
    for (int k = 0; k < WIDTH; ++k) sums.at[k] = range.clamp(sums.at[k]);
    store(value + i, sums);
  });
}

}  // namespace camlens::cuda
