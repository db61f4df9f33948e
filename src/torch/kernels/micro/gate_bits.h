// Gates of one vector of results. Included under the same terms as simd.h.
#pragma once
#include "simd.h"

namespace {

// One bit per lane, the first lane in the lowest bit: 1 where low < result < high. A bound that is NaN does not close a
// gate, and a gate is open for a result that is NaN.
inline uint64_t open_bits(Vector result, float low, float high) {
#if defined(__AVX512F__)
  const __m512 values = reinterpret_cast<__m512>(result);
  const __mmask16 above = _mm512_cmp_ps_mask(values, _mm512_set1_ps(low), _CMP_NLE_UQ);
  return _mm512_mask_cmp_ps_mask(above, values, _mm512_set1_ps(high), _CMP_NGE_UQ);
#elif defined(__AVX2__)
  const __m256 values = reinterpret_cast<__m256>(result);
  const __m256 above = _mm256_cmp_ps(values, _mm256_set1_ps(low), _CMP_NLE_UQ);
  const __m256 below = _mm256_cmp_ps(values, _mm256_set1_ps(high), _CMP_NGE_UQ);
  return static_cast<uint64_t>(_mm256_movemask_ps(_mm256_and_ps(above, below)));
#else
  uint64_t bits = 0;
  for (int64_t i = 0; i < WIDTH; ++i) bits |= static_cast<uint64_t>(!(result[i] <= low || result[i] >= high)) << i;
  return bits;
#endif
}

}  // namespace
