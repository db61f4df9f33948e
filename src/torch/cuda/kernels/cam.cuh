// Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391, equations 1 and 2). Images are `[rows, channels, pixels]` of any
// strides. The order in which numbers are added depends on the counts of channels and pixels alone.
#pragma once
#include "element.cuh"
#include "geometry.cuh"

namespace camlens::cuda {

// Computes `count` sums of `terms` terms in each of `rows` rows. `term(sum, row, item, index)` adds a term of an item
// to `sum`; `finish(sum, row, item)` takes the item's sum. With P = blockDim.x / CAM_TILE, partial sum p adds the terms
// p, p + P, p + 2 P, ..., and the sum adds the partial sums, both in ascending order. Neighbouring threads read
// neighbouring items if `items_first`, neighbouring terms otherwise.
template <typename Term, typename Finish>
__device__ void tiled_sums(int64 rows, int64 count, int64 terms, bool items_first, const Term& term,
                           const Finish& finish) {
  CAMLENS_SHARED_FLOATS(partial);
  const int thread = static_cast<int>(threadIdx.x), parts = static_cast<int>(blockDim.x) / CAM_TILE;
  const int slot = items_first ? thread % CAM_TILE : thread / parts;
  const int part = items_first ? thread / CAM_TILE : thread % parts;
  const int64 tiles = (count + CAM_TILE - 1) / CAM_TILE;
  for (int64 tile = blockIdx.x; tile < rows * tiles; tile += gridDim.x) {
    const int64 row = tile / tiles, first = tile % tiles * CAM_TILE;
    float sum = 0.0f;
    if (first + slot < count) {
      CAMLENS_UNROLL(8)
      for (int64 i = part; i < terms; i += parts) term(sum, row, first + slot, i);
    }
    partial[part * CAM_ROW + slot] = sum;
    __syncthreads();
    if (thread < CAM_TILE && first + thread < count) {
      float total = 0.0f;
      CAMLENS_UNROLL(8)
      for (int i = 0; i < parts; ++i) total += partial[i * CAM_ROW + thread];
      finish(total, row, first + thread);
    }
    // The next tile's partial sums take the memory of these.
    __syncthreads();
  }
}

// The mean gradient of each channel: `weights` is `[rows, channels]`.
template <typename T>
__device__ void cam_weights(const T* gradients, float* weights, int64 rows, int64 channels, int64 pixels,
                            int64 row_stride, int64 channel_stride, int64 pixel_stride) {
  const auto term = [&](float& sum, int64 row, int64 channel, int64 pixel) {
    sum += to_float(gradients[row * row_stride + channel * channel_stride + pixel * pixel_stride]);
  };
  const auto finish = [&](float sum, int64 row, int64 channel) {
    weights[row * channels + channel] = sum / static_cast<float>(pixels);
  };
  tiled_sums(rows, channels, pixels, channel_stride < pixel_stride, term, finish);
}

// The positive part of the weighted sum of channels: `map` is `[rows, pixels]`.
template <typename T>
__device__ void cam_map(const T* activations, const float* weights, float* map, int64 rows, int64 channels,
                        int64 pixels, int64 row_stride, int64 channel_stride, int64 pixel_stride) {
  const auto term = [&](float& sum, int64 row, int64 pixel, int64 channel) {
    const T activation = activations[row * row_stride + channel * channel_stride + pixel * pixel_stride];
    sum = fmaf(weights[row * channels + channel], to_float(activation), sum);
  };
  const auto finish = [&](float sum, int64 row, int64 pixel) { map[row * pixels + pixel] = sum < 0.0f ? 0.0f : sum; };
  tiled_sums(rows, pixels, channels, pixel_stride < channel_stride, term, finish);
}

}  // namespace camlens::cuda
