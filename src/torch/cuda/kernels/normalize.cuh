// From the bytes of pictures to a model's input.
#pragma once
#include "element.cuh"
#include "geometry.cuh"

namespace camlens::cuda {

// A number for each channel of a picture. An array would be put into local memory.
struct ByChannel {
  float first, second, third, fourth;

  __device__ float of(int channel) const {
    return channel == 0 ? first : channel == 1 ? second : channel == 2 ? third : fourth;
  }
};

// Looks up PIXELS pixels of an image, from `pixel` on. `table` has the result for each byte of each channel.
// `bytes` is `[pixels, CHANNELS]`; `result` has that order if `is_interleaved`, and is `[CHANNELS, pixels]` otherwise.
// The packs that are loaded and stored are aligned.
template <bool is_interleaved, int CHANNELS, int PIXELS, typename T>
__device__ void look_up(const float* table, const uint8* bytes, T* result, int64 pixel, int64 pixels) {
  Pack<uint8, PIXELS> from[CHANNELS];
  CAMLENS_UNROLL(CHANNELS)
  for (int i = 0; i < CHANNELS; ++i) {
    from[i] = *reinterpret_cast<const Pack<uint8, PIXELS>*>(bytes + pixel * CHANNELS + i * PIXELS);
  }
  CAMLENS_UNROLL(CHANNELS)
  for (int i = 0; i < CHANNELS; ++i) {
    Values<PIXELS> values;
    CAMLENS_UNROLL(PIXELS)
    for (int k = 0; k < PIXELS; ++k) {
      // The byte's number among those of the pixels.
      const int byte = is_interleaved ? i * PIXELS + k : k * CHANNELS + i;
      values.at[k] = table[byte % CHANNELS * BYTE_VALUES + from[byte / PIXELS].at[byte % PIXELS]];
    }
    store(is_interleaved ? result + pixel * CHANNELS + i * PIXELS : result + i * pixels + pixel, values);
  }
}

// `bytes` is `[rows, pixels, CHANNELS]`, and `result` is that or `[rows, CHANNELS, pixels]`.
template <bool is_interleaved, int CHANNELS, typename T>
__device__ void look_up_rows(const float* table, const uint8* bytes, T* result, int64 rows, int64 pixels) {
  constexpr int PIXELS = NORMALIZE_PIXELS;
  const bool has_packs = is_aligned(bytes, PIXELS) && is_aligned(result, PIXELS * sizeof(T)) &&
                         pixels * CHANNELS % PIXELS == 0 && (is_interleaved || pixels % PIXELS == 0);
  // A block works on a tile of one image. Division of 32 bits suffices for tiles, and needs fewer registers.
  const int64 tile_pixels = static_cast<int64>(blockDim.x) * PIXELS;
  const uint32 tiles = static_cast<uint32>((pixels + tile_pixels - 1) / tile_pixels);
  for (uint32 tile = blockIdx.x; tile < rows * tiles; tile += gridDim.x) {
    const int64 row = tile / tiles, first = (tile % tiles) * tile_pixels;
    const uint8* const from = bytes + row * pixels * CHANNELS;
    T* const to = result + row * pixels * CHANNELS;
    if (has_packs && first + tile_pixels <= pixels) {
      look_up<is_interleaved, CHANNELS, PIXELS>(table, from, to, first + threadIdx.x * PIXELS, pixels);
      continue;
    }
    CAMLENS_UNROLL(1)
    for (int64 pixel = first + threadIdx.x; pixel < first + tile_pixels && pixel < pixels; pixel += blockDim.x) {
      look_up<is_interleaved, CHANNELS, 1>(table, from, to, pixel, pixels);
    }
  }
}

// The dynamic shared memory is the table: BYTE_VALUES floats for each channel.
template <typename T>
__device__ void normalize(const uint8* bytes, T* result, int64 rows, int64 pixels, int64 channels, bool is_interleaved,
                          ByChannel mean, ByChannel deviation) {
  CAMLENS_SHARED_FLOATS(table);
  const int entries = static_cast<int>(channels) * BYTE_VALUES;
  CAMLENS_UNROLL(1)
  for (int i = static_cast<int>(threadIdx.x); i < entries; i += static_cast<int>(blockDim.x)) {
    const int channel = i / BYTE_VALUES;
    // As torchvision's to_tensor and normalize compute it.
    table[i] = (static_cast<float>(i % BYTE_VALUES) / 255.0f - mean.of(channel)) / deviation.of(channel);
  }
  __syncthreads();
  if (channels == 1) return look_up_rows<true, 1>(table, bytes, result, rows, pixels);
  if (is_interleaved) {
    if (channels == 2) return look_up_rows<true, 2>(table, bytes, result, rows, pixels);
    if (channels == 3) return look_up_rows<true, 3>(table, bytes, result, rows, pixels);
    return look_up_rows<true, 4>(table, bytes, result, rows, pixels);
  }
  if (channels == 2) return look_up_rows<false, 2>(table, bytes, result, rows, pixels);
  if (channels == 3) return look_up_rows<false, 3>(table, bytes, result, rows, pixels);
  look_up_rows<false, 4>(table, bytes, result, rows, pixels);
}

}  // namespace camlens::cuda
