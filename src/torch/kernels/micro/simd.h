// Vectors of floats in registers: CAMLENS_WIDTH floats, as build.rs sets it. Each file that includes this header is
// compiled for one instruction set, so nothing here has external linkage.
#pragma once
#include <stdint.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

// The name of a table of micro-kernels for this instruction set: CAMLENS_TABLE(gemm) is `camlens_gemm_avx2`.
#define CAMLENS_JOIN(table, set) camlens_##table##_##set
#define CAMLENS_NAME(table, set) CAMLENS_JOIN(table, set)
#define CAMLENS_TABLE(table) CAMLENS_NAME(table, CAMLENS_INSTRUCTION_SET)

namespace {

typedef float Vector __attribute__((vector_size(CAMLENS_WIDTH * 4)));
// A vector at any address.
typedef float UnalignedVector __attribute__((vector_size(CAMLENS_WIDTH * 4), aligned(4), may_alias));

constexpr int64_t WIDTH = CAMLENS_WIDTH;

// The upper half of a float32.
struct Bfloat16 {
  uint16_t bits;
};
typedef uint32_t Bits __attribute__((vector_size(CAMLENS_WIDTH * 4)));
typedef uint16_t Halves __attribute__((vector_size(CAMLENS_WIDTH * 2)));
typedef uint16_t UnalignedHalves __attribute__((vector_size(CAMLENS_WIDTH * 2), aligned(2), may_alias));

// The compiler removes a subtraction of zero. It keeps an addition of zero, which turns -0 into +0.
inline Vector broadcast(float value) { return value - Vector{}; }
inline Vector load(const float* from) { return *reinterpret_cast<const UnalignedVector*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<UnalignedVector*>(to) = value; }

inline Vector load(const Bfloat16* from) {
#if defined(__AVX512F__)
  const __m512i halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(from)));
  return reinterpret_cast<Vector>(_mm512_slli_epi32(halves, 16));
#elif defined(__AVX2__)
  const __m256i halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i_u*>(from)));
  return reinterpret_cast<Vector>(_mm256_slli_epi32(halves, 16));
#else
  const Halves halves = *reinterpret_cast<const UnalignedHalves*>(from);
  return reinterpret_cast<Vector>(__builtin_convertvector(halves, Bits) << 16);
#endif
}

// Rounds to nearest even; NaN stays NaN. The instruction of AVX-512 BF16 flushes subnormal numbers to zero.
inline void store(Bfloat16* to, Vector value) {
#if defined(__AVX512BF16__)
  const __m256bh rounded = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(value));
  *reinterpret_cast<UnalignedHalves*>(to) = reinterpret_cast<Halves>(rounded);
#else
  const Bits bits = reinterpret_cast<Bits>(value), rounded = bits + 0x7fff + ((bits >> 16) & 1);
  const Bits kept = value == value ? rounded : bits | 0x400000;
  *reinterpret_cast<UnalignedHalves*>(to) = __builtin_convertvector(kept >> 16, Halves);
#endif
}

inline float to_float(float value) { return value; }
inline float to_float(Bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float wide;
  __builtin_memcpy(&wide, &bits, sizeof wide);
  return wide;
}

// NaN stays NaN; a bound that is NaN does not limit.
inline Vector clamp(Vector value, float low, float high) {
#if defined(__AVX512F__)
  const __m512 raised = _mm512_max_ps(_mm512_set1_ps(low), reinterpret_cast<__m512>(value));
  return reinterpret_cast<Vector>(_mm512_min_ps(_mm512_set1_ps(high), raised));
#elif defined(__AVX2__)
  const __m256 raised = _mm256_max_ps(_mm256_set1_ps(low), reinterpret_cast<__m256>(value));
  return reinterpret_cast<Vector>(_mm256_min_ps(_mm256_set1_ps(high), raised));
#else
  value = value < low ? broadcast(low) : value;
  return value > high ? broadcast(high) : value;
#endif
}

}  // namespace
