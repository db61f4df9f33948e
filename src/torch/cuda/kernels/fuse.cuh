// Guided Grad-CAM: a guided gradient times a resized map.
#pragma once
#include "element.cuh"

namespace camlens::cuda {

// The two pixels of an axis between which a resized pixel lies, and the weight of the second. `scale` is size / resized
// size. Centres of pixels are at halves, as in ATen's upsample_bilinear2d(align_corners=false).
struct Tap {
  int64 first, second;
  float weight;
};

__device__ inline Tap tap(int64 index, int64 size, float scale) {
  const float at = scale * (static_cast<float>(index) + 0.5f) - 0.5f;
  const float inside = at < 0.0f ? 0.0f : at;
  const int64 floor = static_cast<int64>(inside);
  const int64 first = floor < size ? floor : size - 1;
  return {first, first + 1 < size ? first + 1 : first, inside - static_cast<float>(first)};
}

// `guided`, `[rows, channels, height, width]` of any strides, times `map`, `[rows, map_height, map_width]`. `fused` and
// `upsampled`, which may be null, are contiguous.
template <typename T>
__device__ void fuse(const T* guided, const float* map, float* fused, float* upsampled, int64 rows, int64 channels,
                     int64 height, int64 width, int64 row_stride, int64 channel_stride, int64 line_stride,
                     int64 pixel_stride, int64 map_height, int64 map_width, float line_scale, float pixel_scale) {
  const bool has_size = map_height == height && map_width == width;
  const int64 plane = height * width;
  for (int64 i = thread_index(); i < rows * plane; i += thread_count()) {
    const int64 row = i / plane, pixel = i - row * plane, y = pixel / width, x = pixel - y * width;
    float value;
    if (has_size) {
      value = map[i];
    } else {
      const Tap line = tap(y, map_height, line_scale), column = tap(x, map_width, pixel_scale);
      const float* const upper = map + (row * map_height + line.first) * map_width;
      const float* const lower = map + (row * map_height + line.second) * map_width;
      const float left = 1.0f - column.weight, above = 1.0f - line.weight;
      value = above * (left * upper[column.first] + column.weight * upper[column.second]) +
              line.weight * (left * lower[column.first] + column.weight * lower[column.second]);
    }
    if (upsampled != nullptr) upsampled[i] = value;
    const T* from = guided + row * row_stride + y * line_stride + x * pixel_stride;
    float* to = fused + row * channels * plane + pixel;
    for (int64 c = 0; c < channels; ++c, from += channel_stride, to += plane) *to = to_float(*from) * value;
  }
}

}  // namespace camlens::cuda
