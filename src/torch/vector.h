// Vectors of floats, as wide as build.rs says: CAMLENS_WIDTH floats. Each file that includes it is compiled for one instruction set;
// nothing here has external linkage.
#pragma once
#include <stdint.h>

namespace {

typedef float Vector __attribute__((vector_size(CAMLENS_WIDTH * 4)));
// As it lies in memory.
typedef float Unaligned __attribute__((vector_size(CAMLENS_WIDTH * 4), aligned(4), may_alias));

constexpr int64_t WIDTH = CAMLENS_WIDTH;

// Of the subtraction the compiler leaves nothing; of an addition it would, for the sake of -0.
inline Vector all(float value) { return value - Vector{}; }
inline Vector load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<Unaligned*>(to) = value; }

// NaN stays NaN.
inline Vector between(Vector value, float low, float high) {
  value = value < low ? all(low) : value;
  return value > high ? all(high) : value;
}

}  // namespace
