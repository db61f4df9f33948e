#include "col2im.h"

#include "../status.h"
#include "dispatch.h"
#include "multiversion.h"
#include "parallel.h"
#include "row_parts.h"
#include "sparse_rows.h"

#include <algorithm>
#include <cmath>

namespace camlens {

namespace {

// Lines of the result per job, about, at most.
constexpr int64_t LINES = 64;

// The gradient's elements have the type `T`.
template <typename T>
class Col2im {
 public:
  Col2im(const Col2imGradient& gradient, const MicroKernels& kernels)
      : of_(gradient),
        gemm_(*kernels.gemm),
        sparse_(*kernels.sparse),
        mask_{gradient.gates, gradient.is_guided},
        stride_{gradient.parameters.stride[0], gradient.parameters.stride[1]},
        padding_{gradient.parameters.padding[0], gradient.parameters.padding[1]} {}

  void run() const {
    // Equal shares for the threads. But lines that two parts need are multiplied twice, and the caches hold only so
    // many lines.
    const int64_t threads = thread_count(), most = std::max<int64_t>(1, of_.height / (4 * of_.kernel[0]));
    const int64_t wanted = std::max((2 * threads + of_.batch - 1) / of_.batch, (of_.height + LINES - 1) / LINES);
    const int64_t parts = std::min(most, (wanted + threads - 1) / threads * threads);
    const RowParts lines = RowParts::of(of_.height, parts);
    in_parallel(of_.batch * parts, [&](int64_t begin, int64_t end) {
      for (int64_t job = begin; job < end; ++job) {
        compute(job / parts, lines.begin(job % parts), lines.begin(job % parts + 1));
      }
      SparseScratch::of_thread().end();
    });
  }

 private:
  using Stored = typename T::Stored;
  static constexpr int64_t BYTES = sizeof(Stored);

  int64_t row_bytes() const { return gemm_.panel_width * BYTES; }
  int64_t panel_bytes() const { return of_.outputs * row_bytes(); }
  // Floats that one gradient pixel gives: all kernel rows, in whole panels.
  int64_t sum_width() const { return of_.kernel[0] * of_.panels * gemm_.panel_width; }
  // Floats of one line of the result with its padding, including what whole panels add beyond it.
  int64_t line_width() const {
    const int64_t reached = (of_.gradient_width - 1) * stride_[1] * of_.inputs + of_.panels * gemm_.panel_width;
    return std::max(reached, (padding_[1] + of_.width) * of_.inputs);
  }

  // Multiplies one line of the gradient, of float32, with its zeros.
  void multiply_densely(const char* line, const char* panel, float* sums) const {
    GemmTile tile{};
    tile.first = {line, panel, nullptr};
    tile.depth = of_.outputs;
    tile.left_stride = of_.outputs * 4;
    tile.result = sums;
    tile.result_stride = sum_width() * static_cast<int64_t>(sizeof(float));
    tile.columns = gemm_.panel_width;
    tile.low = -INFINITY;
    tile.high = INFINITY;
    multiply_rows(gemm_, tile, of_.gradient_width, nullptr);
  }

  // Adds what the gradient's line `y` gives to the result's lines begin..end.
  void add(SparseScratch& scratch, int64_t image, int64_t y, int64_t begin, int64_t end) const {
    const int64_t pixel_bytes = of_.outputs * BYTES, pixels = of_.gradient_width;
    const int64_t first_pixel = (image * of_.gradient_height + y) * pixels;
    const char* const line = static_cast<const char*>(of_.gradient) + first_pixel * pixel_bytes;
    scratch.rows.begin(pixels, of_.outputs);
    scratch.rows.append(sparse_, line, pixels, pixel_bytes, mask_from(mask_, first_pixel, of_.outputs));
    grow(scratch.sums, pixels * sum_width());
    const int64_t all = of_.kernel[0] * of_.panels;
    for (int64_t panel = 0; panel < all; panel += SPARSE_PANELS) {
      const int64_t count = std::min(SPARSE_PANELS, all - panel);
      const char* const first = static_cast<const char*>(of_.weight) + panel * panel_bytes();
      float* const sums = scratch.sums.data() + panel * gemm_.panel_width;
      if (BYTES == sizeof(float) && mask_.gates == nullptr && scratch.rows.are_dense()) {
        for (int64_t p = 0; p < count; ++p) {
          multiply_densely(line, first + p * panel_bytes(), sums + p * gemm_.panel_width);
        }
        continue;
      }
      scratch.runs.assign(1,
                          {line, pixel_bytes, scratch.rows.masks(0), scratch.rows.words(), pixels, sums, sum_width()});
      const SparsePanels with{first, panel_bytes(), count};
      const SparseRows::Right right{with, row_bytes(), nullptr, false, count * gemm_.panel_width};
      scratch.rows.multiply(sparse_, scratch.runs, right, true, nullptr, scratch.transposed);
    }
    for (int64_t row = 0; row < of_.kernel[0]; ++row) {
      const int64_t to = y * stride_[0] - padding_[0] + row;
      if (to < begin || to >= end) continue;
      sparse_.fold(scratch.sums.data() + row * of_.panels * gemm_.panel_width, pixels, sum_width(), of_.panels,
                   scratch.lines.data() + (to - begin) * line_width(), stride_[1] * of_.inputs);
    }
  }

  // Computes lines begin..end of an image's result.
  void compute(int64_t image, int64_t begin, int64_t end) const {
    SparseScratch& scratch = SparseScratch::of_thread();
    scratch.lines.assign((end - begin) * line_width(), 0.0f);
    const int64_t reach = padding_[0] - of_.kernel[0] + 1;
    const int64_t first = begin + reach > 0 ? (begin + reach + stride_[0] - 1) / stride_[0] : 0;
    const int64_t last = std::min(of_.gradient_height - 1, (end - 1 + padding_[0]) / stride_[0]);
    for (int64_t y = first; y <= last; ++y) add(scratch, image, y, begin, end);
    for (int64_t channel = 0; channel < of_.inputs; ++channel) {
      for (int64_t line = begin; line < end; ++line) {
        const float* const sums =
            scratch.lines.data() + (line - begin) * line_width() + padding_[1] * of_.inputs + channel;
        Stored* const to =
            static_cast<Stored*>(of_.result) + ((image * of_.inputs + channel) * of_.height + line) * of_.width;
        for (int64_t x = 0; x < of_.width; ++x) to[x] = T::write(sums[x * of_.inputs]);
      }
    }
  }

  const Col2imGradient& of_;
  const GemmKernels& gemm_;
  const SparseKernels& sparse_;
  SparseMask mask_;
  int64_t stride_[2], padding_[2];
};

}  // namespace

}  // namespace camlens

extern "C" {

int camlens_col2im(const camlens::Col2imGradient* gradient, char** error) {
  using namespace camlens;
  return guarded(error, [&]() -> int {
    const ElementType type = static_cast<ElementType>(gradient->element);
    const MicroKernels& kernels = *micro_kernels(type);
    if (type == ElementType::FLOAT32) {
      Col2im<Float32>(*gradient, kernels).run();
    } else {
      Col2im<BFloat16>(*gradient, kernels).run();
    }
    return CAMLENS_OK;
  });
}
}
