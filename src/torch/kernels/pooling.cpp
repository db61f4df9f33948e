#include "pooling.h"

#include "../status.h"
#include "dispatch.h"
#include "multiversion.h"
#include "parallel.h"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

namespace camlens {

namespace {

// Indices are as wide as the values, so that both make vectors of the same length.
template <typename T, typename Stored = typename T::Stored>
inline void keep_greater_of(float* best, int32_t* indices, const Stored* values, int64_t count, int32_t index) {
  INDEPENDENT
  for (int64_t i = 0; i < count; ++i) {
    const float value = T::read(values[i]);
    const bool is_greater = (value > best[i]) | (value != value);
    best[i] = is_greater ? value : best[i];
    indices[i] = is_greater ? index : indices[i];
  }
}

template <typename T, typename Stored = typename T::Stored>
inline void store_of(Stored* to, uint8_t* indices_to, const float* best, const int32_t* indices, int64_t count) {
  INDEPENDENT
  for (int64_t i = 0; i < count; ++i) to[i] = T::write(best[i]);
  INDEPENDENT
  for (int64_t i = 0; i < count; ++i) indices_to[i] = static_cast<uint8_t>(indices[i]);
}

template <typename T, typename Stored = typename T::Stored>
inline void add_selected_of(float* sums, const Stored* gradient, const uint8_t* indices, int64_t count, int32_t index) {
  INDEPENDENT
  for (int64_t i = 0; i < count; ++i) {
    // Masks the bits instead of choosing a value: compilers do not vectorise a choice between types of two widths.
    const float value = T::read(gradient[i]);
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    bits &= -static_cast<uint32_t>(static_cast<int32_t>(indices[i]) == index);
    float kept;
    std::memcpy(&kept, &bits, sizeof kept);
    sums[i] += kept;
  }
}

template <typename T, typename Stored = typename T::Stored>
inline void add_of(float* sums, const Stored* values, int64_t count) {
  INDEPENDENT
  for (int64_t i = 0; i < count; ++i) sums[i] += T::read(values[i]);
}

template <typename T, typename Stored = typename T::Stored>
inline void divide_of(Stored* to, const float* sums, int64_t count, float divisor) {
  INDEPENDENT
  for (int64_t i = 0; i < count; ++i) to[i] = T::write(sums[i] / divisor);
}

// Compilers clone functions, not templates: one function per type.
MULTIVERSION
void keep_greater(float* best, int32_t* indices, const float* values, int64_t count, int32_t index) {
  keep_greater_of<Float32>(best, indices, values, count, index);
}

MULTIVERSION
void keep_greater(float* best, int32_t* indices, const uint16_t* values, int64_t count, int32_t index) {
  keep_greater_of<BFloat16>(best, indices, values, count, index);
}

MULTIVERSION
void store(float* to, uint8_t* indices_to, const float* best, const int32_t* indices, int64_t count) {
  store_of<Float32>(to, indices_to, best, indices, count);
}

MULTIVERSION
void store(uint16_t* to, uint8_t* indices_to, const float* best, const int32_t* indices, int64_t count) {
  store_of<BFloat16>(to, indices_to, best, indices, count);
}

MULTIVERSION
void add_selected(float* sums, const float* gradient, const uint8_t* indices, int64_t count, int32_t index) {
  add_selected_of<Float32>(sums, gradient, indices, count, index);
}

MULTIVERSION
void add_selected(float* sums, const uint16_t* gradient, const uint8_t* indices, int64_t count, int32_t index) {
  add_selected_of<BFloat16>(sums, gradient, indices, count, index);
}

MULTIVERSION
void add(float* sums, const float* values, int64_t count) { add_of<Float32>(sums, values, count); }

MULTIVERSION
void add(float* sums, const uint16_t* values, int64_t count) { add_of<BFloat16>(sums, values, count); }

MULTIVERSION
void divide(float* to, const float* sums, int64_t count, float divisor) {
  divide_of<Float32>(to, sums, count, divisor);
}

MULTIVERSION
void divide(uint16_t* to, const float* sums, int64_t count, float divisor) {
  divide_of<BFloat16>(to, sums, count, divisor);
}

// Along an axis, the range of a window's offsets that lie inside the image.
std::pair<int64_t, int64_t> inside(const PoolingWindows& windows, int axis, int64_t window) {
  const int64_t size = axis == 0 ? windows.height : windows.width;
  const int64_t first = window * windows.parameters.stride[axis] - windows.parameters.padding[axis];
  return {std::max<int64_t>(0, -first), std::min(windows.kernel[axis], size - first)};
}

// Along an axis, the range of windows that cover a pixel.
std::pair<int64_t, int64_t> covering(const PoolingWindows& windows, int axis, int64_t pixel) {
  const int64_t kernel = windows.kernel[axis], stride = windows.parameters.stride[axis];
  const int64_t moved = pixel + windows.parameters.padding[axis];
  const int64_t first = moved < kernel ? 0 : (moved - kernel) / stride + 1;
  return {first, std::min(moved / stride + 1, axis == 0 ? windows.result_height : windows.result_width)};
}

template <typename Stored>
void find_maxima(const PoolingWindows& windows, const Stored* input, Stored* maxima, uint8_t* indices) {
  const int64_t channels = windows.channels;
  in_parallel(windows.batch * windows.result_height, [&](int64_t begin, int64_t end) {
    std::vector<float> best(channels);
    std::vector<int32_t> best_indices(channels);
    for (int64_t line = begin; line < end; ++line) {
      const int64_t y = line % windows.result_height,
                    top = y * windows.parameters.stride[0] - windows.parameters.padding[0];
      const Stored* const image = input + line / windows.result_height * windows.height * windows.width * channels;
      const auto [first_line, last_line] = inside(windows, 0, y);
      for (int64_t x = 0; x < windows.result_width; ++x) {
        const int64_t left = x * windows.parameters.stride[1] - windows.parameters.padding[1];
        const int64_t at = (line * windows.result_width + x) * channels;
        // As in ATen: NaN and everything above -∞ replace it.
        std::fill(best.begin(), best.end(), -std::numeric_limits<float>::infinity());
        const auto [first, last] = inside(windows, 1, x);
        std::fill(best_indices.begin(), best_indices.end(),
                  static_cast<int32_t>(first_line * windows.kernel[1] + first));
        for (int64_t i = first_line; i < last_line; ++i) {
          for (int64_t j = first; j < last; ++j) {
            const Stored* const values = image + ((top + i) * windows.width + left + j) * channels;
            keep_greater(best.data(), best_indices.data(), values, channels,
                         static_cast<int32_t>(i * windows.kernel[1] + j));
          }
        }
        store(maxima + at, indices + at, best.data(), best_indices.data(), channels);
      }
    }
  });
}

template <typename Stored>
void distribute(const PoolingWindows& windows, const Stored* gradient, const uint8_t* indices, Stored* result) {
  const int64_t channels = windows.channels;
  in_parallel(windows.batch * windows.height, [&](int64_t begin, int64_t end) {
    std::vector<float> sums(channels);
    for (int64_t line = begin; line < end; ++line) {
      const int64_t y = line % windows.height,
                    first_window = line / windows.height * windows.result_height * windows.result_width;
      const auto [first_line, last_line] = covering(windows, 0, y);
      for (int64_t x = 0; x < windows.width; ++x) {
        std::fill(sums.begin(), sums.end(), 0.0f);
        const auto [first, last] = covering(windows, 1, x);
        for (int64_t i = first_line; i < last_line; ++i) {
          for (int64_t j = first; j < last; ++j) {
            const int64_t in_y = y + windows.parameters.padding[0] - i * windows.parameters.stride[0];
            const int64_t in_x = x + windows.parameters.padding[1] - j * windows.parameters.stride[1];
            const int64_t at = (first_window + i * windows.result_width + j) * channels;
            add_selected(sums.data(), gradient + at, indices + at, channels,
                         static_cast<int32_t>(in_y * windows.kernel[1] + in_x));
          }
        }
        divide(result + (line * windows.width + x) * channels, sums.data(), channels, 1.0f);
      }
    }
  });
}

template <typename Stored>
void average(const Stored* input, int64_t batch, int64_t pixels, int64_t channels, Stored* means) {
  constexpr int64_t AT_ONCE = 256;
  const int64_t parts = (channels + AT_ONCE - 1) / AT_ONCE;
  in_parallel(batch * parts, [&](int64_t begin, int64_t end) {
    for (int64_t job = begin; job < end; ++job) {
      const int64_t image = job / parts, first = job % parts * AT_ONCE, count = std::min(AT_ONCE, channels - first);
      float sums[AT_ONCE] = {};
      for (int64_t pixel = 0; pixel < pixels; ++pixel)
        add(sums, input + (image * pixels + pixel) * channels + first, count);
      divide(means + image * channels + first, sums, count, static_cast<float>(pixels));
    }
  });
}

}  // namespace

}  // namespace camlens

extern "C" {

int camlens_max_pool(const camlens::PoolingWindows* windows, const void* input, void* maxima, uint8_t* indices,
                     char** error) {
  using namespace camlens;
  return guarded(error, [&]() -> int {
    if (static_cast<ElementType>(windows->element) == ElementType::FLOAT32) {
      find_maxima(*windows, static_cast<const float*>(input), static_cast<float*>(maxima), indices);
    } else {
      find_maxima(*windows, static_cast<const uint16_t*>(input), static_cast<uint16_t*>(maxima), indices);
    }
    return CAMLENS_OK;
  });
}

int camlens_max_pool_gradient(const camlens::PoolingWindows* windows, const void* gradient, const uint8_t* indices,
                              void* result, char** error) {
  using namespace camlens;
  return guarded(error, [&]() -> int {
    if (static_cast<ElementType>(windows->element) == ElementType::FLOAT32) {
      distribute(*windows, static_cast<const float*>(gradient), indices, static_cast<float*>(result));
    } else {
      distribute(*windows, static_cast<const uint16_t*>(gradient), indices, static_cast<uint16_t*>(result));
    }
    return CAMLENS_OK;
  });
}

int camlens_global_average_pool(int32_t element, const void* input, int64_t batch, int64_t pixels, int64_t channels,
                                void* result, char** error) {
  using namespace camlens;
  return guarded(error, [&]() -> int {
    if (static_cast<ElementType>(element) == ElementType::FLOAT32) {
      average(static_cast<const float*>(input), batch, pixels, channels, static_cast<float*>(result));
    } else {
      average(static_cast<const uint16_t*>(input), batch, pixels, channels, static_cast<uint16_t*>(result));
    }
    return CAMLENS_OK;
  });
}
}
