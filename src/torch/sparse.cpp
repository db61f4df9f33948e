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

// About so many pixels of a gradient are worked on at once.
constexpr int64_t CHUNK = 160, LINES = 4;

struct Size {
  int64_t height, width;
};

// Some pixels of a line that something comes to: from which on, to which on, so many apart. Counted from the first of the lines that are
// worked on.
struct Span {
  int64_t from, to, apart, count;
};

// What one of the places of a kernel adds.
struct Tap {
  int64_t place, pixels;
  std::vector<Span> spans;
};

struct Gradient {
  const CamlensProductTiles& dense;
  const CamlensSparseTiles& sparse;
  const char* given;
  const char* weights;
  char* to;
  int64_t rows, depth, columns, bytes;
  int64_t kernel[2];
  CamlensMoves moves;
  Size from, result;

  int64_t panels() const { return (columns + dense.width - 1) / dense.width; }
  int64_t panel_bytes() const { return depth * dense.width * 4; }

  // From where a place of the kernel brings something to `at` along an axis of so many pixels; -1 from nowhere.
  int64_t source(int axis, int64_t at, int64_t place, int64_t count) const {
    const int64_t moved = at + moves.padding[axis] - place * moves.dilation[axis];
    return moved >= 0 && moved % moves.stride[axis] == 0 && moved / moves.stride[axis] < count ? moved / moves.stride[axis] : -1;
  }

  // The lines that are needed for the result's lines from `begin` to `end`.
  std::pair<int64_t, int64_t> needed(int64_t begin, int64_t end) const {
    int64_t first = rows * from.height, last = -1;
    for (int64_t line = begin; line < end; ++line) {
      for (int64_t place = 0; place < kernel[0]; ++place) {
        const int64_t y = source(0, line % result.height, place, from.height);
        if (y < 0) continue;
        first = std::min(first, line / result.height * from.height + y);
        last = std::max(last, line / result.height * from.height + y);
      }
    }
    return {first, last + 1};
  }

  // The place of the kernel that brings something to as many pixels as any: sums begin with it, whichever lines are worked on.
  int64_t fullest() const {
    int64_t fullest[2] = {0, 0};
    for (int axis = 0; axis < 2; ++axis) {
      const int64_t size = axis == 0 ? result.height : result.width, count = axis == 0 ? from.height : from.width;
      int64_t most = 0;
      for (int64_t place = 0; place < kernel[axis]; ++place) {
        int64_t pixels = 0;
        for (int64_t at = 0; at < size; ++at) pixels += source(axis, at, place, count) >= 0;
        if (pixels > most) most = pixels, fullest[axis] = place;
      }
    }
    return fullest[0] * kernel[1] + fullest[1];
  }

  std::vector<Tap> taps(int64_t begin, int64_t end, int64_t first_line, int64_t first_place) const {
    std::vector<Tap> found;
    for (int64_t i = 0; i < kernel[0] * kernel[1]; ++i) {
      const int64_t place = i == 0 ? first_place : i <= first_place ? i - 1 : i;
      Tap tap{place, 0, {}};
      const Span within = span(place % kernel[1]);
      if (within.count == 0) continue;
      for (int64_t line = begin; line < end; ++line) {
        const int64_t y = source(0, line % result.height, place / kernel[1], from.height);
        if (y < 0) continue;
        const int64_t from_line = line / result.height * from.height + y - first_line;
        tap.spans.push_back({from_line * from.width + within.from, (line - begin) * result.width + within.to, within.apart, within.count});
        tap.pixels += within.count;
      }
      if (tap.pixels > 0) found.push_back(std::move(tap));
    }
    return found;
  }

  // The pixels of a line that a column of the kernel brings something to.
  Span span(int64_t column) const {
    Span found{0, 0, moves.stride[1], 0};
    for (int64_t x = 0; x < result.width; ++x) {
      const int64_t source_x = source(1, x, column, from.width);
      if (source_x < 0) continue;
      if (found.count == 0) found.from = source_x, found.to = x;
      ++found.count;
    }
    return found;
  }

  bool is_product() const {
    const auto are = [](const int64_t* numbers, int64_t value) { return numbers[0] == value && numbers[1] == value; };
    return are(kernel, 1) && are(moves.stride, 1) && are(moves.padding, 0);
  }
};

// What a thread works in, the same memory at each call: fresh pages would take longer than what is computed in them.
struct Scratch {
  SparseRows rows;
  std::vector<float> sums;
  std::vector<CamlensSparseRun> runs;
  static Scratch& of_thread() {
    static thread_local Scratch scratch;
    return scratch;
  }
};

// What one thread does.
class Worker {
 public:
  explicit Worker(const Gradient& gradient) : of_(gradient), scratch_(Scratch::of_thread()), first_place_(gradient.fullest()) {}

  // The result's lines from `begin` to `end`.
  void take(int64_t begin, int64_t end) {
    const auto [first, last] = of_.needed(begin, end);
    first_ = begin * of_.result.width;
    pixels_ = (end - begin) * of_.result.width;
    const int64_t given = std::max<int64_t>(last - first, 0) * of_.from.width;
    if (given > 0) scratch_.rows.take(of_.sparse, of_.given + first * of_.from.width * of_.depth * 4, given, of_.depth);
    taps_ = of_.taps(begin, end, first, first_place_);
    is_dense_ = of_.is_product() && scratch_.rows.are_dense();
  }

  // The columns of some panels.
  void sum(int64_t first_panel) {
    const int64_t panels = std::min<int64_t>(CAMLENS_SPARSE_PANELS, of_.panels() - first_panel);
    if (is_dense_) return sum_densely(first_panel, panels);
    const int64_t width = panels * of_.dense.width, column = first_panel * of_.dense.width, columns = std::min(width, of_.columns - column);
    char* const to = of_.to + (first_ * of_.columns + column) * of_.bytes;
    // Whole panels of floats are summed where they belong.
    const bool is_in_place = of_.bytes == sizeof(float) && columns == width;
    if (!is_in_place) grow(scratch_.sums, pixels_ * width);
    float* const sums = is_in_place ? reinterpret_cast<float*>(to) : scratch_.sums.data();
    const int64_t apart = is_in_place ? of_.columns : width;
    const bool covers_all = !taps_.empty() && taps_.front().pixels == pixels_;
    if (!covers_all) {
      for (int64_t pixel = 0; pixel < pixels_; ++pixel) std::fill_n(sums + pixel * apart, width, 0.0f);
    }
    for (size_t tap = 0; tap < taps_.size(); ++tap) {
      scratch_.runs.clear();
      for (const Span& span : taps_[tap].spans) {
        scratch_.runs.push_back({span.from, span.count, sums + span.to * apart, span.apart * apart});
      }
      const CamlensPanels with{weights(taps_[tap], first_panel), of_.panel_bytes(), panels};
      const char* const following = tap + 1 < taps_.size() ? weights(taps_[tap + 1], first_panel) : nullptr;
      scratch_.rows.multiply(of_.sparse, scratch_.runs, with, of_.dense.width * 4, tap == 0 && covers_all, following);
    }
    if (is_in_place) return;
    for (int64_t pixel = 0; pixel < pixels_; ++pixel) {
      of_.sparse.finish(sums + pixel * width, columns, -INFINITY, INFINITY, to + pixel * of_.columns * of_.bytes);
    }
  }

 private:
  const char* weights(const Tap& tap, int64_t panel) const { return of_.weights + (tap.place * of_.panels() + panel) * of_.panel_bytes(); }

  void sum_densely(int64_t first_panel, int64_t panels) const {
    for (int64_t panel = first_panel; panel < first_panel + panels; ++panel) {
      const int64_t column = panel * of_.dense.width;
      const char* const weights = of_.weights + panel * of_.panel_bytes();
      const CamlensProduct product{of_.given + first_ * of_.depth * 4,
                                   of_.depth * 4,
                                   of_.depth,
                                   weights,
                                   of_.to + (first_ * of_.columns + column) * of_.bytes,
                                   of_.columns * of_.bytes,
                                   std::min(of_.dense.width, of_.columns - column),
                                   nullptr,
                                   -INFINITY,
                                   INFINITY,
                                   nullptr};
      const char* const following = panel + 1 < of_.panels() ? weights + of_.panel_bytes() : nullptr;
      multiply_rows(of_.dense, product, pixels_, following);
    }
  }

  const Gradient& of_;
  Scratch& scratch_;
  int64_t first_place_, first_ = 0, pixels_ = 0;
  bool is_dense_ = false;
  std::vector<Tap> taps_;
};

void run(const Gradient& gradient) {
  const int64_t lines = gradient.rows * gradient.result.height;
  const int64_t groups = (gradient.panels() + CAMLENS_SPARSE_PANELS - 1) / CAMLENS_SPARSE_PANELS;
  // Some lines more than one are worked on, where each needs its neighbours.
  const int64_t least = gradient.kernel[0] == 1 ? 1 : LINES, strides = gradient.moves.stride[0] * gradient.moves.stride[1];
  const RowParts fitting(lines, std::max(least, CHUNK * strides / gradient.result.width));
  // As much for each thread.
  const int64_t threads = at::get_num_threads();
  int64_t count = fitting.count;
  while (count * groups % threads != 0 && count < std::min(lines, fitting.count + threads)) ++count;
  const RowParts chunks = RowParts::of(lines, count);
  in_parallel(chunks.count * groups, [&](int64_t begin, int64_t end) {
    Worker worker(gradient);
    for (int64_t job = begin; job < end; ++job) {
      const int64_t chunk = job / groups;
      if (job == begin || job % groups == 0) worker.take(chunks.begin(chunk), chunks.begin(chunk + 1));
      worker.sum(job % groups * CAMLENS_SPARSE_PANELS);
    }
  });
}

at::Tensor packed(const at::Tensor& weight) {
  TORCH_CHECK(weight.dim() == 4 && weight.numel() > 0 && weight.is_cpu(), "a weight [outputs, inputs, h, w] is expected, not ", weight.sizes());
  return camlens_in_panels(weight.permute({2, 3, 0, 1}));
}

at::Tensor input_gradient(const at::Tensor& coming, const at::Tensor& weight, at::IntArrayRef size, const CamlensMoves& moves) {
  const int64_t inputs = size[1];
  const CamlensProductTiles& tiles = camlens_product_tiles_of(weight);
  const int64_t numbers = 4 / static_cast<int64_t>(weight.element_size());
  TORCH_CHECK(weight.dim() == (numbers == 1 ? 5 : 6) && weight.numel() > 0 && weight.is_contiguous() && weight.is_cpu() &&
                  weight.size(2) == (inputs + tiles.width - 1) / tiles.width && weight.size(4) == tiles.width &&
                  (numbers == 1 || weight.size(5) == numbers),
              "a weight in panels for ", inputs, " inputs is expected, not ", weight.sizes());
  const int64_t outputs = weight.size(3) * numbers;
  camlens_check_gradient(coming, weight.scalar_type(), outputs, {weight.size(0), weight.size(1)}, size, moves);
  const at::Tensor given = coming.contiguous(at::MemoryFormat::ChannelsLast);
  at::Tensor result = at::empty(size, given.options(), at::MemoryFormat::ChannelsLast);
  const int64_t bytes = given.element_size();
  if (result.numel() == 0) return result;
  run(Gradient{tiles,
               camlens_sparse_tiles(tiles),
               static_cast<const char*>(given.const_data_ptr()),
               static_cast<const char*>(weight.const_data_ptr()),
               static_cast<char*>(result.data_ptr()),
               given.size(0),
               weight.size(3),
               inputs,
               bytes,
               {weight.size(0), weight.size(1)},
               moves,
               {given.size(2), given.size(3)},
               {size[2], size[3]}});
  return result;
}

}  // namespace

extern "C" {

int camlens_sparse_weight(const at::Tensor* weight, at::Tensor** result, char** error) {
  *result = nullptr;
  return guarded(error, [&]() -> int {
    const c10::AutoGradMode mode(false);
    return give(result, packed(*weight));
  });
}

int camlens_sparse_input_gradient(const at::Tensor* gradient, const at::Tensor* weight, const int64_t* size, const CamlensMoves* moves,
                                  at::Tensor** result, char** error) {
  *result = nullptr;
  return guarded(error, [&]() -> int {
    const c10::AutoGradMode mode(false);
    return give(result, input_gradient(*gradient, *weight, at::IntArrayRef(size, 4), *moves));
  });
}
}
