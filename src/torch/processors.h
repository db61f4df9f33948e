// Loops that the compiler turns into vectors, for the best instruction set that the processor has.
#pragma once
#include <cstdint>
#include <cstring>

#include <ATen/core/Tensor.h>

// A function that is compiled for several instruction sets; the best that the processor has is called. That is settled
// when the program is loaded, so that CAMLENS_MAX_CPU_ISA (isa.h) cannot hold it; nor needs it to: write nothing into
// such a function but sums, differences, quotients and choices of elements that do not depend on each other. Those are
// the same, bit for bit, in vectors of any length. A product that is added to something is not: some instruction sets
// round once where others round twice.
#if defined(__x86_64__) && defined(__GNUC__) && defined(__linux__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

// Elements are independent of each other, though the result may lie where an operand does.
#if defined(__clang__)
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define INDEPENDENT _Pragma("GCC ivdep")
#else
#define INDEPENDENT
#endif

// How numbers are stored. Sums and comparisons are of float32.
struct Float32 {
  using Stored = float;
  static constexpr at::ScalarType kind = at::kFloat;
  static inline float read(float stored) { return stored; }
  static inline float write(float value) { return value; }
};

// The upper half of a float32.
struct BFloat16 {
  using Stored = uint16_t;
  static constexpr at::ScalarType kind = at::kBFloat16;
  static inline float read(uint16_t stored) {
    const uint32_t bits = static_cast<uint32_t>(stored) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
  // To the nearest, of two as near to the even one. NaN has its own way: rounding could make it infinite.
  static inline uint16_t write(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return static_cast<uint16_t>(value != value ? 0x7fc0 : rounded);
  }
};
