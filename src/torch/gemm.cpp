#include "gemm.h"

#include "gate_tiles.h"
#include "gates.h"
#include "gradients.h"
#include "parallel.h"
#include "products.h"
#include "sparse_rows.h"
#include "status.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cstring>
#include <vector>

namespace {

// Weights of at most so many bytes stay in a core's cache while pixels pass by: each thread takes its part of them. Larger weights are read
// once for each strip, and each thread takes its part of those.
constexpr int64_t RESIDENT_BYTES = 512 << 10;
// What comes and goes at once with weights of the one kind and of the other.
constexpr int64_t SMALL_STRIP = 16 << 10, COPIED_STRIP = 128 << 10, LARGE_STRIP = 1 << 20;

// A convolution. Where each pixel comes to its own place alone, all are of one line.
struct Convolution {
  const CamlensProductTiles& tiles;
  // [places of the kernel, panels, steps, width of a panel], four bytes each.
  const char* weights;
  int64_t bytes, outputs;
  // Of a place. Those of a line may count as one.
  int64_t steps;
  int64_t kernel[2];
  CamlensMoves moves;
  const char* from;
  // Of what comes and of the result.
  int64_t pictures, height, width, pixel_bytes;
  int64_t lines, columns;
  // Whole panels long, or null.
  const float* bias;
  float low, high;
  char* to;
  // That of the first pixel and output.
  CamlensAfter after;

  int64_t panels() const { return (outputs + tiles.width - 1) / tiles.width; }
  int64_t panel_bytes() const { return steps * tiles.width * 4; }
  int64_t places() const { return kernel[0] * kernel[1]; }
  const char* panel(int64_t place, int64_t panel) const { return weights + (place * panels() + panel) * panel_bytes(); }
  bool is_padded() const { return moves.padding[0] > 0 || moves.padding[1] > 0; }
  int64_t line_bytes() const { return (width + 2 * moves.padding[1]) * pixel_bytes; }
  // The lines that so many of the result need.
  int64_t needed(int64_t count) const { return (count - 1) * moves.stride[0] + (kernel[0] - 1) * moves.dilation[0] + 1; }
  bool is_one_line() const { return lines == 1 && !is_padded(); }
  RowParts parts() const { return RowParts(columns, tiles.rows); }
  // Lines that are worked on together: the pixels of two may fill the registers better.
  int64_t at_once() const { return 2 * columns <= tiles.rows ? 2 : 1; }
};

// Some lines of a picture's result; or some parts of the only line.
struct Strip {
  int64_t picture, begin, end;
};

class Worker {
 public:
  explicit Worker(const Convolution& of)
      : of_(of), is_one_line_(of.is_one_line()), at_once_(is_one_line_ ? 1 : of.at_once()), parts_(of.parts()), places_(of.places()) {}

  void take(const Strip& strip) {
    strip_ = strip;
    const char* const picture = of_.from + strip.picture * of_.height * of_.width * of_.pixel_bytes;
    first_line_ = picture;
    if (is_one_line_) return;
    const int64_t first = strip.begin * of_.moves.stride[0] - of_.moves.padding[0];
    if (!of_.is_padded()) {
      first_line_ = picture + first * of_.line_bytes();
      return;
    }
    const int64_t count = of_.needed(strip.end - strip.begin), margin = of_.moves.padding[1] * of_.pixel_bytes, line = of_.line_bytes();
    std::vector<char>& copied = scratch();
    if (static_cast<int64_t>(copied.size()) < count * line) copied.resize(count * line);
    first_line_ = copied.data();
    for (int64_t y = 0; y < count; ++y) {
      char* const to = copied.data() + y * line;
      if (first + y < 0 || first + y >= of_.height) {
        std::memset(to, 0, line);
        continue;
      }
      std::memset(to, 0, margin);
      std::memcpy(to + margin, picture + (first + y) * of_.width * of_.pixel_bytes, line - 2 * margin);
      std::memset(to + line - margin, 0, margin);
    }
  }

  // The outputs of a panel. On the way, the following panel is fetched where `fetches`.
  void multiply(int64_t panel, bool fetches) {
    const int64_t tiles = is_one_line_ ? strip_.end - strip_.begin : (strip_.end - strip_.begin + at_once_ - 1) / at_once_ * parts_.count;
    // A place's step takes so many cache lines of a panel, each of which is fetched by another pass over the steps.
    const int64_t passes = fetches && panel + 1 < of_.panels() ? of_.places() * of_.tiles.width * 4 / CAMLENS_LINE_BYTES : 0;
    int64_t line = is_one_line_ ? 0 : strip_.begin, part = is_one_line_ ? strip_.begin : 0, pass = 0;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t x = parts_.begin(part), lines = std::min(at_once_, of_.lines - line);
      const int64_t last_pass = passes == 0 ? 0 : (tile + 1) * passes / tiles;
      for (int64_t y = 0, place = 0; y < of_.kernel[0]; ++y) {
        for (int64_t column = 0; column < of_.kernel[1]; ++column, ++place) {
          const bool is_fetching = pass + place < last_pass;
          places_[place] = {pixel(line, x, y, column), of_.panel(place, panel), is_fetching ? fetched(panel + 1, pass + place) : nullptr};
        }
      }
      pass = last_pass;
      multiply_tile(panel, line, x, lines * (parts_.begin(part + 1) - x), lines);
      if (++part == parts_.count && !is_one_line_) {
        part = 0;
        line += at_once_;
      }
    }
  }

  void end() {
    if (static_cast<int64_t>(scratch().size()) > CAMLENS_SCRATCH_BYTES) scratch() = std::vector<char>();
  }

 private:
  // Fresh pages would take longer than what is computed in them.
  static std::vector<char>& scratch() {
    static thread_local std::vector<char> scratch;
    return scratch;
  }

  const char* fetched(int64_t panel, int64_t pass) const {
    return of_.panel(pass % of_.places(), panel) + pass / of_.places() * of_.steps * CAMLENS_LINE_BYTES;
  }

  // What comes to a pixel of the result by a place of the kernel.
  const char* pixel(int64_t line, int64_t x, int64_t row, int64_t column) const {
    const int64_t y = (is_one_line_ ? 0 : line - strip_.begin) * of_.moves.stride[0] + row * of_.moves.dilation[0];
    return first_line_ + y * of_.line_bytes() + (x * of_.moves.stride[1] + column * of_.moves.dilation[1]) * of_.pixel_bytes;
  }

  void multiply_tile(int64_t panel, int64_t line, int64_t x, int64_t rows, int64_t lines) const {
    const int64_t column = panel * of_.tiles.width, first = (strip_.picture * of_.lines + line) * of_.columns + x;
    const int64_t to = (first * of_.outputs + column) * of_.bytes;
    CamlensAfter after = of_.after;
    if (after.other != nullptr) after.other += to;
    if (after.gates != nullptr) after.gates += first * after.gates_apart + column / 8;
    const CamlensProduct product{places_.front(),
                                 places_.data() + 1,
                                 of_.places() - 1,
                                 of_.steps,
                                 of_.moves.stride[1] * of_.pixel_bytes,
                                 lines == 2 ? of_.moves.stride[0] * of_.line_bytes() : 0,
                                 of_.to + to,
                                 of_.outputs * of_.bytes,
                                 std::min(of_.tiles.width, of_.outputs - column),
                                 of_.bias == nullptr ? nullptr : of_.bias + column,
                                 of_.low,
                                 of_.high,
                                 after};
    of_.tiles.multiply(&product, rows);
  }

  const Convolution& of_;
  bool is_one_line_;
  int64_t at_once_;
  RowParts parts_;
  Strip strip_{-1, 0, 0};
  const char* first_line_ = nullptr;
  std::vector<CamlensPlace> places_;
};

std::vector<Strip> strips_of(const Convolution& of, bool are_resident) {
  const int64_t threads = at::get_num_threads(), unit = of.is_one_line() ? 1 : of.at_once();
  const int64_t all = of.is_one_line() ? of.parts().count : of.lines, units = (all + unit - 1) / unit;
  const int64_t pixels = of.is_one_line() ? of.tiles.rows : of.columns, result = pixels * of.outputs * of.bytes;
  const int64_t coming = of.is_one_line() ? pixels * of.moves.stride[1] * of.pixel_bytes : of.moves.stride[0] * of.line_bytes();
  const int64_t fitting = are_resident ? (of.is_padded() ? COPIED_STRIP : SMALL_STRIP) / (coming + result) : LARGE_STRIP / coming;
  const int64_t most = std::max<int64_t>(1, fitting / unit);
  int64_t count = (units + most - 1) / most;
  // As much for each thread, or so little that it does not matter.
  const auto is_even = [&](int64_t jobs) { return jobs % threads == 0 || jobs > 4 * threads; };
  while (count < units && !is_even(of.pictures * count * (are_resident ? 1 : of.panels()))) ++count;
  const RowParts parts = RowParts::of(units, count);
  std::vector<Strip> strips;
  for (int64_t picture = 0; picture < of.pictures; ++picture) {
    for (int64_t part = 0; part < count; ++part) {
      strips.push_back({picture, parts.begin(part) * unit, std::min(all, parts.begin(part + 1) * unit)});
    }
  }
  return strips;
}

void run(const Convolution& of) {
  const int64_t panels = of.panels(), tiles = of.pictures * of.lines * of.parts().count;
  const bool are_resident = of.places() * panels * of.panel_bytes() <= RESIDENT_BYTES && tiles > panels;
  const std::vector<Strip> strips = strips_of(of, are_resident);
  in_parallel(static_cast<int64_t>(strips.size()) * panels, [&](int64_t begin, int64_t end) {
    Worker worker(of);
    const int64_t first = begin / panels;
    int64_t strip = first, panel = begin % panels;
    worker.take(strips[strip]);
    for (int64_t job = begin; job < end; ++job) {
      worker.multiply(panel, job + 1 < end && (!are_resident || strip == first));
      if (++panel == panels && job + 1 < end) {
        panel = 0;
        worker.take(strips[++strip]);
      }
    }
    worker.end();
  });
}

at::Tensor packed(const at::Tensor& weight, bool by_lines) {
  TORCH_CHECK(weight.dim() == 4 && weight.numel() > 0 && weight.is_cpu(), "a weight [outputs, inputs, h, w] is expected, not ", weight.sizes());
  const at::Tensor right = weight.permute({2, 3, 1, 0});
  return camlens_in_panels(by_lines ? right.flatten(1, 2).unsqueeze(1) : right);
}

at::Tensor convolve(const at::Tensor& given, const at::Tensor& weight, int64_t line, int64_t outputs, const CamlensMoves& moves,
                    const at::Tensor* bias, const at::Tensor* other, double low, double high, at::Tensor* gates) {
  const CamlensProductTiles& tiles = camlens_product_tiles_of(weight);
  const int64_t bytes = weight.element_size(), numbers = 4 / bytes;
  TORCH_CHECK(weight.dim() == (numbers == 1 ? 5 : 6) && weight.numel() > 0 && weight.is_contiguous() && weight.is_cpu() &&
                  weight.size(2) == (outputs + tiles.width - 1) / tiles.width && weight.size(4) == tiles.width &&
                  (numbers == 1 || weight.size(5) == numbers),
              "a weight in panels for ", outputs, " outputs is expected, not ", weight.sizes());
  TORCH_CHECK(given.dim() == 4 && given.is_cpu() && given.scalar_type() == weight.scalar_type(), "an input [N, inputs, H, W] of ",
              weight.scalar_type(), " on the CPU is expected");
  TORCH_CHECK(line == 1 || (line > 1 && weight.size(1) == 1 && moves.dilation[1] == 1), "a line of places that touch is expected");
  const int64_t inputs = weight.size(3) * numbers / line;
  TORCH_CHECK(given.size(1) == inputs && inputs * line == weight.size(3) * numbers, "the input has ", given.size(1), " channels, the weight ", inputs);
  const int64_t size[2] = {camlens_steps(given.size(2), weight.size(0), moves, 0), camlens_steps(given.size(3), weight.size(1) * line, moves, 1)};
  TORCH_CHECK(size[0] > 0 && size[1] > 0, "the input is smaller than the kernel: ", given.sizes());
  const at::Tensor input = given.contiguous(at::MemoryFormat::ChannelsLast);
  at::Tensor result = at::empty({input.size(0), outputs, size[0], size[1]}, input.options(), at::MemoryFormat::ChannelsLast);
  CamlensAfter after{};
  at::Tensor added;
  if (other != nullptr) {
    TORCH_CHECK(other->sizes() == result.sizes() && other->scalar_type() == result.scalar_type() && other->is_cpu(), "what is added has shape ",
                other->sizes(), " and type ", other->scalar_type(), ", the result ", result.sizes(), " and ", result.scalar_type());
    added = other->contiguous(at::MemoryFormat::ChannelsLast);
    after.other = static_cast<const char*>(added.const_data_ptr());
  }
  if (gates != nullptr) {
    *gates = camlens_gates_for(result);
    // Of the last word, some bytes may have no channel.
    if (outputs % CAMLENS_GATE_WORD != 0) gates->zero_();
    after.gates = static_cast<char*>(gates->data_ptr());
    after.gates_apart = gates->size(3) * gates->element_size();
    after.low = camlens_gate_bound(result, low);
    after.high = camlens_gate_bound(result, high);
  }
  if (result.numel() == 0) return result;
  const at::Tensor shifts = bias == nullptr ? at::Tensor() : camlens_whole_bias(tiles, *bias, outputs);
  Convolution of{tiles,
                 static_cast<const char*>(weight.const_data_ptr()),
                 bytes,
                 outputs,
                 weight.size(3),
                 {weight.size(0), weight.size(1)},
                 moves,
                 static_cast<const char*>(input.const_data_ptr()),
                 input.size(0),
                 input.size(2),
                 input.size(3),
                 inputs * bytes,
                 size[0],
                 size[1],
                 bias == nullptr ? nullptr : shifts.const_data_ptr<float>(),
                 static_cast<float>(low),
                 static_cast<float>(high),
                 static_cast<char*>(result.data_ptr()),
                 after};
  if (of.places() == 1 && line == 1 && !of.is_padded() && moves.stride[0] == 1 && moves.stride[1] == 1) {
    of.columns = of.width = of.pictures * of.height * of.width;
    of.pictures = of.height = of.lines = 1;
  }
  run(of);
  return result;
}

}  // namespace

extern "C" {

int camlens_gemm_weight(const at::Tensor* weight, bool by_lines, at::Tensor** result, char** error) {
  *result = nullptr;
  return guarded(error, [&]() -> int {
    const c10::AutoGradMode mode(false);
    return give(result, packed(*weight, by_lines));
  });
}

int camlens_gemm(const at::Tensor* input, const at::Tensor* weight, int64_t line, int64_t outputs, const CamlensMoves* moves,
                 const at::Tensor* bias, const at::Tensor* other, double low, double high, at::Tensor** result, at::Tensor** gates, char** error) {
  *result = nullptr;
  if (gates != nullptr) *gates = nullptr;
  return guarded(error, [&]() -> int {
    const c10::AutoGradMode mode(false);
    at::Tensor found;
    const int status =
        give(result, convolve(*input, *weight, line, outputs, *moves, bias, other, low, high, gates == nullptr ? nullptr : &found));
    if (gates != nullptr) give(gates, found);
    return status;
  });
}
}
