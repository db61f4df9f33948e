// Loops that the compiler vectorises, compiled for several instruction sets.
#pragma once
#include <cstdint>
#include <cstring>

// A function compiled for several instruction sets; the best one that the processor has is called. The dynamic linker
// chooses it, so CAMLENS_MAX_CPU_ISA (isa.h) does not apply. It need not: such a function only adds, divides, compares
// and selects elements that are independent of each other, which gives the same bits in vectors of any length. Do not
// multiply and add there: some instruction sets round such a sum once, others twice.
#if defined(__x86_64__) && defined(__GNUC__) && defined(__linux__)
#define MULTIVERSION __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define MULTIVERSION
#endif

// The iterations of the loop that follows are independent, although the result may overlap an operand.
#if defined(__clang__)
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define INDEPENDENT _Pragma("GCC ivdep")
#else
#define INDEPENDENT
#endif

namespace camlens {

// How elements are stored. Arithmetic is in float32.
struct Float32 {
  using Stored = float;
  static inline float read(float stored) { return stored; }
  static inline float write(float value) { return value; }
};

// The upper half of a float32.
struct BFloat16 {
  using Stored = uint16_t;
  static inline float read(uint16_t stored) {
    const uint32_t bits = static_cast<uint32_t>(stored) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
  // Rounds to nearest even. NaN is a case of its own: rounding could make it infinite.
  static inline uint16_t write(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return static_cast<uint16_t>(value != value ? 0x7fc0 : rounded);
  }
};

}  // namespace camlens
