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

// A job computes some columns of some lines of the target; a line is one row of an image's pixels. About this many
// pixels per job: of the target, or, for an input gradient, of the source.
constexpr int64_t JOB_PIXELS = 160;
// Lines per job, at least, if the kernel is higher than 1: neighbouring lines read common source lines.
constexpr int64_t MIN_JOB_LINES = 4;

// A batch of channels-last images. Strides are in bytes. A line's index counts through all images of the batch.
struct Images {
  const char* first;
  int64_t height, width;
  int64_t image_stride, line_stride, pixel_stride;
  const char* line(int64_t line) const { return first + line / height * image_stride + line % height * line_stride; }
  bool is_contiguous(int64_t pixel_bytes) const {
    return pixel_stride == pixel_bytes && line_stride == width * pixel_stride && image_stride == height * line_stride;
  }
};

// `count` pixels of one source line that a tap adds to as many target pixels.
struct Span {
  // The index of the source line in the list of those that the job reads, and its first pixel.
  int64_t line, from;
  // The first target pixel, counted through the job's target lines, and the distance from one to the next.
  int64_t to, to_step;
  int64_t count;
};

// One tap of the kernel, and the pixels that it adds.
struct Tap {
  // Row-major in the kernel.
  int64_t index;
  // Target pixels that the tap reaches.
  int64_t pixels;
  std::vector<Span> spans;
};

// A `SparseConvolution`, and the micro-kernels that compute it. `depth` is the number of the source's channels,
// `columns` that of the target's.
struct Task {
  const GemmKernels& gemm;
  const SparseKernels& sparse;
  const char* weights;
  bool is_transposed;
  const float* bias;
  float low, high;
  int64_t depth, columns;
  int64_t element_bytes;
  int64_t kernel[2];
  ConvolutionParameters parameters;
  bool is_gradient;
  Images source;
  SparseMask mask;
  // The target, [batch, height, width, columns].
  int64_t batch, height, width;
  char* target;

  int64_t panels() const { return (columns + gemm.panel_width - 1) / gemm.panel_width; }
  int64_t row_bytes() const { return gemm.panel_width * element_bytes; }
  // Bytes of the weight from one panel to the next, and from one tap to the next.
  int64_t panel_bytes() const { return (is_transposed ? columns : depth) * row_bytes(); }
  int64_t tap_bytes() const {
    const int64_t depth_panels = (depth + gemm.panel_width - 1) / gemm.panel_width;
    return (is_transposed ? depth_panels : panels()) * panel_bytes();
  }

  // Along one axis, the source pixel that tap `tap` adds to pixel `target_pixel` of the target; -1 if there is none.
  int64_t source_of(int axis, int64_t target_pixel, int64_t tap) const {
    const int64_t count = axis == 0 ? source.height : source.width, stride = parameters.stride[axis];
    const int64_t offset = tap * parameters.dilation[axis] - parameters.padding[axis];
    int64_t found = target_pixel * stride + offset;
    if (is_gradient) {
      // The inverse: the convolution's result pixel that reads input pixel `target_pixel` through this tap.
      const int64_t strided = target_pixel - offset;
      found = strided >= 0 && strided % stride == 0 ? strided / stride : -1;
    }
    return found >= 0 && found < count ? found : -1;
  }

  // The source line that the taps of a kernel row add to a target line; -1 if there is none.
  int64_t source_line(int64_t line, int64_t kernel_row) const {
    const int64_t y = source_of(0, line % height, kernel_row);
    return y < 0 ? -1 : line / height * source.height + y;
  }

  // The source lines that the target lines begin..end read, in ascending order.
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

  // Index of the tap that reaches the most target pixels of an image. Every job starts its sums with it, so that the
  // order of a pixel's sum does not depend on how lines are divided into jobs.
  int64_t fullest_tap() const {
    int64_t fullest[2] = {0, 0};
    for (int axis = 0; axis < 2; ++axis) {
      int64_t most = 0;
      for (int64_t tap = 0; tap < kernel[axis]; ++tap) {
        int64_t pixels = 0;
        for (int64_t pixel = 0; pixel < (axis == 0 ? height : width); ++pixel) {
          pixels += source_of(axis, pixel, tap) >= 0;
        }
        if (pixels > most) most = pixels, fullest[axis] = tap;
      }
    }
    return fullest[0] * kernel[1] + fullest[1];
  }

  // The taps that reach the target lines begin..end: `first_tap` first, then the others in the kernel's order. `lines`
  // are the `source_lines` of these target lines.
  std::vector<Tap> taps(int64_t begin, int64_t end, const std::vector<int64_t>& lines, int64_t first_tap) const {
    std::vector<Tap> found;
    for (int64_t i = 0; i < kernel[0] * kernel[1]; ++i) {
      const int64_t index = i == 0 ? first_tap : i <= first_tap ? i - 1 : i;
      Tap tap{index, 0, {}};
      const Span in_line = span(index % kernel[1]);
      if (in_line.count == 0) continue;
      for (int64_t line = begin; line < end; ++line) {
        const int64_t read = source_line(line, index / kernel[1]);
        if (read < 0) continue;
        const int64_t position = std::lower_bound(lines.begin(), lines.end(), read) - lines.begin();
        const int64_t to = (line - begin) * width + in_line.to;
        tap.spans.push_back({position, in_line.from, to, in_line.to_step, in_line.count});
        tap.pixels += in_line.count;
      }
      if (tap.pixels > 0) found.push_back(std::move(tap));
    }
    return found;
  }

  // The pixels that the taps of a kernel column add within one line; the span's `line` is not set. Successive source
  // pixels are `from_step()` apart, successive target pixels `to_step`: one of the two is the stride, the other 1.
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

  // Whether the task is a matrix product, [pixels, depth] · [depth, columns], that the dense micro-kernel can compute:
  // in float32, with weights that need not be transposed, and without gates, which only the sparse micro-kernel
  // applies.
  bool is_dense_product() const {
    if (element_bytes != sizeof(float) || mask.gates != nullptr || is_transposed) return false;
    const auto both = [](const int64_t* numbers, int64_t value) { return numbers[0] == value && numbers[1] == value; };
    return both(kernel, 1) && both(parameters.stride, 1) && both(parameters.padding, 0);
  }
};

// Computes the jobs of one thread, one after the other.
class Worker {
 public:
  explicit Worker(const Task& task)
      : task_(task), scratch_(SparseScratch::of_thread()), first_tap_(task.fullest_tap()) {}

  // Begins the jobs of the target lines begin..end: finds the nonzero elements of the source lines that these read.
  void begin(int64_t begin, int64_t end) {
    lines_ = task_.source_lines(begin, end);
    begin_ = begin;
    end_ = end;
    pixels_ = (end - begin) * task_.width;
    const Images& source = task_.source;
    scratch_.rows.begin(static_cast<int64_t>(lines_.size()) * source.width, task_.depth);
    for (const int64_t line : lines_) {
      scratch_.rows.append(task_.sparse, source.line(line), source.width, source.pixel_stride, task_.line_mask(line));
    }
    taps_ = task_.taps(begin, end, lines_, first_tap_);
    is_dense_ = task_.is_dense_product() && scratch_.rows.are_dense();
  }

  // Computes one job: the columns of at most SPARSE_PANELS panels, from `first_panel` on.
  void multiply(int64_t first_panel) {
    const int64_t panels = std::min(SPARSE_PANELS, task_.panels() - first_panel);
    if (is_dense_) return multiply_densely(first_panel, panels);
    const int64_t width = panels * task_.gemm.panel_width, column = first_panel * task_.gemm.panel_width;
    const int64_t columns = std::min(width, task_.columns - column);
    char* const target = task_.target + (begin_ * task_.width * task_.columns + column) * task_.element_bytes;
    // Whole panels of float32 accumulate in the target itself, all others in scratch memory.
    const bool is_in_place = task_.element_bytes == sizeof(float) && columns == width;
    if (!is_in_place) grow(scratch_.sums, pixels_ * width);
    float* const sums = is_in_place ? reinterpret_cast<float*>(target) : scratch_.sums.data();
    const int64_t stride = is_in_place ? task_.columns : width;
    const float* const bias = task_.bias == nullptr ? nullptr : task_.bias + column;
    // If the first tap reaches every pixel, its product starts the sums; otherwise the bias, or zero, is written first.
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
      for (const Span& span : taps_[tap].spans) scratch_.runs.push_back(sparse_run(span, sums, stride));
      const SparsePanels packed{weights(taps_[tap], first_panel), task_.panel_bytes(), panels};
      const char* const next = tap + 1 < taps_.size() ? weights(taps_[tap + 1], first_panel) : nullptr;
      const SparseRows::Right right{packed, task_.row_bytes(), next, task_.is_transposed, columns};
      const bool is_first = tap == 0 && covers_all;
      scratch_.rows.multiply(task_.sparse, scratch_.runs, right, is_first, bias, scratch_.transposed);
    }
    if (is_in_place && std::isinf(task_.low) && std::isinf(task_.high)) return;
    const SparseSums finished{sums,      stride,     pixels_, columns,
                              task_.low, task_.high, target,  task_.columns * task_.element_bytes};
    task_.sparse.finish(&finished);
  }

 private:
  // The source pixels of a span, and their sums: `sums` has the job's first target pixel, `stride` floats a pixel.
  SparseRun sparse_run(const Span& span, float* sums, int64_t stride) const {
    const int64_t step = task_.from_step(), row = span.line * task_.source.width + span.from;
    return {task_.source.line(lines_[span.line]) + span.from * task_.source.pixel_stride,
            step * task_.source.pixel_stride,
            scratch_.rows.masks(row),
            step * scratch_.rows.words(),
            span.count,
            sums + span.to * stride,
            span.to_step * stride};
  }

  // The weights of a tap, from panel `panel` of the target's columns on; a transposed weight has a row per column.
  const char* weights(const Tap& tap, int64_t panel) const {
    const int64_t rows = panel * task_.gemm.panel_width * task_.row_bytes();
    return task_.weights + tap.index * task_.tap_bytes() + (task_.is_transposed ? rows : panel * task_.panel_bytes());
  }

  // `multiply` for a job with few zeros, by the dense micro-kernel.
  void multiply_densely(int64_t first_panel, int64_t panels) const {
    // All lines in one product if the source is contiguous, otherwise line by line.
    const int64_t lines_at_once = task_.source.is_contiguous(task_.depth * task_.element_bytes) ? end_ - begin_ : 1;
    for (int64_t panel = first_panel; panel < first_panel + panels; ++panel) {
      const int64_t column = panel * task_.gemm.panel_width;
      const char* const weights = task_.weights + panel * task_.panel_bytes();
      for (int64_t line = begin_; line < end_; line += lines_at_once) {
        GemmTile tile{};
        tile.first = {task_.source.line(line), weights, nullptr};
        tile.depth = task_.depth;
        tile.left_stride = task_.source.pixel_stride;
        tile.result = task_.target + (line * task_.width * task_.columns + column) * task_.element_bytes;
        tile.result_stride = task_.columns * task_.element_bytes;
        tile.columns = std::min(task_.gemm.panel_width, task_.columns - column);
        tile.bias = task_.bias == nullptr ? nullptr : task_.bias + column;
        tile.low = task_.low;
        tile.high = task_.high;
        const bool prefetches = line == begin_ && panel + 1 < task_.panels();
        multiply_rows(task_.gemm, tile, lines_at_once * task_.width,
                      prefetches ? weights + task_.panel_bytes() : nullptr);
      }
    }
  }

  const Task& task_;
  SparseScratch& scratch_;
  int64_t first_tap_, begin_ = 0, end_ = 0, pixels_ = 0;
  bool is_dense_ = false;
  // The source lines that the job reads, in ascending order.
  std::vector<int64_t> lines_;
  std::vector<Tap> taps_;
};

// Divides the target into jobs, each of them some lines times one group of panels, and computes them on all threads.
void run(const Task& task) {
  const int64_t lines = task.batch * task.height;
  const int64_t groups = (task.panels() + SPARSE_PANELS - 1) / SPARSE_PANELS;
  const int64_t min_lines = task.kernel[0] == 1 ? 1 : MIN_JOB_LINES;
  // Target pixels per source pixel of an input gradient.
  const int64_t ratio = task.is_gradient ? task.parameters.stride[0] * task.parameters.stride[1] : 1;
  const RowParts fitting(lines, std::max(min_lines, JOB_PIXELS * ratio / task.width));
  // More parts, by at most one per thread, until all threads get equally many jobs.
  const int64_t threads = thread_count();
  int64_t count = fitting.count;
  while (count * groups % threads != 0 && count < std::min(lines, fitting.count + threads)) ++count;
  const RowParts parts = RowParts::of(lines, count);
  in_parallel(parts.count * groups, [&](int64_t begin, int64_t end) {
    Worker worker(task);
    for (int64_t job = begin; job < end; ++job) {
      // The jobs of one part of the lines follow each other, so that its nonzero elements are found once.
      const int64_t part = job / groups;
      if (job == begin || job % groups == 0) worker.begin(parts.begin(part), parts.begin(part + 1));
      worker.multiply(job % groups * SPARSE_PANELS);
    }
    SparseScratch::of_thread().end();
  });
}

// Removes the stride along each axis where the kernel has one tap and no padding: the source pixels between two steps
// are never read, so the memory stride steps over them.
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
  const camlens::MicroKernels* const kernels = camlens::micro_kernels(static_cast<camlens::ElementType>(element));
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
