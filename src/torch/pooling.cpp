#include "pooling.h"

#include "gradients.h"
#include "parallel.h"
#include "processors.h"
#include "status.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <limits>
#include <vector>

namespace {

// Numbers of one width make vectors of one length.
template <typename T, typename Stored = typename T::Stored>
inline void take_greater_of(float* best, int32_t* places, const Stored* values, int64_t count, int32_t place) {
  INDEPENDENT
  for (int64_t i = 0; i < count; ++i) {
    const float value = T::read(values[i]);
    const bool is_greater = (value > best[i]) | (value != value);
    best[i] = is_greater ? value : best[i];
    places[i] = is_greater ? place : places[i];
  }
}

template <typename T, typename Stored = typename T::Stored>
inline void give_of(Stored* to, uint8_t* places_to, const float* best, const int32_t* places, int64_t count) {
  INDEPENDENT
  for (int64_t i = 0; i < count; ++i) to[i] = T::write(best[i]);
  INDEPENDENT
  for (int64_t i = 0; i < count; ++i) places_to[i] = static_cast<uint8_t>(places[i]);
}

template <typename T, typename Stored = typename T::Stored>
inline void add_where_of(float* sums, const Stored* gradient, const uint8_t* places, int64_t count, int32_t place) {
  INDEPENDENT
  for (int64_t i = 0; i < count; ++i) {
    // All of its bits or none: a choice would not become vectors where numbers are of two widths.
    const float value = T::read(gradient[i]);
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    bits &= -static_cast<uint32_t>(static_cast<int32_t>(places[i]) == place);
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

// Compilers clone functions, not templates.
FOR_EACH_PROCESSOR
void take_greater(float* best, int32_t* places, const float* values, int64_t count, int32_t place) {
  take_greater_of<Float32>(best, places, values, count, place);
}

FOR_EACH_PROCESSOR
void take_greater(float* best, int32_t* places, const uint16_t* values, int64_t count, int32_t place) {
  take_greater_of<BFloat16>(best, places, values, count, place);
}

FOR_EACH_PROCESSOR
void give(float* to, uint8_t* places_to, const float* best, const int32_t* places, int64_t count) {
  give_of<Float32>(to, places_to, best, places, count);
}

FOR_EACH_PROCESSOR
void give(uint16_t* to, uint8_t* places_to, const float* best, const int32_t* places, int64_t count) {
  give_of<BFloat16>(to, places_to, best, places, count);
}

FOR_EACH_PROCESSOR
void add_where(float* sums, const float* gradient, const uint8_t* places, int64_t count, int32_t place) {
  add_where_of<Float32>(sums, gradient, places, count, place);
}

FOR_EACH_PROCESSOR
void add_where(float* sums, const uint16_t* gradient, const uint8_t* places, int64_t count, int32_t place) {
  add_where_of<BFloat16>(sums, gradient, places, count, place);
}

FOR_EACH_PROCESSOR
void add(float* sums, const float* values, int64_t count) { add_of<Float32>(sums, values, count); }

FOR_EACH_PROCESSOR
void add(float* sums, const uint16_t* values, int64_t count) { add_of<BFloat16>(sums, values, count); }

FOR_EACH_PROCESSOR
void divide(float* to, const float* sums, int64_t count, float divisor) { divide_of<Float32>(to, sums, count, divisor); }

FOR_EACH_PROCESSOR
void divide(uint16_t* to, const float* sums, int64_t count, float divisor) { divide_of<BFloat16>(to, sums, count, divisor); }

// Windows over pictures.
struct Windows {
  int64_t kernel[2];
  CamlensMoves moves;
  // Of the pictures, and how many windows there are.
  int64_t height, width, down, across, channels;

  // The part of a window at `at` along an axis that lies within.
  std::pair<int64_t, int64_t> within(int axis, int64_t at) const {
    const int64_t first = at * moves.stride[axis] - moves.padding[axis], size = axis == 0 ? height : width;
    return {std::max<int64_t>(0, -first), std::min(kernel[axis], size - first)};
  }

  // The windows over a pixel: from the first one to before the last one.
  std::pair<int64_t, int64_t> over(int axis, int64_t pixel) const {
    const int64_t moved = pixel + moves.padding[axis], stride = moves.stride[axis];
    const int64_t first = moved < kernel[axis] ? 0 : (moved - kernel[axis]) / stride + 1;
    return {first, std::min(moved / stride + 1, axis == 0 ? down : across)};
  }
};

template <typename Stored>
void take_maxima(const Windows& windows, const Stored* from, int64_t rows, Stored* to, uint8_t* places) {
  const int64_t channels = windows.channels;
  in_parallel(rows * windows.down, [&](int64_t begin, int64_t end) {
    std::vector<float> best(channels);
    std::vector<int32_t> places_of_best(channels);
    for (int64_t line = begin; line < end; ++line) {
      const int64_t y = line % windows.down, top = y * windows.moves.stride[0] - windows.moves.padding[0];
      const Stored* const picture = from + line / windows.down * windows.height * windows.width * channels;
      const auto [first_line, last_line] = windows.within(0, y);
      for (int64_t x = 0; x < windows.across; ++x) {
        const int64_t left = x * windows.moves.stride[1] - windows.moves.padding[1];
        const int64_t at = (line * windows.across + x) * channels;
        // ATen begins so too: NaN and what is greater than -∞ take its place.
        std::fill(best.begin(), best.end(), -std::numeric_limits<float>::infinity());
        const auto [first, last] = windows.within(1, x);
        std::fill(places_of_best.begin(), places_of_best.end(), static_cast<int32_t>(first_line * windows.kernel[1] + first));
        for (int64_t i = first_line; i < last_line; ++i) {
          for (int64_t j = first; j < last; ++j) {
            const Stored* const values = picture + ((top + i) * windows.width + left + j) * channels;
            take_greater(best.data(), places_of_best.data(), values, channels, static_cast<int32_t>(i * windows.kernel[1] + j));
          }
        }
        give(to + at, places + at, best.data(), places_of_best.data(), channels);
      }
    }
  });
}

template <typename Stored>
void take_back(const Windows& windows, const Stored* gradient, const uint8_t* places, int64_t rows, Stored* to) {
  const int64_t channels = windows.channels;
  in_parallel(rows * windows.height, [&](int64_t begin, int64_t end) {
    std::vector<float> sums(channels);
    for (int64_t line = begin; line < end; ++line) {
      const int64_t y = line % windows.height, first_window = line / windows.height * windows.down * windows.across;
      const auto [first_line, last_line] = windows.over(0, y);
      for (int64_t x = 0; x < windows.width; ++x) {
        std::fill(sums.begin(), sums.end(), 0.0f);
        const auto [first, last] = windows.over(1, x);
        for (int64_t i = first_line; i < last_line; ++i) {
          for (int64_t j = first; j < last; ++j) {
            const int64_t in_y = y + windows.moves.padding[0] - i * windows.moves.stride[0];
            const int64_t in_x = x + windows.moves.padding[1] - j * windows.moves.stride[1];
            const int64_t at = (first_window + i * windows.across + j) * channels;
            add_where(sums.data(), gradient + at, places + at, channels, static_cast<int32_t>(in_y * windows.kernel[1] + in_x));
          }
        }
        divide(to + (line * windows.width + x) * channels, sums.data(), channels, 1.0f);
      }
    }
  });
}

bool is_known(const at::Tensor& tensor) {
  return tensor.is_cpu() && tensor.dim() == 4 && (tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kBFloat16);
}

template <typename Stored>
Stored* numbers(const at::Tensor& tensor) {
  return static_cast<Stored*>(tensor.data_ptr());
}

Windows windows_of(at::IntArrayRef kernel, const CamlensMoves& moves, at::IntArrayRef size) {
  TORCH_CHECK(moves.dilation[0] == 1 && moves.dilation[1] == 1, "no dilation is expected");
  for (int axis = 0; axis < 2; ++axis) {
    TORCH_CHECK(kernel[axis] > 0 && kernel[axis] <= 255 && 2 * moves.padding[axis] <= kernel[axis],
                "a window of at most 255 places, with half of it as padding at most, is expected");
  }
  TORCH_CHECK(kernel[0] * kernel[1] <= 255, "a window of at most 255 places, with half of it as padding at most, is expected");
  const int64_t down = camlens_steps(size[2], kernel[0], moves, 0), across = camlens_steps(size[3], kernel[1], moves, 1);
  TORCH_CHECK(down > 0 && across > 0, "the input is smaller than the window: ", size);
  return {{kernel[0], kernel[1]}, moves, size[2], size[3], down, across, size[1]};
}

std::pair<at::Tensor, at::Tensor> max_pool(const at::Tensor& given, at::IntArrayRef kernel, const CamlensMoves& moves) {
  TORCH_CHECK(is_known(given), "pictures of float32 or bfloat16 on the CPU are expected");
  const Windows windows = windows_of(kernel, moves, given.sizes());
  const at::Tensor input = given.contiguous(at::MemoryFormat::ChannelsLast);
  at::Tensor result = at::empty({given.size(0), given.size(1), windows.down, windows.across}, given.options(), at::MemoryFormat::ChannelsLast);
  at::Tensor places = at::empty(result.sizes(), at::kByte, at::MemoryFormat::ChannelsLast);
  if (result.numel() == 0) return {result, places};
  if (given.scalar_type() == at::kFloat) {
    take_maxima(windows, numbers<float>(input), input.size(0), numbers<float>(result), numbers<uint8_t>(places));
  } else {
    take_maxima(windows, numbers<uint16_t>(input), input.size(0), numbers<uint16_t>(result), numbers<uint8_t>(places));
  }
  return {result, places};
}

at::Tensor max_pool_gradient(const at::Tensor& coming, const at::Tensor& places, at::IntArrayRef kernel, at::IntArrayRef size,
                             const CamlensMoves& moves) {
  TORCH_CHECK(is_known(coming), "pictures of float32 or bfloat16 on the CPU are expected");
  const Windows windows = windows_of(kernel, moves, size);
  camlens_check_gradient(coming, coming.scalar_type(), size[1], kernel, size, moves);
  TORCH_CHECK(places.scalar_type() == at::kByte && places.is_cpu() && places.sizes() == coming.sizes() &&
                  places.is_contiguous(at::MemoryFormat::ChannelsLast),
              "places of the gradient's shape are expected");
  const at::Tensor gradient = coming.contiguous(at::MemoryFormat::ChannelsLast);
  at::Tensor result = at::empty(size, coming.options(), at::MemoryFormat::ChannelsLast);
  if (result.numel() == 0) return result;
  if (coming.scalar_type() == at::kFloat) {
    take_back(windows, numbers<float>(gradient), numbers<uint8_t>(places), size[0], numbers<float>(result));
  } else {
    take_back(windows, numbers<uint16_t>(gradient), numbers<uint8_t>(places), size[0], numbers<uint16_t>(result));
  }
  return result;
}

template <typename Stored>
void take_means(const Stored* from, int64_t rows, int64_t pixels, int64_t channels, Stored* to) {
  constexpr int64_t AT_ONCE = 256;
  const int64_t parts = (channels + AT_ONCE - 1) / AT_ONCE;
  in_parallel(rows * parts, [&](int64_t begin, int64_t end) {
    for (int64_t job = begin; job < end; ++job) {
      const int64_t row = job / parts, first = job % parts * AT_ONCE, count = std::min(AT_ONCE, channels - first);
      float sums[AT_ONCE] = {};
      for (int64_t pixel = 0; pixel < pixels; ++pixel) add(sums, from + (row * pixels + pixel) * channels + first, count);
      divide(to + row * channels + first, sums, count, static_cast<float>(pixels));
    }
  });
}

at::Tensor mean_of_pixels(const at::Tensor& given) {
  TORCH_CHECK(is_known(given) && given.size(2) > 0 && given.size(3) > 0, "pictures of float32 or bfloat16 on the CPU are expected");
  const at::Tensor input = given.contiguous(at::MemoryFormat::ChannelsLast);
  const int64_t rows = input.size(0), channels = input.size(1), pixels = input.size(2) * input.size(3);
  at::Tensor result = at::empty({rows, channels, 1, 1}, input.options());
  if (result.numel() == 0) return result;
  if (input.scalar_type() == at::kFloat) {
    take_means(numbers<float>(input), rows, pixels, channels, numbers<float>(result));
  } else {
    take_means(numbers<uint16_t>(input), rows, pixels, channels, numbers<uint16_t>(result));
  }
  return result;
}

}  // namespace

extern "C" {

int camlens_max_pool(const at::Tensor* input, const int64_t* kernel, const CamlensMoves* moves, at::Tensor** result, at::Tensor** places,
                     char** error) {
  *result = *places = nullptr;
  return guarded(error, [&]() -> int {
    const c10::AutoGradMode mode(false);
    auto [maxima, at] = max_pool(*input, at::IntArrayRef(kernel, 2), *moves);
    *places = new at::Tensor(std::move(at));
    return give(result, std::move(maxima));
  });
}

int camlens_max_pool_gradient(const at::Tensor* gradient, const at::Tensor* places, const int64_t* kernel, const int64_t* size,
                              const CamlensMoves* moves, at::Tensor** result, char** error) {
  *result = nullptr;
  return guarded(error, [&]() -> int {
    const c10::AutoGradMode mode(false);
    return give(result, max_pool_gradient(*gradient, *places, at::IntArrayRef(kernel, 2), at::IntArrayRef(size, 4), *moves));
  });
}

int camlens_mean_of_pixels(const at::Tensor* input, at::Tensor** result, char** error) {
  *result = nullptr;
  return guarded(error, [&]() -> int {
    const c10::AutoGradMode mode(false);
    return give(result, mean_of_pixels(*input));
  });
}
}
