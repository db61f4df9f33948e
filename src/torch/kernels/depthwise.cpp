#include "depthwise.h"

#include "../status.h"
#include "dispatch.h"
#include "parallel.h"
#include "row_parts.h"
#include "sparse_rows.h"

#include <algorithm>
#include <vector>

namespace camlens {

namespace {

int64_t floor_division(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

// How positions of the target read the source along one axis. A convolution's target reads source[t·stride + k·dilation
// - padding] for each tap k. Its gradient reads source[(t + padding - k·dilation) / stride] where the stride divides:
// with t = phase + j·stride the taps that count depend on the phase alone, and each reads source[j + offset].
class Axis {
 public:
  struct Tap {
    int64_t offset, k;
  };
  // Neighbouring positions of one phase that read through the same taps: j = begin..end.
  struct Segment {
    int64_t phase, begin, end;
    std::vector<Tap> taps;
  };

  Axis(const DepthwiseConvolution& of, int axis, int64_t source, int64_t target)
      : phases_(of.is_gradient ? of.parameters.stride[axis] : 1),
        step_(of.is_gradient ? 1 : of.parameters.stride[axis]) {
    const int64_t padding = of.parameters.padding[axis], dilation = of.parameters.dilation[axis];
    for (int64_t phase = 0; phase < std::min(phases_, target); ++phase) {
      const int64_t count = (target - phase + phases_ - 1) / phases_;
      std::vector<Tap> taps;
      for (int64_t k = 0; k < of.kernel[axis]; ++k) {
        const int64_t to = of.is_gradient ? phase + padding - k * dilation : k * dilation - padding;
        if (floor_division(to, phases_) * phases_ == to) taps.push_back({floor_division(to, phases_), k});
      }
      // A tap reads within the source for j in first(tap)..past(tap).
      const auto first = [&](const Tap& tap) {
        return std::clamp<int64_t>(-floor_division(tap.offset, step_), 0, count);
      };
      const auto past = [&](const Tap& tap) {
        return std::clamp<int64_t>(floor_division(source - 1 - tap.offset, step_) + 1, 0, count);
      };
      std::vector<int64_t> edges = {0, count};
      for (const Tap& tap : taps) edges.insert(edges.end(), {first(tap), past(tap)});
      std::sort(edges.begin(), edges.end());
      edges.erase(std::unique(edges.begin(), edges.end()), edges.end());
      for (size_t i = 0; i + 1 < edges.size(); ++i) {
        Segment segment{phase, edges[i], edges[i + 1], {}};
        for (const Tap& tap : taps) {
          if (first(tap) <= edges[i] && edges[i] < past(tap)) segment.taps.push_back(tap);
        }
        segments_.push_back(std::move(segment));
      }
    }
  }

  int64_t phases() const { return phases_; }
  int64_t step() const { return step_; }
  const std::vector<Segment>& segments() const { return segments_; }

  // The segment of a position of the target.
  const Segment& at(int64_t position) const {
    return *std::find_if(segments_.begin(), segments_.end(), [&](const Segment& segment) {
      const int64_t j = position / phases_;
      return position % phases_ == segment.phase && segment.begin <= j && j < segment.end;
    });
  }

 private:
  int64_t phases_, step_;
  std::vector<Segment> segments_;
};

// Bytes of the weights that stay in a core's first cache while a row is computed, about.
constexpr int64_t WEIGHT_BYTES = 32 << 10;

class Depthwise {
 public:
  Depthwise(const DepthwiseConvolution& of, const MicroKernels& kernels)
      : of_(of),
        kernels_(kernels),
        bytes_(size_of(static_cast<ElementType>(of.element))),
        blocks_(blocks(of)),
        rows_(of, 0, of.source_height, of.target_height),
        columns_(of, 1, of.source_width, of.target_width) {}

  void run() const {
    // Neighbouring jobs are neighbouring rows of the same channels, which read some of the same rows.
    const int64_t rows = of_.batch * of_.target_height;
    in_parallel(blocks_.count * rows, [&](int64_t begin, int64_t end) {
      std::vector<DepthwiseTap> taps;
      taps.reserve(of_.kernel[0] * of_.kernel[1]);
      for (int64_t job = begin; job < end; ++job) compute(job / rows, job % rows, taps);
    });
  }

 private:
  // The channels in equal parts, in words of gates, which are not shared among jobs.
  static RowParts blocks(const DepthwiseConvolution& of) {
    const int64_t word_bytes = of.kernel[0] * of.kernel[1] * MASK_BITS * static_cast<int64_t>(sizeof(float));
    return RowParts(mask_words(of.channels), std::max<int64_t>(1, WEIGHT_BYTES / word_bytes));
  }

  // Computes one row of the target, counted over the whole batch, in a block of channels.
  void compute(int64_t block, int64_t row, std::vector<DepthwiseTap>& taps) const {
    const int64_t all = of_.channels, channel = blocks_.begin(block) * MASK_BITS;
    const int64_t channels = std::min(blocks_.begin(block + 1) * MASK_BITS, all) - channel;
    const int64_t image = row / of_.target_height, y = row % of_.target_height;
    const Axis::Segment& lines = rows_.at(y);
    const int64_t line = image * of_.source_height + y / rows_.phases() * rows_.step();
    char* const to = static_cast<char*>(of_.target) + (row * of_.target_width * all + channel) * bytes_;
    for (const Axis::Segment& columns : columns_.segments()) {
      taps.clear();
      for (const Axis::Tap& down : lines.taps) {
        for (const Axis::Tap& across : columns.taps) {
          taps.push_back(
              {(down.offset * of_.source_width + across.offset) * all, (down.k * of_.kernel[1] + across.k) * all});
        }
      }
      const int64_t pixel = line * of_.source_width + columns.begin * columns_.step();
      const int64_t x = columns.phase + columns.begin * columns_.phases();
      DepthwiseTile tile;
      tile.source = static_cast<const char*>(of_.source) + (pixel * all + channel) * bytes_;
      tile.source_step = columns_.step() * all;
      tile.weight = of_.weight + channel;
      tile.taps = taps.data();
      tile.tap_count = static_cast<int64_t>(taps.size());
      tile.bias = of_.bias == nullptr ? nullptr : of_.bias + channel;
      tile.low = of_.low;
      tile.high = of_.high;
      tile.result = to + x * all * bytes_;
      tile.result_step = columns_.phases() * all;
      tile.pixels = columns.end - columns.begin;
      tile.channels = channels;
      kernels_.depthwise->compute(&tile);
    }
    if (of_.gates == nullptr) return;
    const int64_t words = mask_words(all);
    for (int64_t x = 0; x < of_.target_width; ++x) {
      kernels_.gates->find(to + x * all * bytes_, PixelRange{1, channels}, of_.gate_low, of_.gate_high,
                           of_.gates + (row * of_.target_width + x) * words + channel / MASK_BITS);
    }
  }

  const DepthwiseConvolution& of_;
  const MicroKernels& kernels_;
  int64_t bytes_;
  RowParts blocks_;
  Axis rows_, columns_;
};

}  // namespace

}  // namespace camlens

extern "C" {

int camlens_depthwise(const camlens::DepthwiseConvolution* convolution, char** error) {
  using namespace camlens;
  return guarded(error, [&]() -> int {
    Depthwise(*convolution, *micro_kernels(static_cast<ElementType>(convolution->element))).run();
    return CAMLENS_OK;
  });
}
}
