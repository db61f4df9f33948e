#include "sparse.h"

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
#include <vector>

namespace {

// About so many pixels of what comes are worked on at once; and lines of the result, where each needs its neighbours, at least.
constexpr int64_t CHUNK = 160, LINES = 4;

// Pictures whose pixels' channels lie next to each other, in memory so many bytes apart. Lines are counted through all pictures.
struct Pictures {
  const char* at;
  int64_t height, width;
  int64_t picture_apart, line_apart, pixel_apart;
  const char* line(int64_t line) const { return at + line / height * picture_apart + line % height * line_apart; }
  bool is_dense(int64_t pixel_bytes) const {
    return pixel_apart == pixel_bytes && line_apart == width * pixel_apart && picture_apart == height * line_apart;
  }
};

// Some pixels of a line that come to others: from which on, to which on, so many apart. `line` is one of those that are needed; where they
// come to is counted through the lines that are worked on.
struct Span {
  int64_t line, from, to, apart, count;
};

// What one of the places of a kernel adds.
struct Tap {
  int64_t place, pixels;
  std::vector<Span> spans;
};

// A convolution, or the way back through one.
struct Task {
  const CamlensProductTiles& dense;
  const CamlensSparseTiles& sparse;
  // [places of the kernel, panels, depth, width of a panel], each row as `CamlensPanels` says; or [places of the kernel, panels of depth,
  // columns, width of a panel].
  const char* weights;
  bool is_transposed;
  // Of whole panels, or null.
  const float* bias;
  float low, high;
  int64_t depth, columns, bytes;
  int64_t kernel[2];
  CamlensMoves moves;
  bool is_back;
  Pictures from;
  // Of what comes, a line after the other.
  CamlensGated gated;
  int64_t rows, height, width;
  char* to;

  int64_t panels() const { return (columns + dense.width - 1) / dense.width; }
  int64_t row_bytes() const { return dense.width * bytes; }
  // From a panel to the next one.
  int64_t panel_bytes() const { return (is_transposed ? columns : depth) * row_bytes(); }
  int64_t place_bytes() const { return (is_transposed ? (depth + dense.width - 1) / dense.width : panels()) * panel_bytes(); }

  // Which of so many pixels along an axis comes to `at` by a place of the kernel; -1 if none does.
  int64_t source(int axis, int64_t at, int64_t place) const {
    const int64_t count = axis == 0 ? from.height : from.width, stride = moves.stride[axis], reach = place * moves.dilation[axis];
    int64_t found = at * stride + reach - moves.padding[axis];
    if (is_back) {
      const int64_t moved = at + moves.padding[axis] - reach;
      found = moved >= 0 && moved % stride == 0 ? moved / stride : -1;
    }
    return found >= 0 && found < count ? found : -1;
  }

  // Which line comes to a line of the result by a line of the kernel; -1 if none does.
  int64_t source_line(int64_t line, int64_t place) const {
    const int64_t y = source(0, line % height, place);
    return y < 0 ? -1 : line / height * from.height + y;
  }

  // The lines that come to those from `begin` to `end`, in order.
  std::vector<int64_t> needed(int64_t begin, int64_t end) const {
    std::vector<int64_t> lines;
    for (int64_t line = begin; line < end; ++line) {
      for (int64_t place = 0; place < kernel[0]; ++place) {
        const int64_t found = source_line(line, place);
        if (found >= 0) lines.push_back(found);
      }
    }
    std::sort(lines.begin(), lines.end());
    lines.erase(std::unique(lines.begin(), lines.end()), lines.end());
    return lines;
  }

  // The place of the kernel by which something comes to as many pixels as by any: sums begin with it, whichever lines are worked on.
  int64_t fullest() const {
    int64_t fullest[2] = {0, 0};
    for (int axis = 0; axis < 2; ++axis) {
      int64_t most = 0;
      for (int64_t place = 0; place < kernel[axis]; ++place) {
        int64_t pixels = 0;
        for (int64_t at = 0; at < (axis == 0 ? height : width); ++at) pixels += source(axis, at, place) >= 0;
        if (pixels > most) most = pixels, fullest[axis] = place;
      }
    }
    return fullest[0] * kernel[1] + fullest[1];
  }

  // `lines` are those that are needed.
  std::vector<Tap> taps(int64_t begin, int64_t end, const std::vector<int64_t>& lines, int64_t first_place) const {
    std::vector<Tap> found;
    for (int64_t i = 0; i < kernel[0] * kernel[1]; ++i) {
      const int64_t place = i == 0 ? first_place : i <= first_place ? i - 1 : i;
      Tap tap{place, 0, {}};
      const Span within = span(place % kernel[1]);
      if (within.count == 0) continue;
      for (int64_t line = begin; line < end; ++line) {
        const int64_t found_line = source_line(line, place / kernel[1]);
        if (found_line < 0) continue;
        const int64_t from_line = std::lower_bound(lines.begin(), lines.end(), found_line) - lines.begin();
        tap.spans.push_back({from_line, within.from, (line - begin) * width + within.to, within.apart, within.count});
        tap.pixels += within.count;
      }
      if (tap.pixels > 0) found.push_back(std::move(tap));
    }
    return found;
  }

  // The pixels of a line to which something comes by a column of the kernel: at each step one further along what comes on the way back,
  // one further along the result on the way there.
  Span span(int64_t column) const {
    Span found{0, 0, 0, is_back ? moves.stride[1] : 1, 0};
    for (int64_t x = 0; x < width; ++x) {
      const int64_t source_x = source(1, x, column);
      if (source_x < 0) continue;
      if (found.count == 0) found.from = source_x, found.to = x;
      ++found.count;
    }
    return found;
  }
  int64_t from_apart() const { return is_back ? 1 : moves.stride[1]; }

  CamlensGated gated_line(int64_t line) const { return camlens_gated_from(gated, line * from.width, depth); }

  // Each pixel comes to its own place alone, and the weights lie as products need them.
  bool is_product() const {
    if (bytes != sizeof(float) || gated.gates != nullptr || is_transposed) return false;
    const auto are = [](const int64_t* numbers, int64_t value) { return numbers[0] == value && numbers[1] == value; };
    return are(kernel, 1) && are(moves.stride, 1) && are(moves.padding, 0);
  }
};

// What one thread does.
class Worker {
 public:
  explicit Worker(const Task& task) : of_(task), scratch_(SparseScratch::of_thread()), first_place_(task.fullest()) {}

  // The result's lines from `begin` to `end`.
  void take(int64_t begin, int64_t end) {
    lines_ = of_.needed(begin, end);
    begin_ = begin;
    end_ = end;
    pixels_ = (end - begin) * of_.width;
    scratch_.rows.begin(static_cast<int64_t>(lines_.size()) * of_.from.width, of_.depth);
    for (const int64_t line : lines_) scratch_.rows.take(of_.sparse, of_.from.line(line), of_.from.width, of_.from.pixel_apart, of_.gated_line(line));
    taps_ = of_.taps(begin, end, lines_, first_place_);
    is_dense_ = of_.is_product() && scratch_.rows.are_dense();
  }

  // The columns of some panels.
  void sum(int64_t first_panel) {
    const int64_t panels = std::min<int64_t>(CAMLENS_SPARSE_PANELS, of_.panels() - first_panel);
    if (is_dense_) return sum_densely(first_panel, panels);
    const int64_t width = panels * of_.dense.width, column = first_panel * of_.dense.width, columns = std::min(width, of_.columns - column);
    char* const to = of_.to + (begin_ * of_.width * of_.columns + column) * of_.bytes;
    // Whole panels of floats are summed where they belong.
    const bool is_in_place = of_.bytes == sizeof(float) && columns == width;
    if (!is_in_place) grow(scratch_.sums, pixels_ * width);
    float* const sums = is_in_place ? reinterpret_cast<float*>(to) : scratch_.sums.data();
    const int64_t apart = is_in_place ? of_.columns : width;
    const float* const bias = of_.bias == nullptr ? nullptr : of_.bias + column;
    const bool covers_all = !taps_.empty() && taps_.front().pixels == pixels_;
    if (!covers_all) {
      for (int64_t pixel = 0; pixel < pixels_; ++pixel) {
        if (bias == nullptr) {
          std::fill_n(sums + pixel * apart, width, 0.0f);
        } else {
          std::copy_n(bias, width, sums + pixel * apart);
        }
      }
    }
    for (size_t tap = 0; tap < taps_.size(); ++tap) {
      scratch_.runs.clear();
      for (const Span& span : taps_[tap].spans) {
        scratch_.runs.push_back(run(span, sums, apart));
      }
      const CamlensPanels with{weights(taps_[tap], first_panel), of_.panel_bytes(), panels};
      const char* const following = tap + 1 < taps_.size() ? weights(taps_[tap + 1], first_panel) : nullptr;
      const SparseRows::Right right{with, of_.row_bytes(), following, of_.is_transposed, columns};
      scratch_.rows.multiply(of_.sparse, scratch_.runs, right, tap == 0 && covers_all, bias, scratch_.transposed);
    }
    if (is_in_place && std::isinf(of_.low) && std::isinf(of_.high)) return;
    const CamlensSums finished{sums, apart, pixels_, columns, of_.low, of_.high, to, of_.columns * of_.bytes};
    of_.sparse.finish(&finished);
  }

 private:
  CamlensSparseRun run(const Span& span, float* sums, int64_t apart) const {
    const int64_t step = of_.from_apart(), row = span.line * of_.from.width + span.from;
    return {of_.from.line(lines_[span.line]) + span.from * of_.from.pixel_apart,
            step * of_.from.pixel_apart,
            scratch_.rows.masks(row),
            step * scratch_.rows.segments(),
            span.count,
            sums + span.to * apart,
            span.apart * apart};
  }

  const char* weights(const Tap& tap, int64_t panel) const {
    return of_.weights + tap.place * of_.place_bytes() + (of_.is_transposed ? panel * of_.dense.width * of_.row_bytes() : panel * of_.panel_bytes());
  }

  void sum_densely(int64_t first_panel, int64_t panels) const {
    // All lines at once, where they follow each other.
    const int64_t at_once = of_.from.is_dense(of_.depth * of_.bytes) ? end_ - begin_ : 1;
    for (int64_t panel = first_panel; panel < first_panel + panels; ++panel) {
      const int64_t column = panel * of_.dense.width;
      const char* const weights = of_.weights + panel * of_.panel_bytes();
      for (int64_t line = begin_; line < end_; line += at_once) {
        const CamlensProduct product{{of_.from.line(line), weights, nullptr},
                                     nullptr,
                                     0,
                                     of_.depth,
                                     of_.from.pixel_apart,
                                     0,
                                     of_.to + (line * of_.width * of_.columns + column) * of_.bytes,
                                     of_.columns * of_.bytes,
                                     std::min(of_.dense.width, of_.columns - column),
                                     of_.bias == nullptr ? nullptr : of_.bias + column,
                                     of_.low,
                                     of_.high,
                                     {}};
        const bool is_first = line == begin_ && panel + 1 < of_.panels();
        multiply_rows(of_.dense, product, at_once * of_.width, is_first ? weights + of_.panel_bytes() : nullptr);
      }
    }
  }

  const Task& of_;
  SparseScratch& scratch_;
  int64_t first_place_, begin_ = 0, end_ = 0, pixels_ = 0;
  bool is_dense_ = false;
  // Those that are needed.
  std::vector<int64_t> lines_;
  std::vector<Tap> taps_;
};

void run(const Task& task) {
  const int64_t lines = task.rows * task.height, groups = (task.panels() + CAMLENS_SPARSE_PANELS - 1) / CAMLENS_SPARSE_PANELS;
  const int64_t least = task.kernel[0] == 1 ? 1 : LINES, strides = task.is_back ? task.moves.stride[0] * task.moves.stride[1] : 1;
  const RowParts fitting(lines, std::max(least, CHUNK * strides / task.width));
  // As much for each thread.
  const int64_t threads = at::get_num_threads();
  int64_t count = fitting.count;
  while (count * groups % threads != 0 && count < std::min(lines, fitting.count + threads)) ++count;
  const RowParts chunks = RowParts::of(lines, count);
  in_parallel(chunks.count * groups, [&](int64_t begin, int64_t end) {
    Worker worker(task);
    for (int64_t job = begin; job < end; ++job) {
      const int64_t chunk = job / groups;
      if (job == begin || job % groups == 0) worker.take(chunks.begin(chunk), chunks.begin(chunk + 1));
      worker.sum(job % groups * CAMLENS_SPARSE_PANELS);
    }
    SparseScratch::of_thread().end();
  });
}

at::Tensor packed(const at::Tensor& weight, bool back) {
  TORCH_CHECK(weight.dim() == 4 && weight.numel() > 0 && weight.is_cpu(), "a weight [outputs, inputs, h, w] is expected, not ", weight.sizes());
  return camlens_in_sparse_panels(back ? weight.permute({2, 3, 0, 1}) : weight.permute({2, 3, 1, 0}));
}

// What is checked of a weight, and held while it is used. With `is_transposed` it lies as for the other way.
class Prepared {
 public:
  Prepared(const at::Tensor& weight, int64_t depth, int64_t columns, bool is_transposed)
      : tiles_(camlens_product_tiles_of(weight)), weight_(weight), depth_(depth), columns_(columns), is_transposed_(is_transposed) {
    const int64_t in_panels = is_transposed ? depth : columns, in_rows = is_transposed ? columns : depth;
    TORCH_CHECK(weight.dim() == 5 && weight.numel() > 0 && weight.is_contiguous() && weight.is_cpu() &&
                    weight.size(2) == (in_panels + tiles_.width - 1) / tiles_.width && weight.size(4) == tiles_.width,
                "a weight in panels for ", in_panels, " channels is expected, not ", weight.sizes());
    TORCH_CHECK(weight.size(3) == in_rows, "a weight for ", in_rows, " other channels is expected, not ", weight.sizes());
    TORCH_CHECK(!is_transposed || camlens_sparse_tiles(tiles_).transpose != nullptr, "a weight of ", weight.scalar_type(), " is not transposed");
  }

  at::IntArrayRef kernel() const { return weight_.sizes().slice(0, 2); }

  Task task(const at::Tensor& given, const at::Tensor& result, const CamlensMoves& moves, bool is_back) const {
    const int64_t bytes = weight_.element_size(), pixel = given.size(1) * bytes, line = given.size(3) * pixel;
    const Pictures from{static_cast<const char*>(given.const_data_ptr()), given.size(2), given.size(3), given.size(2) * line, line, pixel};
    return {tiles_,
            camlens_sparse_tiles(tiles_),
            static_cast<const char*>(weight_.const_data_ptr()),
            is_transposed_,
            nullptr,
            -INFINITY,
            INFINITY,
            depth_,
            columns_,
            bytes,
            {weight_.size(0), weight_.size(1)},
            moves,
            is_back,
            from,
            {nullptr, false},
            result.size(0),
            result.size(2),
            result.size(3),
            static_cast<char*>(result.data_ptr())};
  }

  at::Tensor whole(const at::Tensor& bias) const { return camlens_whole_bias(tiles_, bias, columns_); }

 private:
  const CamlensProductTiles& tiles_;
  at::Tensor weight_;
  int64_t depth_, columns_;
  bool is_transposed_;
};

// Where the kernel has one place along an axis, what lies between its steps is passed over.
void pass_over(Task& task) {
  for (int axis = 0; axis < 2; ++axis) {
    if (task.kernel[axis] != 1 || task.moves.padding[axis] != 0) continue;
    const int64_t stride = task.moves.stride[axis];
    (axis == 0 ? task.from.line_apart : task.from.pixel_apart) *= stride;
    int64_t& size = axis == 0 ? task.from.height : task.from.width;
    size = (size + stride - 1) / stride;
    task.moves.stride[axis] = 1;
  }
}

at::Tensor convolve(const at::Tensor& coming, const at::Tensor& weight, int64_t outputs, const at::Tensor* bias, const CamlensMoves& moves,
                    float low, float high) {
  TORCH_CHECK(coming.dim() == 4 && coming.is_cpu() && coming.scalar_type() == weight.scalar_type(), "an input [N, inputs, H, W] of ",
              weight.scalar_type(), " on the CPU is expected");
  const Prepared prepared(weight, coming.size(1), outputs, false);
  int64_t size[2];
  for (int axis = 0; axis < 2; ++axis) size[axis] = camlens_steps(coming.size(axis + 2), prepared.kernel()[axis], moves, axis);
  TORCH_CHECK(size[0] > 0 && size[1] > 0, "the input is smaller than the kernel: ", coming.sizes());
  const at::Tensor given = coming.contiguous(at::MemoryFormat::ChannelsLast);
  at::Tensor result = at::empty({given.size(0), outputs, size[0], size[1]}, given.options(), at::MemoryFormat::ChannelsLast);
  if (result.numel() == 0) return result;
  const at::Tensor shifts = bias == nullptr ? at::Tensor() : prepared.whole(*bias);
  Task task = prepared.task(given, result, moves, false);
  task.bias = bias == nullptr ? nullptr : shifts.const_data_ptr<float>();
  task.low = low;
  task.high = high;
  pass_over(task);
  run(task);
  return result;
}

at::Tensor input_gradient(const at::Tensor& coming, const at::Tensor* gates, bool guided, const at::Tensor& weight, bool is_transposed,
                          at::IntArrayRef size, const CamlensMoves& moves) {
  TORCH_CHECK(coming.dim() == 4, "a gradient [N, outputs, h, w] is expected, not ", coming.sizes());
  const Prepared prepared(weight, coming.size(1), size[1], is_transposed);
  // Its channels are those of the weight.
  camlens_check_gradient(coming, weight.scalar_type(), coming.size(1), prepared.kernel(), size, moves);
  const at::Tensor given = coming.contiguous(at::MemoryFormat::ChannelsLast);
  at::Tensor result = at::empty(size, given.options(), at::MemoryFormat::ChannelsLast);
  Task task = prepared.task(given, result, moves, true);
  task.gated = camlens_gated(gates, coming, guided);
  if (result.numel() > 0) run(task);
  return result;
}

}  // namespace

extern "C" {

int camlens_sparse_weight(const at::Tensor* weight, bool back, at::Tensor** result, char** error) {
  *result = nullptr;
  return guarded(error, [&]() -> int {
    const c10::AutoGradMode mode(false);
    return give(result, packed(*weight, back));
  });
}

int camlens_sparse_convolution(const at::Tensor* input, const at::Tensor* weight, int64_t outputs, const at::Tensor* bias,
                               const CamlensMoves* moves, double low, double high, at::Tensor** result, char** error) {
  *result = nullptr;
  return guarded(error, [&]() -> int {
    const c10::AutoGradMode mode(false);
    return give(result, convolve(*input, *weight, outputs, bias, *moves, static_cast<float>(low), static_cast<float>(high)));
  });
}

int camlens_sparse_input_gradient(const at::Tensor* gradient, const at::Tensor* gates, bool guided, const at::Tensor* weight,
                                  bool of_there, const int64_t* size, const CamlensMoves* moves, at::Tensor** result, char** error) {
  *result = nullptr;
  return guarded(error, [&]() -> int {
    const c10::AutoGradMode mode(false);
    return give(result, input_gradient(*gradient, gates, guided, *weight, of_there, at::IntArrayRef(size, 4), *moves));
  });
}
}
