#include "kernel.h"

namespace camlens::cuda {

std::string function_name(Kernel kernel, Element element) {
  static const char* const kernels[KERNEL_COUNT] = {"gate",    "sum",  "epilogue", "cam_weights",
                                                    "cam_map", "fuse", "normalize"};
  static const char* const elements[ELEMENT_COUNT] = {"float32", "float16", "bfloat16"};
  return std::string("camlens_") + kernels[static_cast<int32_t>(kernel)] + "_" +
         elements[static_cast<int32_t>(element)];
}

}  // namespace camlens::cuda
