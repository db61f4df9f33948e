#include "gates.h"

#include "dot_step.h"
#include "gate_bits.h"

using namespace camlens;

namespace {

// Keeps the lanes whose bit is set; the others become 0.
inline Vector keep(uint64_t bits, Vector value) {
  Bits lane = {};
  for (int64_t i = 0; i < WIDTH; ++i) lane[i] = 1u << i;
  const Bits are_set = reinterpret_cast<Bits>((lane & (static_cast<uint32_t>(bits) - Bits{})) != 0);
  return reinterpret_cast<Vector>(reinterpret_cast<Bits>(value) & are_set);
}

// The gates of `count` results, at most MASK_BITS.
inline uint64_t open_word(const Element* results, int64_t count, float low, float high) {
  uint64_t word = 0;
  for (int64_t c = 0; c < count; c += WIDTH) {
    word |= open_bits(load_first(results + c, count - c), low, high) << c;
  }
  return count == MASK_BITS ? word : word & ((uint64_t{1} << count) - 1);
}

// Calls `work(offset, count)` for each word of gates: the index of its first element and its number of elements.
template <typename Work>
inline void for_each_word(PixelRange range, const Work& work) {
  for (int64_t pixel = 0, offset = 0; pixel < range.pixels; ++pixel) {
    for (int64_t left = range.channels; left > 0; left -= MASK_BITS) {
      const int64_t count = left < MASK_BITS ? left : MASK_BITS;
      work(offset, count);
      offset += count;
    }
  }
}

void find(const void* results, PixelRange range, float low, float high, uint64_t* gates) {
  const Element* const elements = static_cast<const Element*>(results);
  for_each_word(range,
                [&](int64_t offset, int64_t count) { *gates++ = open_word(elements + offset, count, low, high); });
}

void add(const void* left, const void* right, PixelRange range, float least, float most, float low, float high,
         void* sums, uint64_t* gates) {
  const Element *const lefts = static_cast<const Element*>(left), *const rights = static_cast<const Element*>(right);
  Element* const to = static_cast<Element*>(sums);
  for_each_word(range, [&](int64_t offset, int64_t count) {
    for (int64_t c = 0; c < count; c += WIDTH) {
      const Vector sum = load_first(lefts + offset + c, count - c) + load_first(rights + offset + c, count - c);
      store_first(to + offset + c, clamp(sum, least, most), count - c);
    }
    // Gates are those of the rounded sums.
    *gates++ = open_word(to + offset, count, low, high);
  });
}

template <bool has_right>
void pass_sum(const Element* left, const Element* right, PixelRange range, const uint64_t* gates, float floor,
              Element* to) {
  for_each_word(range, [&](int64_t offset, int64_t count) {
    const uint64_t word = *gates++;
    for (int64_t c = 0; c < count; c += WIDTH) {
      Vector sum = load_first(left + offset + c, count - c);
      if (has_right) sum += load_first(right + offset + c, count - c);
      store_first(to + offset + c, keep(word >> c, sum < floor ? broadcast(floor) : sum), count - c);
    }
  });
}

void pass(const void* left, const void* right, PixelRange range, const uint64_t* gates, float floor, void* passed) {
  const Element *const lefts = static_cast<const Element*>(left), *const rights = static_cast<const Element*>(right);
  Element* const to = static_cast<Element*>(passed);
  if (rights == nullptr) return pass_sum<false>(lefts, nullptr, range, gates, floor, to);
  pass_sum<true>(lefts, rights, range, gates, floor, to);
}

}  // namespace

extern "C" const GateKernels CAMLENS_TABLE(gates) = {find, add, pass};
