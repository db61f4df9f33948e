#include "linear.h"

#include "../status.h"
#include "dispatch.h"
#include "parallel.h"
#include "row_parts.h"

#include <algorithm>
#include <vector>

namespace camlens {

namespace {

// Weights of at most this size stay in a core's cache while rows pass by. Larger weights are read once, and the rows
// again for each panel.
constexpr int64_t RESIDENT_BYTES = 512 << 10;
// Outputs per job with a row-major weight.
constexpr int64_t OUTPUTS_AT_ONCE = 16;

void multiply(const PackedLinear& linear, const GemmKernels& kernels) {
  const int64_t bytes = size_of(static_cast<ElementType>(linear.element)), width = kernels.panel_width;
  const int64_t panels = (linear.outputs + width - 1) / width, panel_bytes = linear.steps * width * 4;
  const RowParts parts(linear.rows, kernels.max_rows);
  const bool are_resident = panels * panel_bytes <= RESIDENT_BYTES && parts.count > panels;
  in_parallel(parts.count * panels, [&](int64_t begin, int64_t end) {
    int64_t panel = are_resident ? begin % panels : begin / parts.count;
    int64_t part = are_resident ? begin / panels : begin % parts.count;
    for (int64_t job = begin; job < end; ++job) {
      const int64_t column = panel * width;
      const char* const right = static_cast<const char*>(linear.weight) + panel * panel_bytes;
      const bool has_next = !are_resident && (panel + 1) * parts.count < end;
      GemmTile tile{};
      tile.first = {static_cast<const char*>(linear.input), right, nullptr};
      tile.depth = linear.steps;
      tile.left_stride = linear.steps * 4;
      tile.result = static_cast<char*>(linear.result) + column * bytes;
      tile.result_stride = linear.outputs * bytes;
      tile.columns = std::min(width, linear.outputs - column);
      tile.bias = linear.bias == nullptr ? nullptr : linear.bias + column;
      tile.low = linear.low;
      tile.high = linear.high;
      multiply_part(kernels, tile, parts, part, has_next ? right + panel_bytes : nullptr);
      int64_t& inner = are_resident ? panel : part;
      if (++inner == (are_resident ? panels : parts.count)) {
        inner = 0;
        ++(are_resident ? part : panel);
      }
    }
  });
}

void multiply_few_rows(const RowMajorLinear& linear, const GemmKernels& kernels) {
  const int64_t bytes = size_of(static_cast<ElementType>(linear.element));
  const RowParts parts(linear.outputs, OUTPUTS_AT_ONCE);
  in_parallel(parts.count, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = parts.begin(part);
      DotProducts products{};
      products.left = linear.input;
      products.right = static_cast<const char*>(linear.weight) + first * linear.inputs * bytes;
      products.rows = linear.rows;
      products.columns = parts.begin(part + 1) - first;
      products.depth = linear.inputs;
      products.bias = linear.bias == nullptr ? nullptr : linear.bias + first;
      products.result = static_cast<char*>(linear.result) + first * bytes;
      products.result_stride = linear.outputs * bytes;
      kernels.dot(&products);
    }
  });
}

void input_gradient(const RowMajorLinear& linear, const SparseKernels& kernels) {
  const int64_t outputs = linear.outputs, inputs = linear.inputs;
  // The nonzero elements of the gradient, row after row, and the end of each row.
  std::vector<int64_t> indices, ends;
  std::vector<float> factors;
  const float* const gradient = static_cast<const float*>(linear.input);
  for (int64_t row = 0; row < linear.rows; ++row) {
    for (int64_t output = 0; output < outputs; ++output) {
      if (gradient[row * outputs + output] == 0.0f) continue;
      indices.push_back(output);
      factors.push_back(gradient[row * outputs + output]);
    }
    ends.push_back(static_cast<int64_t>(indices.size()));
  }
  const int64_t bytes = size_of(static_cast<ElementType>(linear.element));
  const char* const weight = static_cast<const char*>(linear.weight);
  char* const result = static_cast<char*>(linear.result);
  in_parallel((inputs + SUM_COLUMNS - 1) / SUM_COLUMNS, [&](int64_t begin, int64_t end) {
    // Columns of the weight that are in the cache serve all rows.
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = part * SUM_COLUMNS, columns = std::min(SUM_COLUMNS, inputs - first);
      for (int64_t row = 0; row < linear.rows; ++row) {
        const int64_t start = row == 0 ? 0 : ends[row - 1];
        kernels.sum_rows(weight + first * bytes, inputs * bytes, indices.data() + start, factors.data() + start,
                         ends[row] - start, columns, result + (row * inputs + first) * bytes);
      }
    }
  });
}

}  // namespace

}  // namespace camlens

extern "C" {

int camlens_linear(const camlens::PackedLinear* linear, char** error) {
  using namespace camlens;
  return guarded(error, [&]() -> int {
    multiply(*linear, *micro_kernels(static_cast<ElementType>(linear->element))->gemm);
    return CAMLENS_OK;
  });
}

int camlens_linear_few_rows(const camlens::RowMajorLinear* linear, char** error) {
  using namespace camlens;
  return guarded(error, [&]() -> int {
    multiply_few_rows(*linear, *micro_kernels(static_cast<ElementType>(linear->element))->gemm);
    return CAMLENS_OK;
  });
}

int camlens_linear_input_gradient(const camlens::RowMajorLinear* linear, char** error) {
  using namespace camlens;
  return guarded(error, [&]() -> int {
    input_gradient(*linear, *micro_kernels(static_cast<ElementType>(linear->element))->sparse);
    return CAMLENS_OK;
  });
}
}
