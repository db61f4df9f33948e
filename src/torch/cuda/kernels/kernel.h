// The kernels that run on the device, by number and name. This header needs nothing of libtorch.
#pragma once
#include <cstdint>
#include <string>

namespace camlens::cuda {

// One `__global__` function for each element; kernels.cuh has their parameters.
enum class Kernel : int32_t { GATE, SUM, EPILOGUE, CAM_WEIGHTS, CAM_MAP, FUSE, NORMALIZE };
constexpr int32_t KERNEL_COUNT = 7;

// What the elements are stored as; the arithmetic is in float32.
enum class Element : int32_t { FLOAT32, FLOAT16, BFLOAT16 };
constexpr int32_t ELEMENT_COUNT = 3;

// What a kernel's parameter is.
enum class Parameter : int32_t { POINTER, INT64, FLOAT32 };

// The name of the compiled function, such as `camlens_gate_float16`.
std::string function_name(Kernel kernel, Element element);

}  // namespace camlens::cuda
