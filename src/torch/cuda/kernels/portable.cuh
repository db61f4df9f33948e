// What the kernels need of CUDA, for NVRTC and for a host compiler: twin.cpp runs the same source on the host. NVRTC
// has no standard headers, so integers have names of our own.
#pragma once

#if defined(__CUDACC_RTC__)

namespace camlens::cuda {

using int64 = long long;
using uint64 = unsigned long long;
using uint32 = unsigned int;
using uint16 = unsigned short;
using uint8 = unsigned char;

__device__ inline uint32 bits_of(float value) { return __float_as_uint(value); }
__device__ inline float float_of(uint32 bits) { return __uint_as_float(bits); }

}  // namespace camlens::cuda

// The block's dynamic shared memory.
#define CAMLENS_SHARED_FLOATS(name) extern __shared__ float name[]
#define CAMLENS_PRAGMA(text) _Pragma(#text)
#define CAMLENS_UNROLL(count) CAMLENS_PRAGMA(unroll count)

#else

#include <cmath>
#include <cstdint>
#include <cstring>

#define __device__
#define __global__
#define __launch_bounds__(threads)

namespace camlens::cuda {

using int64 = std::int64_t;
using uint64 = std::uint64_t;
using uint32 = std::uint32_t;
using uint16 = std::uint16_t;
using uint8 = std::uint8_t;

inline uint32 bits_of(float value) {
  uint32 bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float float_of(uint32 bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

struct Position {
  uint32 x;
};
inline thread_local Position threadIdx, blockIdx, blockDim, gridDim;
inline thread_local float* shared_memory;

// In twin.cpp.
void __syncthreads();

}  // namespace camlens::cuda

#define CAMLENS_SHARED_FLOATS(name) float* const name = shared_memory
#define CAMLENS_UNROLL(count)

#endif

namespace camlens::cuda {

// This thread among all of the launch, and their number.
__device__ inline int64 thread_index() { return static_cast<int64>(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline int64 thread_count() { return static_cast<int64>(gridDim.x) * blockDim.x; }

}  // namespace camlens::cuda
