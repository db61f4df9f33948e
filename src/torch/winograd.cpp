#include "winograd.h"

#include "parallel.h"
#include "products.h"
#include "status.h"
#include "winograd_tiles.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace {

constexpr int64_t FLOAT = sizeof(float);
constexpr int64_t CHANNELS = CAMLENS_WINOGRAD_CHANNELS;
constexpr int64_t LARGEST = CAMLENS_WINOGRAD_LARGEST_EDGE * CAMLENS_WINOGRAD_LARGEST_EDGE;

// Values and products of the tiles that are worked on at once: about what the processor's caches hold. Few tiles at once would
// have the weights read too often.
constexpr int64_t BLOCK_BYTES = 4 << 20;
constexpr int64_t LEAST_BLOCK = 64;
// Values of the tiles that one thread works on at once: less than a core's own cache holds.
constexpr int64_t VALUE_BYTES = 384 << 10;
// Weights that each thread reads for itself take no more, and each has half as many tiles as are multiplied at once, or more.
constexpr int64_t SHARED_BYTES = 4 << 20;

// Those that belong to the processor's products of floats.
const CamlensWinogradTiles& tiles_of(const CamlensProductTiles* products) {
  TORCH_CHECK(products != nullptr, "the processor lacks AVX2");
#if defined(__x86_64__)
  return products == &camlens_product_tiles_avx512 ? camlens_winograd_tiles_avx512 : camlens_winograd_tiles_avx2;
#else
  return camlens_winograd_tiles_default;
#endif
}

// G, [edge, 3], of the schemes in winograd_tiles.cpp: a row is 1, p, p² over the product of the differences to the other points.
at::Tensor weight_transform(int64_t edge) {
  const auto matrix = [&](at::ArrayRef<double> values) { return at::tensor(values, at::kDouble).view({edge, 3}); };
  if (edge == 4) {
    return matrix({1.0, 0.0, 0.0,  //
                   0.5, 0.5, 0.5,  //
                   0.5, -0.5, 0.5,  //
                   0.0, 0.0, 1.0});
  }
  const double a = 0.75, b = 1.5;
  const double by_a = 1 / (2 * a * a * (a * a - b * b)), by_b = 1 / (2 * b * b * (b * b - a * a));
  return matrix({1 / (a * a * b * b), 0.0, 0.0,       //
                 by_a, by_a * a, by_a * a * a,        //
                 by_a, by_a * -a, by_a * a * a,       //
                 by_b, by_b * b, by_b * b * b,        //
                 by_b, by_b * -b, by_b * b * b,       //
                 0.0, 0.0, 1.0});
}

at::Tensor transformed(const at::Tensor& weight, int64_t step) {
  TORCH_CHECK(step == 2 || step == 4, "steps of 2 or 4 are expected, not of ", step);
  TORCH_CHECK(weight.dim() == 4 && weight.size(2) == 3 && weight.size(3) == 3, "a kernel of 3 × 3 is expected, not ", weight.sizes());
  TORCH_CHECK(weight.numel() > 0 && weight.size(0) % CHANNELS == 0 && weight.size(1) % CHANNELS == 0,
              "channels in multiples of 16 are expected, not ", weight.sizes());
  const int64_t edge = step + 2, outputs = weight.size(0), inputs = weight.size(1);
  const at::Tensor transform = weight_transform(edge);
  // A panel at a time, so that little more memory than the result's is taken.
  const CamlensProductTiles* const products = camlens_product_tiles(at::kFloat);
  TORCH_CHECK(products != nullptr, "the processor lacks AVX2");
  const int64_t width = products->width, count = (outputs + width - 1) / width;
  at::Tensor to = at::empty({edge * edge, count, inputs, width}, at::kFloat);
  for (int64_t panel = 0; panel < count; ++panel) {
    const at::Tensor part = weight.narrow(0, panel * width, std::min(width, outputs - panel * width)).to(at::kDouble);
    const at::Tensor values = at::matmul(at::matmul(transform, part), transform.t()).permute({2, 3, 1, 0});
    to.select(1, panel).copy_(camlens_in_panels(values.reshape({edge * edge, inputs, part.size(0)}).to(at::kFloat)).select(1, 0));
  }
  return to;
}

// Pictures in memory, [rows, height, width, channels], of numbers of so many bytes.
template <typename Byte>
struct Pictures {
  Byte* at;
  int64_t rows, height, width, channels, bytes;
  // Null outside.
  Byte* pixel(int64_t row, int64_t y, int64_t x) const {
    const bool is_inside = y >= 0 && y < height && x >= 0 && x < width;
    return is_inside ? at + ((row * height + y) * width + x) * channels * bytes : nullptr;
  }
};

// Tiles in their order: row by row, from the top, from the left.
struct Tiling {
  int64_t rows, down, across;
  int64_t count() const { return rows * down * across; }
  int64_t row(int64_t tile) const { return tile / (down * across); }
  int64_t y(int64_t tile) const { return tile / across % down; }
  int64_t x(int64_t tile) const { return tile % across; }
};

// Memory for so many numbers, the same at each call on a thread: fresh pages would take longer than what is computed in them.
float* scratch_of_thread(int64_t count) {
  static thread_local at::Tensor scratch;
  if (!scratch.defined() || scratch.numel() < count) {
    scratch.reset();
    scratch = at::empty({count}, at::kFloat);
  }
  return scratch.data_ptr<float>();
}

// Everything that the threads share.
struct Convolution {
  const CamlensProductTiles& matrices;
  const CamlensWinogradScheme& scheme;
  const CamlensWinogradTransforms& transforms;
  // [positions, panels, inputs, width of a panel].
  const float* weights;
  const float* bias;
  float low, high;
  int64_t inputs, outputs, padding;
  Pictures<const char> from;
  Pictures<char> to;
  Tiling tiling;
  // As many as a pixel of the input has bytes.
  const char* zeros;

  int64_t positions() const { return scheme.edge * scheme.edge; }
  int64_t panels() const { return (outputs + matrices.width - 1) / matrices.width; }
  const float* panel(int64_t position, int64_t panel) const { return weights + (position * panels() + panel) * inputs * matrices.width; }

  // The values of a tile, `stride` floats apart.
  void take(int64_t tile, float* values, int64_t stride) const {
    const int64_t row = tiling.row(tile), top = tiling.y(tile) * scheme.step - padding, left = tiling.x(tile) * scheme.step - padding;
    const void* pixels[LARGEST];
    for (int64_t i = 0; i < positions(); ++i) {
      const char* const pixel = from.pixel(row, top + i / scheme.edge, left + i % scheme.edge);
      pixels[i] = pixel == nullptr ? zeros : pixel;
    }
    transforms.input(pixels, inputs, values, stride);
  }

  // Some channels of the pixels that come of a tile's products.
  void give(int64_t tile, const float* products, int64_t stride, int64_t first, int64_t channels) const {
    const int64_t row = tiling.row(tile), top = tiling.y(tile) * scheme.step, left = tiling.x(tile) * scheme.step;
    void* pixels[LARGEST];
    for (int64_t i = 0; i < scheme.step * scheme.step; ++i) {
      char* const pixel = to.pixel(row, top + i / scheme.step, left + i % scheme.step);
      pixels[i] = pixel == nullptr ? nullptr : pixel + first * to.bytes;
    }
    transforms.output(products, stride, channels, bias == nullptr ? nullptr : bias + first, low, high, pixels);
  }

  // The products of so many tiles' values at one position with a panel.
  void multiply(const float* values, int64_t tiles, const float* panel, float* products, int64_t stride, int64_t columns,
                const float* following) const {
    const CamlensProduct product{{reinterpret_cast<const char*>(values), reinterpret_cast<const char*>(panel), nullptr},
                                 nullptr,
                                 0,
                                 inputs,
                                 inputs * FLOAT,
                                 0,
                                 products,
                                 stride * FLOAT,
                                 columns,
                                 nullptr,
                                 -INFINITY,
                                 INFINITY,
                                 {}};
    multiply_rows(matrices, product, tiles, following);
  }

  // Each thread takes its tiles all the way, so many at once that their values stay in its cache. Each reads all weights.
  void run_by_tiles() const {
    const int64_t threads = at::get_num_threads(), most = std::max<int64_t>(1, VALUE_BYTES / (positions() * inputs * FLOAT));
    const int64_t fitting = (tiling.count() + most - 1) / most;
    const RowParts blocks = RowParts::of(tiling.count(), std::min(tiling.count(), (fitting + threads - 1) / threads * threads));
    in_parallel(blocks.count, [&](int64_t begin, int64_t end) {
      const int64_t width = matrices.width, block = blocks.least + 1;
      float* const values = scratch_of_thread(positions() * block * (inputs + width));
      float* const products = values + positions() * block * inputs;
      for (int64_t job = begin; job < end; ++job) {
        const int64_t first = blocks.begin(job), count = blocks.begin(job + 1) - first;
        for (int64_t at = 0; at < count; ++at) take(first + at, values + at * inputs, count * inputs);
        for (int64_t column = 0; column < outputs; column += width) {
          const int64_t columns = std::min(width, outputs - column);
          for (int64_t position = 0; position < positions(); ++position) {
            const float* const following = position + 1 < positions() ? panel(position + 1, column / width) : nullptr;
            multiply(values + position * count * inputs, count, panel(position, column / width), products + position * count * width, width,
                     columns, following);
          }
          for (int64_t at = 0; at < count; ++at) give(first + at, products + at * width, count * width, column, columns);
        }
      }
    });
  }

  // Each thread takes the products of its positions, so that each reads its part of the weights alone.
  void run_by_positions() const {
    const int64_t width = matrices.width;
    const int64_t fitting = BLOCK_BYTES / (positions() * (inputs + outputs) * FLOAT);
    const int64_t block = std::min(tiling.count(), std::max(fitting, LEAST_BLOCK));
    float* const values = scratch_of_thread(positions() * block * (inputs + outputs));
    float* const products = values + positions() * block * inputs;
    for (int64_t first = 0; first < tiling.count(); first += block) {
      const int64_t count = std::min(block, tiling.count() - first);
      in_parallel(count, [&](int64_t begin, int64_t end) {
        for (int64_t at = begin; at < end; ++at) take(first + at, values + at * inputs, block * inputs);
      });
      in_parallel(positions() * panels(), [&](int64_t begin, int64_t end) {
        for (int64_t job = begin; job < end; ++job) {
          const int64_t position = job / panels(), column = job % panels() * width;
          multiply(values + position * block * inputs, count, weights + job * inputs * width, products + position * block * outputs + column,
                   outputs, std::min(width, outputs - column), job + 1 < end ? weights + (job + 1) * inputs * width : nullptr);
        }
      });
      in_parallel(count, [&](int64_t begin, int64_t end) {
        for (int64_t at = begin; at < end; ++at) give(first + at, products + at * outputs, block * outputs, 0, outputs);
      });
    }
  }

  void run() const {
    const int64_t bytes = positions() * panels() * inputs * matrices.width * FLOAT;
    if (bytes <= SHARED_BYTES && 2 * tiling.count() >= at::get_num_threads() * matrices.rows) {
      run_by_tiles();
    } else {
      run_by_positions();
    }
  }
};

at::Tensor convolve(const at::Tensor& given, const at::Tensor& weight, int64_t outputs, const at::Tensor* bias, int64_t padding, float low,
                    float high) {
  const CamlensProductTiles* const matrices = camlens_product_tiles(at::kFloat);
  const CamlensWinogradTiles& tiles = tiles_of(matrices);
  const int64_t width = matrices->width, panels = (outputs + width - 1) / width;
  TORCH_CHECK(given.dim() == 4 && given.is_cpu() && (given.scalar_type() == at::kFloat || given.scalar_type() == at::kBFloat16),
              "float32 or bfloat16 pictures on the CPU are expected");
  TORCH_CHECK(weight.dim() == 4 && weight.size(1) == panels && weight.size(3) == width && weight.is_contiguous() && weight.is_cpu() &&
                  weight.scalar_type() == at::kFloat && weight.numel() > 0 && outputs % CHANNELS == 0 && weight.size(2) % CHANNELS == 0,
              "transformed weights are expected");
  const CamlensWinogradScheme& scheme = weight.size(0) == 16 ? tiles.two : tiles.four;
  TORCH_CHECK(weight.size(0) == scheme.edge * scheme.edge, "transformed weights are expected");
  const int64_t inputs = weight.size(2);
  TORCH_CHECK(given.size(1) == inputs, "the input has ", given.size(1), " channels, the weights ", inputs);
  TORCH_CHECK(bias == nullptr || (bias->numel() == outputs && bias->is_cpu() && bias->scalar_type() == at::kFloat), "a bias of ", outputs,
              " float32 is expected");
  const at::Tensor shifts = bias == nullptr ? at::Tensor() : bias->contiguous();
  const at::Tensor input = given.contiguous(at::MemoryFormat::ChannelsLast);
  const int64_t rows = input.size(0), down = input.size(2) + 2 * padding - 2, across = input.size(3) + 2 * padding - 2;
  TORCH_CHECK(padding >= 0 && down > 0 && across > 0, "the input is smaller than the kernel: ", input.sizes());
  at::Tensor out = at::empty({rows, outputs, down, across}, input.options(), at::MemoryFormat::ChannelsLast);
  if (out.numel() == 0) return out;
  const int64_t bytes = input.element_size();
  const std::vector<char> zeros(inputs * bytes, 0);
  Convolution{*matrices,
              scheme,
              input.scalar_type() == at::kFloat ? scheme.of_floats : scheme.of_bfloat16,
              weight.const_data_ptr<float>(),
              bias == nullptr ? nullptr : shifts.const_data_ptr<float>(),
              low,
              high,
              inputs,
              outputs,
              padding,
              {static_cast<const char*>(input.const_data_ptr()), rows, input.size(2), input.size(3), inputs, bytes},
              {static_cast<char*>(out.data_ptr()), rows, down, across, outputs, bytes},
              {rows, (down + scheme.step - 1) / scheme.step, (across + scheme.step - 1) / scheme.step},
              zeros.data()}
      .run();
  return out;
}

}  // namespace

extern "C" {

int camlens_winograd_weight(const at::Tensor* weight, int64_t step, at::Tensor** result, char** error) {
  *result = nullptr;
  return guarded(error, [&]() -> int {
    const c10::AutoGradMode mode(false);
    return give(result, transformed(*weight, step));
  });
}

int camlens_winograd(const at::Tensor* input, const at::Tensor* weight, int64_t outputs, const at::Tensor* bias, int64_t padding, double low,
                     double high, at::Tensor** result, char** error) {
  *result = nullptr;
  return guarded(error, [&]() -> int {
    const c10::AutoGradMode mode(false);
    return give(result, convolve(*input, *weight, outputs, bias, padding, static_cast<float>(low), static_cast<float>(high)));
  });
}
}
