// A step in the depth of a product: four bytes of a row and of each column, a float or two bfloat16. As vector.h, and as build.rs says,
// besides the width of vectors: CAMLENS_PARTS vectors are a panel's step.
#pragma once
#include "vector.h"

namespace {

constexpr int PARTS = CAMLENS_PARTS;
constexpr int64_t PANEL = PARTS * WIDTH;

#if defined(__AVX512BF16__)
typedef Bfloat16 Number;
typedef __m512bh Step;
inline Step load_step(const char* from) { return reinterpret_cast<Step>(_mm512_loadu_si512(from)); }
inline Step all_of(const char* step) {
  int32_t pair;
  __builtin_memcpy(&pair, step, sizeof pair);
  return reinterpret_cast<Step>(_mm512_set1_epi32(pair));
}
inline Vector multiply_add(Vector sum, Step left, Step right) {
  return reinterpret_cast<Vector>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), left, right));
}
#else
typedef float Number;
typedef Vector Step;
inline Step load_step(const char* from) { return load(reinterpret_cast<const float*>(from)); }
inline Step all_of(const char* step) {
  float number;
  __builtin_memcpy(&number, step, sizeof number);
  return all(number);
}
inline Vector multiply_add(Vector sum, Step left, Step right) { return sum + left * right; }
#endif

// The first `count` of them, if any; 0 in the other lanes.
inline Vector load_some(const Number* from, int64_t count) {
  if (count >= WIDTH) return load(from);
  Number numbers[WIDTH] = {};
  for (int64_t i = 0; i < count; ++i) numbers[i] = from[i];
  return load(numbers);
}

// The first `count` of them; may be none or all.
inline void store_some(Number* to, Vector value, int64_t count) {
  if (count >= WIDTH) return store(to, value);
  Number numbers[WIDTH];
  store(numbers, value);
  for (int64_t i = 0; i < count; ++i) to[i] = numbers[i];
}

// Fetches so many bytes, which will be written: a store waits for its line, and those of several rows follow each other
// in a way that no processor foresees.
inline void fetch_to_write(const char* first, int64_t bytes) {
  for (int64_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(first + byte, 1);
}
inline void fetch(const char* first, int64_t bytes) {
  for (int64_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(first + byte);
}

}  // namespace
