// All kernels, for each element. kernel.h numbers and names them; kernels.h says what they compute.
#include "cam.cuh"
#include "elementwise.cuh"
#include "fuse.cuh"
#include "normalize.cuh"

namespace camlens::cuda {

#define CAMLENS_KERNELS(T, element)                                                                                    \
  extern "C" __global__ void __launch_bounds__(BLOCK)                                                                  \
      camlens_gate_##element(const T* first, const T* second, const T* third, const T* fourth, const T* source,        \
                             T* result, int64 count, float low, float high, float floor) {                             \
    gate(first, second, third, fourth, source, result, count, Gate{low, high, floor});                                 \
  }                                                                                                                    \
                                                                                                                       \
  extern "C" __global__ void __launch_bounds__(BLOCK) camlens_sum_##element(                                           \
      const T* first, const T* second, const T* third, const T* fourth, T* result, int64 count) {                      \
    sum(first, second, third, fourth, result, count);                                                                  \
  }                                                                                                                    \
                                                                                                                       \
  extern "C" __global__ void __launch_bounds__(BLOCK) camlens_epilogue_##element(                                      \
      T* value, const T* bias, const T* other, int64 count, int64 channels, int64 plane, float low, float high) {      \
    epilogue(value, bias, other, count, channels, plane, Range{low, high});                                            \
  }                                                                                                                    \
                                                                                                                       \
  extern "C" __global__ void __launch_bounds__(CAM_MOST_THREADS)                                                       \
      camlens_cam_weights_##element(const T* gradients, float* weights, int64 rows, int64 channels, int64 pixels,      \
                                    int64 row_stride, int64 channel_stride, int64 pixel_stride) {                      \
    cam_weights(gradients, weights, rows, channels, pixels, row_stride, channel_stride, pixel_stride);                 \
  }                                                                                                                    \
                                                                                                                       \
  extern "C" __global__ void __launch_bounds__(CAM_MOST_THREADS)                                                       \
      camlens_cam_map_##element(const T* activations, const float* weights, float* map, int64 rows, int64 channels,    \
                                int64 pixels, int64 row_stride, int64 channel_stride, int64 pixel_stride) {            \
    cam_map(activations, weights, map, rows, channels, pixels, row_stride, channel_stride, pixel_stride);              \
  }                                                                                                                    \
                                                                                                                       \
  extern "C" __global__ void __launch_bounds__(BLOCK) camlens_fuse_##element(                                          \
      const T* guided, const float* map, float* fused, float* upsampled, int64 rows, int64 channels, int64 height,     \
      int64 width, int64 row_stride, int64 channel_stride, int64 line_stride, int64 pixel_stride, int64 map_height,    \
      int64 map_width, float line_scale, float pixel_scale) {                                                          \
    fuse(guided, map, fused, upsampled, rows, channels, height, width, row_stride, channel_stride, line_stride,        \
         pixel_stride, map_height, map_width, line_scale, pixel_scale);                                                \
  }                                                                                                                    \
                                                                                                                       \
  extern "C" __global__ void __launch_bounds__(BLOCK) camlens_normalize_##element(                                     \
      const uint8* bytes, T* result, int64 rows, int64 pixels, int64 channels, int64 is_interleaved, float mean0,      \
      float mean1, float mean2, float mean3, float deviation0, float deviation1, float deviation2, float deviation3) { \
    normalize(bytes, result, rows, pixels, channels, is_interleaved != 0, ByChannel{mean0, mean1, mean2, mean3},       \
              ByChannel{deviation0, deviation1, deviation2, deviation3});                                              \
  }

CAMLENS_KERNELS(float, float32)
CAMLENS_KERNELS(Float16, float16)
CAMLENS_KERNELS(BFloat16, bfloat16)

#undef CAMLENS_KERNELS

}  // namespace camlens::cuda
