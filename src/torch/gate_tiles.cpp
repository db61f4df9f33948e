#include "gate_tiles.h"

#include "gate_bits.h"
#include "step.h"

// Given by build.rs, besides what step.h needs: CAMLENS_GATE_TILES, the name of the table.

namespace {

constexpr int64_t WORD = CAMLENS_GATE_WORD;

// The lanes whose bit is set; 0 in the others.
inline Vector where(uint64_t bits, Vector value) {
  Bits lane = {};
  for (int64_t i = 0; i < WIDTH; ++i) lane[i] = 1u << i;
  const Bits are_set = reinterpret_cast<Bits>((lane & (static_cast<uint32_t>(bits) - Bits{})) != 0);
  return reinterpret_cast<Vector>(reinterpret_cast<Bits>(value) & are_set);
}

// Which of `count` results, at most a word's, a gate is open for.
inline uint64_t open_word(const Number* results, int64_t count, float low, float high) {
  uint64_t word = 0;
  for (int64_t c = 0; c < count; c += WIDTH) {
    word |= open_bits(load_some(results + c, count - c), low, high) << c;
  }
  return count == WORD ? word : word & ((uint64_t{1} << count) - 1);
}

// Calls `work(place, count)` for the numbers of each word.
template <typename Work>
inline void for_each_word(CamlensPixels pixels, const Work& work) {
  for (int64_t pixel = 0, at = 0; pixel < pixels.count; ++pixel) {
    for (int64_t left = pixels.channels; left > 0; left -= WORD) {
      const int64_t count = left < WORD ? left : WORD;
      work(at, count);
      at += count;
    }
  }
}

void open(const void* results, CamlensPixels pixels, float low, float high, uint64_t* gates) {
  const Number* const numbers = static_cast<const Number*>(results);
  for_each_word(pixels, [&](int64_t at, int64_t count) { *gates++ = open_word(numbers + at, count, low, high); });
}

void add(const void* one, const void* other, CamlensPixels pixels, float least, float most, float low, float high, void* to,
         uint64_t* gates) {
  const Number *const ones = static_cast<const Number*>(one), *const others = static_cast<const Number*>(other);
  Number* const sums = static_cast<Number*>(to);
  for_each_word(pixels, [&](int64_t at, int64_t count) {
    for (int64_t c = 0; c < count; c += WIDTH) {
      const Vector sum = load_some(ones + at + c, count - c) + load_some(others + at + c, count - c);
      store_some(sums + at + c, between(sum, least, most), count - c);
    }
    // As they were rounded.
    *gates++ = open_word(sums + at, count, low, high);
  });
}

template <bool has_other>
void pass_sum(const Number* one, const Number* other, CamlensPixels pixels, const uint64_t* gates, float floor, Number* to) {
  for_each_word(pixels, [&](int64_t at, int64_t count) {
    const uint64_t word = *gates++;
    for (int64_t c = 0; c < count; c += WIDTH) {
      Vector sum = load_some(one + at + c, count - c);
      if (has_other) sum += load_some(other + at + c, count - c);
      store_some(to + at + c, where(word >> c, sum < floor ? all(floor) : sum), count - c);
    }
  });
}

void pass(const void* one, const void* other, CamlensPixels pixels, const uint64_t* gates, float floor, void* to) {
  const Number *const ones = static_cast<const Number*>(one), *const others = static_cast<const Number*>(other);
  Number* const passed = static_cast<Number*>(to);
  if (others == nullptr) return pass_sum<false>(ones, nullptr, pixels, gates, floor, passed);
  pass_sum<true>(ones, others, pixels, gates, floor, passed);
}

}  // namespace

extern "C" const CamlensGateTiles CAMLENS_GATE_TILES = {open, add, pass};
