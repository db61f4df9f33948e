// The elements of tensors: how they are stored, and packs of them that are loaded and stored at once.
#pragma once
#include "portable.cuh"

namespace camlens::cuda {

// IEEE binary16, and the upper half of a float32.
struct Float16 {
  uint16 bits;
};
struct BFloat16 {
  uint16 bits;
};

__device__ inline float to_float(float value) { return value; }

__device__ inline float to_float(BFloat16 value) { return float_of(static_cast<uint32>(value.bits) << 16); }

__device__ inline float to_float(Float16 value) {
#if defined(__CUDACC_RTC__)
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
#else
  const uint32 sign = (value.bits & 0x8000u) << 16, exponent = value.bits >> 10 & 31, fraction = value.bits & 0x3ffu;
  if (exponent == 31) return float_of(sign | 0x7f800000u | fraction << 13);
  // A subnormal number is a multiple of 2^-24.
  if (exponent == 0) return float_of(sign | bits_of(static_cast<float>(fraction) * 0x1p-24f));
  return float_of(sign | (exponent + 112) << 23 | fraction << 13);
#endif
}

// Rounds to the nearest, ties to even. NaN stays NaN.
template <typename T>
__device__ T to_element(float value);

template <>
__device__ inline float to_element<float>(float value) {
  return value;
}

template <>
__device__ inline BFloat16 to_element<BFloat16>(float value) {
  const uint32 bits = bits_of(value);
  if (value != value) return {0x7fc0};
  return {static_cast<uint16>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
}

template <>
__device__ inline Float16 to_element<Float16>(float value) {
#if defined(__CUDACC_RTC__)
  Float16 result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
#else
  const uint32 sign = bits_of(value) >> 16 & 0x8000u, magnitude = bits_of(value) & 0x7fffffffu;
  uint32 bits;
  if (magnitude > 0x7f800000u) {
    bits = 0x7e00;
  } else if (magnitude >= 0x477ff000u) {
    // From 65520 on the nearest is infinity.
    bits = 0x7c00;
  } else if (magnitude >= 0x38800000u) {
    bits = (magnitude + 0xfffu + (magnitude >> 13 & 1) - 0x38000000u) >> 13;
  } else {
    // Beside 0.5, a float32 is a multiple of 2^-24, as a subnormal number is.
    bits = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
  }
  return {static_cast<uint16>(sign | bits)};
#endif
}

// WIDTH adjacent elements, loaded and stored by one instruction.
template <typename T, int WIDTH>
struct alignas(sizeof(T) * WIDTH) Pack {
  T at[WIDTH];
};

// Their values.
template <int WIDTH>
struct Values {
  float at[WIDTH];
};

// A pack's width, as an argument.
template <int WIDTH>
struct Width {
  static constexpr int value = WIDTH;
};

// Whether a pack of that many bytes may begin there. True for null.
__device__ inline bool is_aligned(const void* pointer, int bytes) {
  return (reinterpret_cast<uint64>(pointer) & (static_cast<uint64>(bytes) - 1)) == 0;
}

// `from` is aligned to the pack.
template <int WIDTH, typename T>
__device__ Values<WIDTH> load(const T* from) {
  const Pack<T, WIDTH> pack = *reinterpret_cast<const Pack<T, WIDTH>*>(from);
  Values<WIDTH> values;
  CAMLENS_UNROLL(WIDTH)
  for (int i = 0; i < WIDTH; ++i) values.at[i] = to_float(pack.at[i]);
  return values;
}

// `to` is aligned to the pack.
template <int WIDTH, typename T>
__device__ void store(T* to, const Values<WIDTH>& values) {
  Pack<T, WIDTH> pack;
  CAMLENS_UNROLL(WIDTH)
  for (int i = 0; i < WIDTH; ++i) pack.at[i] = to_element<T>(values.at[i]);
  *reinterpret_cast<Pack<T, WIDTH>*>(to) = pack;
}

template <int WIDTH>
__device__ void add(Values<WIDTH>& sums, const Values<WIDTH>& values) {
  CAMLENS_UNROLL(WIDTH)
  for (int i = 0; i < WIDTH; ++i) sums.at[i] += values.at[i];
}

}  // namespace camlens::cuda
