#include "folded.h"

#include "gradients.h"
#include "parallel.h"
#include "products.h"
#include "sparse_rows.h"
#include "status.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>

namespace {

// About so many lines of the result are worked on at once, at most.
constexpr int64_t LINES = 64;

// A kernel's lines for all inputs, [w, inputs], each filled up to whole panels.
int64_t panels_of_line(const CamlensProductTiles& tiles, int64_t kernel_width, int64_t inputs) {
  return (kernel_width * inputs + tiles.width - 1) / tiles.width;
}

at::Tensor packed(const at::Tensor& weight) {
  TORCH_CHECK(weight.dim() == 4 && weight.numel() > 0 && weight.is_cpu(), "a weight [outputs, inputs, h, w] is expected, not ", weight.sizes());
  const CamlensProductTiles& tiles = camlens_product_tiles_of(weight);
  const int64_t line = weight.size(3) * weight.size(1), whole = panels_of_line(tiles, weight.size(3), weight.size(1)) * tiles.width;
  const at::Tensor lines = weight.permute({0, 2, 3, 1}).reshape({weight.size(0), weight.size(2), line});
  return camlens_in_sparse_panels(at::constant_pad_nd(lines, {0, whole - line}).reshape({weight.size(0), weight.size(2) * whole}));
}

struct Gradient {
  const CamlensProductTiles& dense;
  const CamlensSparseTiles& sparse;
  const char* given;
  CamlensGated gated;
  const char* weights;
  int64_t bytes;
  int64_t rows, depth, inputs, panels;
  // Height and width.
  int64_t kernel[2], from[2], size[2];
  CamlensMoves moves;

  int64_t row_bytes() const { return dense.width * bytes; }
  int64_t panel_bytes() const { return depth * row_bytes(); }
  int64_t sum_width() const { return kernel[0] * panels * dense.width; }
  // Floats of a line of the result with its padding, as far as whole panels reach.
  int64_t line_width() const {
    return std::max((from[1] - 1) * moves.stride[1] * inputs + panels * dense.width, (moves.padding[1] + size[1]) * inputs);
  }

  // A line of the gradient, of floats, with its zeros.
  void multiply_densely(const char* line, const char* panel, float* sums) const {
    const int64_t sum_stride = sum_width() * static_cast<int64_t>(sizeof(float));
    multiply_rows(dense, {{line, panel, nullptr}, nullptr, 0, depth, depth * 4, 0, sums, sum_stride, dense.width, nullptr, -INFINITY, INFINITY, {}}, from[1], nullptr);
  }

  // What a line of the gradient adds to the lines from `begin` to `end` of the result.
  void add(SparseScratch& scratch, int64_t row, int64_t y, int64_t begin, int64_t end) const {
    const int64_t pixel_bytes = depth * bytes;
    const char* const line = given + (row * from[0] + y) * from[1] * pixel_bytes;
    scratch.rows.begin(from[1], depth);
    scratch.rows.take(sparse, line, from[1], pixel_bytes, camlens_gated_from(gated, (row * from[0] + y) * from[1], depth));
    grow(scratch.sums, from[1] * sum_width());
    const int64_t all = kernel[0] * panels;
    for (int64_t panel = 0; panel < all; panel += CAMLENS_SPARSE_PANELS) {
      const int64_t count = std::min<int64_t>(CAMLENS_SPARSE_PANELS, all - panel);
      const char* const first = weights + panel * panel_bytes();
      float* const sums = scratch.sums.data() + panel * dense.width;
      if (bytes == sizeof(float) && gated.gates == nullptr && scratch.rows.are_dense()) {
        for (int64_t of_panel = 0; of_panel < count; ++of_panel) multiply_densely(line, first + of_panel * panel_bytes(), sums + of_panel * dense.width);
        continue;
      }
      scratch.runs.assign(1, {line, pixel_bytes, scratch.rows.masks(0), scratch.rows.segments(), from[1], sums, sum_width()});
      const SparseRows::Right right{{first, panel_bytes(), count}, row_bytes(), nullptr, false, count * dense.width};
      scratch.rows.multiply(sparse, scratch.runs, right, true, nullptr, scratch.transposed);
    }
    for (int64_t place = 0; place < kernel[0]; ++place) {
      const int64_t to = y * moves.stride[0] - moves.padding[0] + place;
      if (to < begin || to >= end) continue;
      sparse.fold(scratch.sums.data() + place * panels * dense.width, from[1], sum_width(), panels,
                  scratch.lines.data() + (to - begin) * line_width(), moves.stride[1] * inputs);
    }
  }

  // The lines from `begin` to `end` of a row's result.
  template <typename Number>
  void lines(Number* to, int64_t row, int64_t begin, int64_t end) const {
    SparseScratch& scratch = SparseScratch::of_thread();
    scratch.lines.assign((end - begin) * line_width(), 0.0f);
    const int64_t reach = moves.padding[0] - kernel[0] + 1;
    const int64_t first = begin + reach > 0 ? (begin + reach + moves.stride[0] - 1) / moves.stride[0] : 0;
    const int64_t last = std::min(from[0] - 1, (end - 1 + moves.padding[0]) / moves.stride[0]);
    for (int64_t y = first; y <= last; ++y) add(scratch, row, y, begin, end);
    for (int64_t channel = 0; channel < inputs; ++channel) {
      for (int64_t line = begin; line < end; ++line) {
        const float* const sums = scratch.lines.data() + (line - begin) * line_width() + moves.padding[1] * inputs + channel;
        Number* const numbers = to + ((row * inputs + channel) * size[0] + line) * size[1];
        for (int64_t x = 0; x < size[1]; ++x) numbers[x] = static_cast<Number>(sums[x * inputs]);
      }
    }
  }

  template <typename Number>
  void run(Number* to) const {
    // As many for each thread, but lines that both of two parts need are multiplied twice, and the caches hold only so many.
    const int64_t threads = at::get_num_threads(), most = std::max<int64_t>(1, size[0] / (4 * kernel[0]));
    const int64_t wanted = std::max((2 * threads + rows - 1) / rows, (size[0] + LINES - 1) / LINES);
    const int64_t parts = std::min(most, (wanted + threads - 1) / threads * threads);
    const RowParts lines_of = RowParts::of(size[0], parts);
    in_parallel(rows * parts, [&](int64_t begin, int64_t end) {
      for (int64_t job = begin; job < end; ++job) lines(to, job / parts, lines_of.begin(job % parts), lines_of.begin(job % parts + 1));
      SparseScratch::of_thread().end();
    });
  }
};

at::Tensor input_gradient(const at::Tensor& coming, const at::Tensor* gates, bool guided, const at::Tensor& weight, at::IntArrayRef kernel,
                          at::IntArrayRef size, const CamlensMoves& moves) {
  const CamlensProductTiles& tiles = camlens_product_tiles_of(weight);
  const int64_t panels = panels_of_line(tiles, kernel[1], size[1]);
  TORCH_CHECK(weight.dim() == 3 && weight.numel() > 0 && weight.is_contiguous() && weight.is_cpu() && weight.size(0) == kernel[0] * panels &&
                  weight.size(2) == tiles.width,
              "a weight in panels for ", size[1], " inputs is expected, not ", weight.sizes());
  camlens_check_gradient(coming, weight.scalar_type(), weight.size(1), kernel, size, moves);
  TORCH_CHECK(moves.dilation[0] == 1 && moves.dilation[1] == 1, "no dilation is expected");
  const at::Tensor given = coming.contiguous(at::MemoryFormat::ChannelsLast);
  at::Tensor result = at::empty(size, given.options());
  if (result.numel() == 0) return result;
  const Gradient gradient{tiles,
                          camlens_sparse_tiles(tiles),
                          static_cast<const char*>(given.const_data_ptr()),
                          camlens_gated(gates, coming, guided),
                          static_cast<const char*>(weight.const_data_ptr()),
                          static_cast<int64_t>(weight.element_size()),
                          size[0],
                          weight.size(1),
                          size[1],
                          panels,
                          {kernel[0], kernel[1]},
                          {given.size(2), given.size(3)},
                          {size[2], size[3]},
                          moves};
  if (weight.scalar_type() == at::kFloat) {
    gradient.run(result.data_ptr<float>());
  } else {
    gradient.run(result.data_ptr<at::BFloat16>());
  }
  return result;
}

}  // namespace

extern "C" {

int camlens_folded_weight(const at::Tensor* weight, at::Tensor** result, char** error) {
  *result = nullptr;
  return guarded(error, [&]() -> int {
    const c10::AutoGradMode mode(false);
    return give(result, packed(*weight));
  });
}

int camlens_folded_input_gradient(const at::Tensor* gradient, const at::Tensor* gates, bool guided, const at::Tensor* weight,
                                  const int64_t* kernel, const int64_t* size, const CamlensMoves* moves, at::Tensor** result,
                                  char** error) {
  *result = nullptr;
  return guarded(error, [&]() -> int {
    const c10::AutoGradMode mode(false);
    return give(result, input_gradient(*gradient, gates, guided, *weight, at::IntArrayRef(kernel, 2), at::IntArrayRef(size, 4), *moves));
  });
}
}
