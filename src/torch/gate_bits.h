// Gates as bits of vectors; see gate_tiles.h. As vector.h.
#pragma once
#include "vector.h"

namespace {

// A bit for each number that a gate is open for: that lies between `low` and `high`, the first one's the lowest. A bound that is NaN does not close.
inline uint64_t open_bits(Vector result, float low, float high) {
#if defined(__AVX512F__)
  const __m512 numbers = reinterpret_cast<__m512>(result);
  return _mm512_mask_cmp_ps_mask(_mm512_cmp_ps_mask(numbers, _mm512_set1_ps(low), _CMP_NLE_UQ), numbers, _mm512_set1_ps(high), _CMP_NGE_UQ);
#elif defined(__AVX2__)
  const __m256 numbers = reinterpret_cast<__m256>(result);
  const __m256 above = _mm256_cmp_ps(numbers, _mm256_set1_ps(low), _CMP_NLE_UQ);
  return static_cast<uint64_t>(_mm256_movemask_ps(_mm256_and_ps(above, _mm256_cmp_ps(numbers, _mm256_set1_ps(high), _CMP_NGE_UQ))));
#else
  uint64_t bits = 0;
  for (int64_t i = 0; i < WIDTH; ++i) bits |= static_cast<uint64_t>(!(result[i] <= low || result[i] >= high)) << i;
  return bits;
#endif
}

}  // namespace
