#include "winograd.h"

#include "../status.h"
#include "dispatch.h"
#include "parallel.h"
#include "row_parts.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

namespace camlens {

namespace {

constexpr int64_t FLOAT = sizeof(float);
constexpr int64_t MAX_POSITIONS = WINOGRAD_MAX_EDGE * WINOGRAD_MAX_EDGE;

// Values and products of the tiles in one block: about what the processor's caches hold. With fewer tiles the weights
// would be read too often.
constexpr int64_t BLOCK_BYTES = 4 << 20;
constexpr int64_t LEAST_BLOCK = 64;
// Values of the tiles that one thread works on: less than a core's second-level cache holds.
constexpr int64_t VALUE_BYTES = 384 << 10;
// Each thread reads all weights if they have at most this size and the thread has at least half as many tiles as one
// product has rows.
constexpr int64_t SHARED_BYTES = 4 << 20;

// Images [batch, height, width, channels] of elements of `bytes` bytes.
template <typename Byte>
struct Images {
  Byte* first;
  int64_t height, width, channels, bytes;
  // Null outside the image.
  Byte* pixel(int64_t image, int64_t y, int64_t x) const {
    const bool is_inside = y >= 0 && y < height && x >= 0 && x < width;
    return is_inside ? first + ((image * height + y) * width + x) * channels * bytes : nullptr;
  }
};

// The order of tiles: by image, then from top to bottom, then from left to right.
struct Tiling {
  int64_t batch, down, across;
  int64_t count() const { return batch * down * across; }
  int64_t image(int64_t tile) const { return tile / (down * across); }
  int64_t y(int64_t tile) const { return tile / across % down; }
  int64_t x(int64_t tile) const { return tile % across; }
};

struct Free {
  void operator()(float* memory) const { std::free(memory); }
};

// Scratch memory of this thread for `count` floats, kept between calls: fresh pages would take longer than the work
// done in them.
float* thread_scratch(int64_t count) {
  static thread_local std::unique_ptr<float, Free> scratch;
  static thread_local int64_t length = 0;
  if (length < count) {
    scratch.reset();
    length = 0;
    const size_t lines = (count * FLOAT + CACHE_LINE_BYTES - 1) / CACHE_LINE_BYTES;
    scratch.reset(static_cast<float*>(std::aligned_alloc(CACHE_LINE_BYTES, lines * CACHE_LINE_BYTES)));
    if (scratch == nullptr) throw std::bad_alloc();
    length = count;
  }
  return scratch.get();
}

// What the threads share.
struct Convolution {
  const GemmKernels& gemm;
  const WinogradScheme& scheme;
  const WinogradTransforms& transforms;
  const float* weights;
  const float* bias;
  float low, high;
  int64_t inputs, outputs, padding;
  Images<const char> input;
  Images<char> result;
  Tiling tiling;
  // A pixel of zeros, for the padding.
  const char* zeros;

  int64_t positions() const { return scheme.edge * scheme.edge; }
  int64_t panels() const { return (outputs + gemm.panel_width - 1) / gemm.panel_width; }
  const float* panel(int64_t position, int64_t panel) const {
    return weights + (position * panels() + panel) * inputs * gemm.panel_width;
  }

  // Computes the values of a tile; positions are `stride` floats apart.
  void transform_input(int64_t tile, float* values, int64_t stride) const {
    const int64_t top = tiling.y(tile) * scheme.step - padding, left = tiling.x(tile) * scheme.step - padding;
    const void* pixels[MAX_POSITIONS];
    for (int64_t i = 0; i < positions(); ++i) {
      const char* const pixel = input.pixel(tiling.image(tile), top + i / scheme.edge, left + i % scheme.edge);
      pixels[i] = pixel == nullptr ? zeros : pixel;
    }
    transforms.input(pixels, inputs, values, stride);
  }

  // Computes the channels first..first + channels of the result's pixels from a tile's products.
  void transform_output(int64_t tile, const float* products, int64_t stride, int64_t first, int64_t channels) const {
    const int64_t top = tiling.y(tile) * scheme.step, left = tiling.x(tile) * scheme.step;
    void* pixels[MAX_POSITIONS];
    for (int64_t i = 0; i < scheme.step * scheme.step; ++i) {
      char* const pixel = result.pixel(tiling.image(tile), top + i / scheme.step, left + i % scheme.step);
      pixels[i] = pixel == nullptr ? nullptr : pixel + first * result.bytes;
    }
    transforms.output(products, stride, channels, bias == nullptr ? nullptr : bias + first, low, high, pixels);
  }

  // Multiplies the values of `tiles` tiles at one position with a panel.
  void multiply(const float* values, int64_t tiles, const float* panel, float* products, int64_t stride,
                int64_t columns, const float* next_panel) const {
    GemmTile tile{};
    tile.first = {reinterpret_cast<const char*>(values), reinterpret_cast<const char*>(panel), nullptr};
    tile.depth = inputs;
    tile.left_stride = inputs * FLOAT;
    tile.result = products;
    tile.result_stride = stride * FLOAT;
    tile.columns = columns;
    tile.low = -INFINITY;
    tile.high = INFINITY;
    multiply_rows(gemm, tile, tiles, next_panel);
  }

  // Each thread computes its tiles from input to result, a block at a time whose values stay in its cache. Each reads
  // all weights.
  void run_by_tiles() const {
    const int64_t threads = thread_count(), most = std::max<int64_t>(1, VALUE_BYTES / (positions() * inputs * FLOAT));
    const int64_t fitting = (tiling.count() + most - 1) / most;
    const RowParts blocks =
        RowParts::of(tiling.count(), std::min(tiling.count(), (fitting + threads - 1) / threads * threads));
    in_parallel(blocks.count, [&](int64_t begin, int64_t end) {
      const int64_t width = gemm.panel_width, block = blocks.shorter + 1;
      float* const values = thread_scratch(positions() * block * (inputs + width));
      float* const products = values + positions() * block * inputs;
      for (int64_t job = begin; job < end; ++job) {
        const int64_t first = blocks.begin(job), count = blocks.begin(job + 1) - first;
        for (int64_t at = 0; at < count; ++at) transform_input(first + at, values + at * inputs, count * inputs);
        for (int64_t column = 0; column < outputs; column += width) {
          const int64_t columns = std::min(width, outputs - column);
          for (int64_t position = 0; position < positions(); ++position) {
            const bool is_last = position + 1 == positions();
            const float* const next_panel = is_last ? nullptr : panel(position + 1, column / width);
            multiply(values + position * count * inputs, count, panel(position, column / width),
                     products + position * count * width, width, columns, next_panel);
          }
          for (int64_t at = 0; at < count; ++at)
            transform_output(first + at, products + at * width, count * width, column, columns);
        }
      }
    });
  }

  // Each thread computes the products of its positions, so that it reads only its part of the weights.
  void run_by_positions() const {
    const int64_t width = gemm.panel_width;
    const int64_t fitting = BLOCK_BYTES / (positions() * (inputs + outputs) * FLOAT);
    const int64_t block = std::min(tiling.count(), std::max(fitting, LEAST_BLOCK));
    float* const values = thread_scratch(positions() * block * (inputs + outputs));
    float* const products = values + positions() * block * inputs;
    for (int64_t first = 0; first < tiling.count(); first += block) {
      const int64_t count = std::min(block, tiling.count() - first);
      in_parallel(count, [&](int64_t begin, int64_t end) {
        for (int64_t at = begin; at < end; ++at) transform_input(first + at, values + at * inputs, block * inputs);
      });
      in_parallel(positions() * panels(), [&](int64_t begin, int64_t end) {
        for (int64_t job = begin; job < end; ++job) {
          const int64_t position = job / panels(), column = job % panels() * width;
          multiply(values + position * block * inputs, count, weights + job * inputs * width,
                   products + position * block * outputs + column, outputs, std::min(width, outputs - column),
                   job + 1 < end ? weights + (job + 1) * inputs * width : nullptr);
        }
      });
      in_parallel(count, [&](int64_t begin, int64_t end) {
        for (int64_t at = begin; at < end; ++at)
          transform_output(first + at, products + at * outputs, block * outputs, 0, outputs);
      });
    }
  }

  void run() const {
    const int64_t bytes = positions() * panels() * inputs * gemm.panel_width * FLOAT;
    if (bytes <= SHARED_BYTES && 2 * tiling.count() >= thread_count() * gemm.max_rows) {
      run_by_tiles();
    } else {
      run_by_positions();
    }
  }
};

void run(const WinogradConvolution& given) {
  const MicroKernels& kernels = *micro_kernels(ElementType::FLOAT32);
  const ElementType type = static_cast<ElementType>(given.element);
  const int64_t bytes = size_of(type);
  const WinogradScheme& scheme = given.step == 2 ? kernels.winograd->two : kernels.winograd->four;
  const std::vector<char> zeros(given.inputs * bytes, 0);
  const int64_t down = (given.result_height + scheme.step - 1) / scheme.step;
  const int64_t across = (given.result_width + scheme.step - 1) / scheme.step;
  Convolution{*kernels.gemm,
              scheme,
              type == ElementType::FLOAT32 ? scheme.float32 : scheme.bfloat16,
              given.weight,
              given.bias,
              given.low,
              given.high,
              given.inputs,
              given.outputs,
              given.padding,
              {static_cast<const char*>(given.input), given.height, given.width, given.inputs, bytes},
              {static_cast<char*>(given.result), given.result_height, given.result_width, given.outputs, bytes},
              {given.batch, down, across},
              zeros.data()}
      .run();
}

}  // namespace

}  // namespace camlens

extern "C" {

int camlens_winograd(const camlens::WinogradConvolution* convolution, char** error) {
  using namespace camlens;
  return guarded(error, [&]() -> int {
    run(*convolution);
    return CAMLENS_OK;
  });
}
}
