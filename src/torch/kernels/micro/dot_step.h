// One step along the depth of a matrix product: four bytes of a row and of each column, which is one float or two
// bfloat16. A panel has CAMLENS_PARTS vectors per step, as build.rs sets it. Included under the same terms as simd.h.
#pragma once
#include "simd.h"

namespace {

constexpr int PARTS = CAMLENS_PARTS;
constexpr int64_t PANEL = PARTS * WIDTH;

#if defined(__AVX512BF16__)
typedef Bfloat16 Element;
typedef __m512bh Step;
inline Step load_step(const char* from) { return reinterpret_cast<Step>(_mm512_loadu_si512(from)); }
inline Step broadcast_step(const char* step) {
  int32_t pair;
  __builtin_memcpy(&pair, step, sizeof pair);
  return reinterpret_cast<Step>(_mm512_set1_epi32(pair));
}
inline Vector multiply_add(Vector sum, Step left, Step right) {
  return reinterpret_cast<Vector>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), left, right));
}
#else
typedef float Element;
typedef Vector Step;
inline Step load_step(const char* from) { return load(reinterpret_cast<const float*>(from)); }
inline Step broadcast_step(const char* step) {
  float value;
  __builtin_memcpy(&value, step, sizeof value);
  return broadcast(value);
}
inline Vector multiply_add(Vector sum, Step left, Step right) { return sum + left * right; }
#endif

// Loads the first `count` elements, at most a vector; the other lanes are 0. `count` may be 0 or negative.
template <typename T>
inline Vector load_first(const T* from, int64_t count) {
  if (count >= WIDTH) return load(from);
  T elements[WIDTH] = {};
  for (int64_t i = 0; i < count; ++i) elements[i] = from[i];
  return load(elements);
}

// Stores the first `count` lanes, at most a vector. `count` may be 0 or negative.
inline void store_first(Element* to, Vector value, int64_t count) {
  if (count >= WIDTH) return store(to, value);
  Element elements[WIDTH];
  store(elements, value);
  for (int64_t i = 0; i < count; ++i) to[i] = elements[i];
}

// Prefetches bytes that will be written. A store waits for its cache line, and no hardware prefetcher foresees the
// lines of several rows in turn.
inline void prefetch_for_write(const char* first, int64_t bytes) {
  for (int64_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(first + byte, 1);
}
inline void prefetch(const char* first, int64_t bytes) {
  for (int64_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(first + byte);
}

}  // namespace
