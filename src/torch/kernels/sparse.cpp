#include "sparse.h"

#include "../status.h"
#include "dispatch.h"
#include "parallel.h"
#include "row_parts.h"
#include "sparse_rows.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace camlens {

namespace {

// Pixels of the source per job, about; and lines of the target per job, at least, if a line reads its neighbours.
constexpr int64_t CHUNK = 160, LINES = 4;

// A batch of channels-last images. Strides are in bytes. Lines are counted through all images.
struct Images {
  const char* first;
  int64_t height, width;
  int64_t image_stride, line_stride, pixel_stride;
  const char* line(int64_t line) const { return first + line / height * image_stride + line % height * line_stride; }
  bool is_dense(int64_t pixel_bytes) const {
    return pixel_stride == pixel_bytes && line_stride == width * pixel_stride && image_stride == height * line_stride;
  }
};

// Pixels of one source line that a tap adds to target pixels. `line` is an index into the source lines of a job; `to`
// counts pixels through the target lines of the job, `to_step` apart.
struct Span {
  int64_t line, from, to, to_step, count;
};

// What one tap of the kernel adds.
struct Tap {
  int64_t index, pixels;
  std::vector<Span> spans;
};

struct Task {
  const GemmKernels& gemm;
  const SparseKernels& sparse;
  const char* weights;
  bool is_transposed;
  const float* bias;
  float low, high;
  int64_t depth, columns;
  // Of an element.
  int64_t bytes;
  int64_t kernel[2];
  ConvolutionParameters parameters;
  bool is_gradient;
  Images source;
  SparseMask mask;
  // Of the target.
  int64_t batch, height, width;
  char* target;

  int64_t panels() const { return (columns + gemm.panel_width - 1) / gemm.panel_width; }
  int64_t row_bytes() const { return gemm.panel_width * bytes; }
  // From one panel to the next.
  int64_t panel_bytes() const { return (is_transposed ? columns : depth) * row_bytes(); }
  int64_t tap_bytes() const {
    const int64_t depth_panels = (depth + gemm.panel_width - 1) / gemm.panel_width;
    return (is_transposed ? depth_panels : panels()) * panel_bytes();
  }

  // Along an axis, the source pixel that a tap adds to target pixel `target_pixel`; -1 if there is none.
  int64_t source_of(int axis, int64_t target_pixel, int64_t tap) const {
    const int64_t count = axis == 0 ? source.height : source.width, stride = parameters.stride[axis];
    const int64_t reach = tap * parameters.dilation[axis];
    int64_t found = target_pixel * stride + reach - parameters.padding[axis];
    if (is_gradient) {
      const int64_t moved = target_pixel + parameters.padding[axis] - reach;
      found = moved >= 0 && moved % stride == 0 ? moved / stride : -1;
    }
    return found >= 0 && found < count ? found : -1;
  }

  // The source line that a kernel row adds to a target line; -1 if there is none.
  int64_t source_line(int64_t line, int64_t kernel_row) const {
    const int64_t y = source_of(0, line % height, kernel_row);
    return y < 0 ? -1 : line / height * source.height + y;
  }

  // The source lines that the target lines begin..end read, in order.
  std::vector<int64_t> source_lines(int64_t begin, int64_t end) const {
    std::vector<int64_t> lines;
    for (int64_t line = begin; line < end; ++line) {
      for (int64_t row = 0; row < kernel[0]; ++row) {
        const int64_t found = source_line(line, row);
        if (found >= 0) lines.push_back(found);
      }
    }
    std::sort(lines.begin(), lines.end());
    lines.erase(std::unique(lines.begin(), lines.end()), lines.end());
    return lines;
  }

  // Index of the tap that reaches the most target pixels. Every job starts its sums with it, so that the order of the
  // sums does not depend on how lines are divided into jobs.
  int64_t fullest_tap() const {
    int64_t fullest[2] = {0, 0};
    for (int axis = 0; axis < 2; ++axis) {
      int64_t most = 0;
      for (int64_t tap = 0; tap < kernel[axis]; ++tap) {
        int64_t pixels = 0;
        for (int64_t at = 0; at < (axis == 0 ? height : width); ++at) pixels += source_of(axis, at, tap) >= 0;
        if (pixels > most) most = pixels, fullest[axis] = tap;
      }
    }
    return fullest[0] * kernel[1] + fullest[1];
  }

  // The taps that reach the target lines begin..end, `first_tap` first, then in the kernel's order. `lines` are the
  // source lines.
  std::vector<Tap> taps(int64_t begin, int64_t end, const std::vector<int64_t>& lines, int64_t first_tap) const {
    std::vector<Tap> found;
    for (int64_t i = 0; i < kernel[0] * kernel[1]; ++i) {
      const int64_t index = i == 0 ? first_tap : i <= first_tap ? i - 1 : i;
      Tap tap{index, 0, {}};
      const Span within = span(index % kernel[1]);
      if (within.count == 0) continue;
      for (int64_t line = begin; line < end; ++line) {
        const int64_t found_line = source_line(line, index / kernel[1]);
        if (found_line < 0) continue;
        const int64_t from_line = std::lower_bound(lines.begin(), lines.end(), found_line) - lines.begin();
        const int64_t to = (line - begin) * width + within.to;
        tap.spans.push_back({from_line, within.from, to, within.to_step, within.count});
        tap.pixels += within.count;
      }
      if (tap.pixels > 0) found.push_back(std::move(tap));
    }
    return found;
  }

  // The pixels of one line that a kernel column reaches. Successive source pixels are `from_step()` apart, successive
  // target pixels `to_step`: one of the two is 1.
  Span span(int64_t kernel_column) const {
    Span found{0, 0, 0, is_gradient ? parameters.stride[1] : 1, 0};
    for (int64_t x = 0; x < width; ++x) {
      const int64_t source_x = source_of(1, x, kernel_column);
      if (source_x < 0) continue;
      if (found.count == 0) found.from = source_x, found.to = x;
      ++found.count;
    }
    return found;
  }
  int64_t from_step() const { return is_gradient ? 1 : parameters.stride[1]; }

  SparseMask line_mask(int64_t line) const { return mask_from(mask, line * source.width, depth); }

  // Whether the task is a matrix product of pixels and channels that the dense micro-kernel can compute with these
  // weights.
  bool is_product() const {
    if (bytes != sizeof(float) || mask.gates != nullptr || is_transposed) return false;
    const auto are = [](const int64_t* numbers, int64_t value) { return numbers[0] == value && numbers[1] == value; };
    return are(kernel, 1) && are(parameters.stride, 1) && are(parameters.padding, 0);
  }
};

// The work of one thread.
class Worker {
 public:
  explicit Worker(const Task& task) : of_(task), scratch_(SparseScratch::of_thread()), first_tap_(task.fullest_tap()) {}

  // Finds the nonzero elements that the target lines begin..end read.
  void begin(int64_t begin, int64_t end) {
    lines_ = of_.source_lines(begin, end);
    begin_ = begin;
    end_ = end;
    pixels_ = (end - begin) * of_.width;
    const Images& source = of_.source;
    scratch_.rows.begin(static_cast<int64_t>(lines_.size()) * source.width, of_.depth);
    for (const int64_t line : lines_) {
      scratch_.rows.append(of_.sparse, source.line(line), source.width, source.pixel_stride, of_.line_mask(line));
    }
    taps_ = of_.taps(begin, end, lines_, first_tap_);
    is_dense_ = of_.is_product() && scratch_.rows.are_dense();
  }

  // Computes the columns of at most SPARSE_PANELS panels.
  void multiply(int64_t first_panel) {
    const int64_t panels = std::min(SPARSE_PANELS, of_.panels() - first_panel);
    if (is_dense_) return multiply_densely(first_panel, panels);
    const int64_t width = panels * of_.gemm.panel_width, column = first_panel * of_.gemm.panel_width;
    const int64_t columns = std::min(width, of_.columns - column);
    char* const target = of_.target + (begin_ * of_.width * of_.columns + column) * of_.bytes;
    // Whole panels of float32 are summed in the target itself.
    const bool is_in_place = of_.bytes == sizeof(float) && columns == width;
    if (!is_in_place) grow(scratch_.sums, pixels_ * width);
    float* const sums = is_in_place ? reinterpret_cast<float*>(target) : scratch_.sums.data();
    const int64_t stride = is_in_place ? of_.columns : width;
    const float* const bias = of_.bias == nullptr ? nullptr : of_.bias + column;
    const bool covers_all = !taps_.empty() && taps_.front().pixels == pixels_;
    if (!covers_all) {
      for (int64_t pixel = 0; pixel < pixels_; ++pixel) {
        if (bias == nullptr) {
          std::fill_n(sums + pixel * stride, width, 0.0f);
        } else {
          std::copy_n(bias, width, sums + pixel * stride);
        }
      }
    }
    for (size_t tap = 0; tap < taps_.size(); ++tap) {
      scratch_.runs.clear();
      for (const Span& span : taps_[tap].spans) scratch_.runs.push_back(run(span, sums, stride));
      const SparsePanels with{weights(taps_[tap], first_panel), of_.panel_bytes(), panels};
      const char* const next = tap + 1 < taps_.size() ? weights(taps_[tap + 1], first_panel) : nullptr;
      const SparseRows::Right right{with, of_.row_bytes(), next, of_.is_transposed, columns};
      const bool is_first = tap == 0 && covers_all;
      scratch_.rows.multiply(of_.sparse, scratch_.runs, right, is_first, bias, scratch_.transposed);
    }
    if (is_in_place && std::isinf(of_.low) && std::isinf(of_.high)) return;
    const SparseSums finished{sums, stride, pixels_, columns, of_.low, of_.high, target, of_.columns * of_.bytes};
    of_.sparse.finish(&finished);
  }

 private:
  SparseRun run(const Span& span, float* sums, int64_t stride) const {
    const int64_t step = of_.from_step(), row = span.line * of_.source.width + span.from;
    return {of_.source.line(lines_[span.line]) + span.from * of_.source.pixel_stride,
            step * of_.source.pixel_stride,
            scratch_.rows.masks(row),
            step * scratch_.rows.words(),
            span.count,
            sums + span.to * stride,
            span.to_step * stride};
  }

  const char* weights(const Tap& tap, int64_t panel) const {
    const int64_t rows = panel * of_.gemm.panel_width * of_.row_bytes();
    return of_.weights + tap.index * of_.tap_bytes() + (of_.is_transposed ? rows : panel * of_.panel_bytes());
  }

  void multiply_densely(int64_t first_panel, int64_t panels) const {
    // All lines in one product if they are consecutive in memory.
    const int64_t at_once = of_.source.is_dense(of_.depth * of_.bytes) ? end_ - begin_ : 1;
    for (int64_t panel = first_panel; panel < first_panel + panels; ++panel) {
      const int64_t column = panel * of_.gemm.panel_width;
      const char* const weights = of_.weights + panel * of_.panel_bytes();
      for (int64_t line = begin_; line < end_; line += at_once) {
        GemmTile tile{};
        tile.first = {of_.source.line(line), weights, nullptr};
        tile.depth = of_.depth;
        tile.left_stride = of_.source.pixel_stride;
        tile.result = of_.target + (line * of_.width * of_.columns + column) * of_.bytes;
        tile.result_stride = of_.columns * of_.bytes;
        tile.columns = std::min(of_.gemm.panel_width, of_.columns - column);
        tile.bias = of_.bias == nullptr ? nullptr : of_.bias + column;
        tile.low = of_.low;
        tile.high = of_.high;
        const bool prefetches = line == begin_ && panel + 1 < of_.panels();
        multiply_rows(of_.gemm, tile, at_once * of_.width, prefetches ? weights + of_.panel_bytes() : nullptr);
      }
    }
  }

  const Task& of_;
  SparseScratch& scratch_;
  int64_t first_tap_, begin_ = 0, end_ = 0, pixels_ = 0;
  bool is_dense_ = false;
  // The source lines.
  std::vector<int64_t> lines_;
  std::vector<Tap> taps_;
};

void run(const Task& task) {
  const int64_t lines = task.batch * task.height;
  const int64_t groups = (task.panels() + SPARSE_PANELS - 1) / SPARSE_PANELS;
  const int64_t least = task.kernel[0] == 1 ? 1 : LINES;
  const int64_t strides = task.is_gradient ? task.parameters.stride[0] * task.parameters.stride[1] : 1;
  const RowParts fitting(lines, std::max(least, CHUNK * strides / task.width));
  // More parts until the threads' shares are equal.
  const int64_t threads = thread_count();
  int64_t count = fitting.count;
  while (count * groups % threads != 0 && count < std::min(lines, fitting.count + threads)) ++count;
  const RowParts chunks = RowParts::of(lines, count);
  in_parallel(chunks.count * groups, [&](int64_t begin, int64_t end) {
    Worker worker(task);
    for (int64_t job = begin; job < end; ++job) {
      const int64_t chunk = job / groups;
      if (job == begin || job % groups == 0) worker.begin(chunks.begin(chunk), chunks.begin(chunk + 1));
      worker.multiply(job % groups * SPARSE_PANELS);
    }
    SparseScratch::of_thread().end();
  });
}

// If the kernel has one tap along an axis, source pixels between its steps are never read: they count as stride.
void skip_unread(Task& task) {
  for (int axis = 0; axis < 2; ++axis) {
    if (task.kernel[axis] != 1 || task.parameters.padding[axis] != 0) continue;
    const int64_t stride = task.parameters.stride[axis];
    (axis == 0 ? task.source.line_stride : task.source.pixel_stride) *= stride;
    int64_t& size = axis == 0 ? task.source.height : task.source.width;
    size = (size + stride - 1) / stride;
    task.parameters.stride[axis] = 1;
  }
}

Task task_of(const SparseConvolution& given, const MicroKernels& kernels) {
  const int64_t bytes = size_of(static_cast<ElementType>(given.element));
  const int64_t pixel = given.depth * bytes, line = given.source_width * pixel;
  return {*kernels.gemm,
          *kernels.sparse,
          static_cast<const char*>(given.weight),
          given.is_transposed,
          given.bias,
          given.low,
          given.high,
          given.depth,
          given.columns,
          bytes,
          {given.kernel[0], given.kernel[1]},
          given.parameters,
          given.is_gradient,
          {static_cast<const char*>(given.source), given.source_height, given.source_width, given.source_height * line,
           line, pixel},
          {given.gates, given.is_guided},
          given.batch,
          given.target_height,
          given.target_width,
          static_cast<char*>(given.target)};
}

}  // namespace

}  // namespace camlens

extern "C" {

bool camlens_sparse_can_transpose(int32_t element) {
  const camlens::MicroKernels* const kernels = camlens::micro_kernels(static_cast<camlens::ElementType>(type));
  return kernels != nullptr && kernels->sparse->transpose != nullptr;
}

int camlens_sparse_convolution(const camlens::SparseConvolution* convolution, char** error) {
  using namespace camlens;
  return guarded(error, [&]() -> int {
    Task task = task_of(*convolution, *micro_kernels(static_cast<ElementType>(convolution->element)));
    if (!task.is_gradient) skip_unread(task);
    run(task);
    return CAMLENS_OK;
  });
}
}
