#include "gemm.h"

#include "../status.h"
#include "dispatch.h"
#include "parallel.h"
#include "row_parts.h"
#include "scratch.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace camlens {

namespace {

// Weights of at most this size stay in a core's cache while pixels pass by: each thread multiplies its share of the
// strips with all of them. Larger weights are read once per strip, and each thread takes its share of the panels.
constexpr int64_t RESIDENT_BYTES = 512 << 10;
// Bytes of input and result per strip: with resident weights (copied: the input is padded), and with larger weights.
constexpr int64_t SMALL_STRIP = 16 << 10, COPIED_STRIP = 128 << 10, LARGE_STRIP = 1 << 20;

// A convolution. One whose result pixels each read one input pixel is handled as a single line of all pixels.
struct Convolution {
  const GemmKernels& kernels;
  const char* weights;
  // Bytes of an element.
  int64_t bytes, outputs;
  // Of one tap.
  int64_t steps;
  int64_t kernel[2];
  ConvolutionParameters parameters;
  const char* input;
  int64_t images, height, width, pixel_bytes;
  // The height and width of the result.
  int64_t lines, columns;
  const float* bias;
  float low, high;
  char* result;
  // For the first pixel and output.
  GemmEpilogue epilogue;

  int64_t panels() const { return (outputs + kernels.panel_width - 1) / kernels.panel_width; }
  int64_t panel_bytes() const { return steps * kernels.panel_width * 4; }
  int64_t taps() const { return kernel[0] * kernel[1]; }
  const char* panel(int64_t tap, int64_t panel) const { return weights + (tap * panels() + panel) * panel_bytes(); }
  bool is_padded() const { return parameters.padding[0] > 0 || parameters.padding[1] > 0; }
  int64_t line_bytes() const { return (width + 2 * parameters.padding[1]) * pixel_bytes; }
  // Input lines that `count` lines of the result read.
  int64_t input_lines(int64_t count) const {
    return (count - 1) * parameters.stride[0] + (kernel[0] - 1) * parameters.dilation[0] + 1;
  }
  bool is_one_line() const { return lines == 1 && !is_padded(); }
  RowParts parts() const { return RowParts(columns, kernels.max_rows); }
  // Lines that are multiplied together. The pixels of two short lines fill the registers better.
  int64_t lines_at_once() const { return 2 * columns <= kernels.max_rows ? 2 : 1; }
};

// Lines begin..end of one image's result; or, if the result is one line, the parts begin..end of it.
struct Strip {
  int64_t image, begin, end;
};

class Worker {
 public:
  explicit Worker(const Convolution& convolution)
      : of_(convolution),
        is_one_line_(convolution.is_one_line()),
        lines_at_once_(is_one_line_ ? 1 : convolution.lines_at_once()),
        parts_(convolution.parts()),
        terms_(convolution.taps()) {}

  // Begins a strip. Copies its input if that is padded.
  void begin(const Strip& strip) {
    strip_ = strip;
    const char* const image = of_.input + strip.image * of_.height * of_.width * of_.pixel_bytes;
    first_line_ = image;
    if (is_one_line_) return;
    const int64_t first = strip.begin * of_.parameters.stride[0] - of_.parameters.padding[0];
    if (!of_.is_padded()) {
      first_line_ = image + first * of_.line_bytes();
      return;
    }
    const int64_t count = of_.input_lines(strip.end - strip.begin), line = of_.line_bytes();
    const int64_t margin = of_.parameters.padding[1] * of_.pixel_bytes;
    std::vector<char>& copied = scratch();
    grow(copied, count * line);
    first_line_ = copied.data();
    for (int64_t y = 0; y < count; ++y) {
      char* const to = copied.data() + y * line;
      if (first + y < 0 || first + y >= of_.height) {
        std::memset(to, 0, line);
        continue;
      }
      std::memset(to, 0, margin);
      std::memcpy(to + margin, image + (first + y) * of_.width * of_.pixel_bytes, line - 2 * margin);
      std::memset(to + line - margin, 0, margin);
    }
  }

  // Computes the outputs of one panel. With `prefetches`, prefetches the next panel meanwhile.
  void multiply(int64_t panel, bool prefetches) {
    const int64_t length = strip_.end - strip_.begin;
    const int64_t tiles = is_one_line_ ? length : (length + lines_at_once_ - 1) / lines_at_once_ * parts_.count;
    // One step of a tap is several cache lines of a panel. One pass over the steps prefetches one line per step.
    const int64_t lines_per_step = of_.kernels.panel_width * 4 / CACHE_LINE_BYTES;
    const int64_t passes = prefetches && panel + 1 < of_.panels() ? of_.taps() * lines_per_step : 0;
    int64_t line = is_one_line_ ? 0 : strip_.begin, part = is_one_line_ ? strip_.begin : 0, pass = 0;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t x = parts_.begin(part), lines = std::min(lines_at_once_, of_.lines - line);
      const int64_t last_pass = passes == 0 ? 0 : (tile + 1) * passes / tiles;
      for (int64_t row = 0, tap = 0; row < of_.kernel[0]; ++row) {
        for (int64_t column = 0; column < of_.kernel[1]; ++column, ++tap) {
          const char* const next = pass + tap < last_pass ? prefetched(panel + 1, pass + tap) : nullptr;
          terms_[tap] = {pixel(line, x, row, column), of_.panel(tap, panel), next};
        }
      }
      pass = last_pass;
      multiply_tile(panel, line, x, lines * (parts_.begin(part + 1) - x), lines);
      if (++part == parts_.count && !is_one_line_) {
        part = 0;
        line += lines_at_once_;
      }
    }
  }

  // Releases scratch memory beyond what is kept.
  static void end() {
    if (static_cast<int64_t>(scratch().size()) > SCRATCH_BYTES) scratch() = std::vector<char>();
  }

 private:
  static std::vector<char>& scratch() {
    static thread_local std::vector<char> scratch;
    return scratch;
  }

  // The cache lines of a panel that a pass prefetches.
  const char* prefetched(int64_t panel, int64_t pass) const {
    return of_.panel(pass % of_.taps(), panel) + pass / of_.taps() * of_.steps * CACHE_LINE_BYTES;
  }

  // The input pixel that a tap reads for the pixel (line, x) of the result.
  const char* pixel(int64_t line, int64_t x, int64_t row, int64_t column) const {
    const ConvolutionParameters& moves = of_.parameters;
    const int64_t y = (is_one_line_ ? 0 : line - strip_.begin) * moves.stride[0] + row * moves.dilation[0];
    return first_line_ + y * of_.line_bytes() + (x * moves.stride[1] + column * moves.dilation[1]) * of_.pixel_bytes;
  }

  // Multiplies `rows` pixels, which are those of `lines` lines from (line, x) on.
  void multiply_tile(int64_t panel, int64_t line, int64_t x, int64_t rows, int64_t lines) const {
    const int64_t column = panel * of_.kernels.panel_width;
    const int64_t pixel = (strip_.image * of_.lines + line) * of_.columns + x;
    const int64_t offset = (pixel * of_.outputs + column) * of_.bytes;
    GemmEpilogue epilogue = of_.epilogue;
    if (epilogue.addend != nullptr) epilogue.addend += offset;
    if (epilogue.gates != nullptr) epilogue.gates += pixel * epilogue.gates_stride + column / 8;
    GemmTile tile{};
    tile.first = terms_.front();
    tile.more = terms_.data() + 1;
    tile.more_count = of_.taps() - 1;
    tile.depth = of_.steps;
    tile.left_stride = of_.parameters.stride[1] * of_.pixel_bytes;
    tile.second_half = lines == 2 ? of_.parameters.stride[0] * of_.line_bytes() : 0;
    tile.result = of_.result + offset;
    tile.result_stride = of_.outputs * of_.bytes;
    tile.columns = std::min(of_.kernels.panel_width, of_.outputs - column);
    tile.bias = of_.bias == nullptr ? nullptr : of_.bias + column;
    tile.low = of_.low;
    tile.high = of_.high;
    tile.epilogue = epilogue;
    of_.kernels.multiply(&tile, rows);
  }

  const Convolution& of_;
  bool is_one_line_;
  int64_t lines_at_once_;
  RowParts parts_;
  Strip strip_{-1, 0, 0};
  const char* first_line_ = nullptr;
  // One per tap.
  std::vector<GemmTerm> terms_;
};

std::vector<Strip> strips_of(const Convolution& of, bool are_resident) {
  const int64_t threads = thread_count(), unit = of.is_one_line() ? 1 : of.lines_at_once();
  const int64_t all = of.is_one_line() ? of.parts().count : of.lines, units = (all + unit - 1) / unit;
  // Bytes of one line, or one part, of result and input.
  const int64_t pixels = of.is_one_line() ? of.kernels.max_rows : of.columns;
  const int64_t result = pixels * of.outputs * of.bytes;
  const int64_t input =
      of.is_one_line() ? pixels * of.parameters.stride[1] * of.pixel_bytes : of.parameters.stride[0] * of.line_bytes();
  const int64_t small = of.is_padded() ? COPIED_STRIP : SMALL_STRIP;
  const int64_t fitting = are_resident ? small / (input + result) : LARGE_STRIP / input;
  const int64_t most = std::max<int64_t>(1, fitting / unit);
  int64_t count = (units + most - 1) / most;
  // More strips until the threads' shares are equal, or so many that it does not matter.
  const auto is_even = [&](int64_t jobs) { return jobs % threads == 0 || jobs > 4 * threads; };
  while (count < units && !is_even(of.images * count * (are_resident ? 1 : of.panels()))) ++count;
  const RowParts parts = RowParts::of(units, count);
  std::vector<Strip> strips;
  for (int64_t image = 0; image < of.images; ++image) {
    for (int64_t part = 0; part < count; ++part) {
      strips.push_back({image, parts.begin(part) * unit, std::min(all, parts.begin(part + 1) * unit)});
    }
  }
  return strips;
}

void run(const Convolution& of) {
  const int64_t panels = of.panels(), tiles = of.images * of.lines * of.parts().count;
  const bool are_resident = of.taps() * panels * of.panel_bytes() <= RESIDENT_BYTES && tiles > panels;
  const std::vector<Strip> strips = strips_of(of, are_resident);
  in_parallel(static_cast<int64_t>(strips.size()) * panels, [&](int64_t begin, int64_t end) {
    Worker worker(of);
    const int64_t first = begin / panels;
    int64_t strip = first, panel = begin % panels;
    worker.begin(strips[strip]);
    for (int64_t job = begin; job < end; ++job) {
      worker.multiply(panel, job + 1 < end && (!are_resident || strip == first));
      if (++panel == panels && job + 1 < end) {
        panel = 0;
        worker.begin(strips[++strip]);
      }
    }
    Worker::end();
  });
}

Convolution convolution_of(const GemmConvolution& given, const GemmKernels& kernels) {
  const int64_t bytes = size_of(static_cast<ElementType>(given.element));
  const int64_t words = (given.outputs + MASK_BITS - 1) / MASK_BITS;
  Convolution of{kernels,
                 static_cast<const char*>(given.weight),
                 bytes,
                 given.outputs,
                 given.steps,
                 {given.kernel[0], given.kernel[1]},
                 given.parameters,
                 static_cast<const char*>(given.input),
                 given.batch,
                 given.height,
                 given.width,
                 given.inputs * bytes,
                 given.result_height,
                 given.result_width,
                 given.bias,
                 given.low,
                 given.high,
                 static_cast<char*>(given.result),
                 {static_cast<const char*>(given.addend), reinterpret_cast<char*>(given.gates),
                  words * static_cast<int64_t>(sizeof(uint64_t)), given.gate_low, given.gate_high}};
  const int64_t* const stride = given.parameters.stride;
  if (of.taps() == 1 && given.taps_per_step == 1 && !of.is_padded() && stride[0] == 1 && stride[1] == 1) {
    of.columns = of.width = of.images * of.height * of.width;
    of.images = of.height = of.lines = 1;
  }
  return of;
}

}  // namespace

}  // namespace camlens

extern "C" {

int camlens_gemm(const camlens::GemmConvolution* convolution, char** error) {
  using namespace camlens;
  return guarded(error, [&]() -> int {
    const MicroKernels& kernels = *micro_kernels(static_cast<ElementType>(convolution->element));
    run(convolution_of(*convolution, *kernels.gemm));
    return CAMLENS_OK;
  });
}
}
