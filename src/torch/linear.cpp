#include "linear.h"

#include "parallel.h"
#include "products.h"
#include "sparse_rows.h"
#include "status.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <vector>

namespace {

// Weights of at most so many bytes stay in a core's cache while rows pass by; larger ones are read once, and the rows again for each
// of their panels.
constexpr int64_t RESIDENT_BYTES = 512 << 10;
// Of a weight that is read as it is.
constexpr int64_t OUTPUTS_AT_ONCE = 16;

// What each row of a matrix is multiplied with: numbers of so many bytes, in steps of four.
struct Weights {
  const CamlensProductTiles& tiles;
  const char* panels;
  int64_t bytes, depth, columns;
  // Whole panels long, or null.
  const float* bias;
  float low, high;
  int64_t panel_count() const { return (columns + tiles.width - 1) / tiles.width; }
  int64_t panel_bytes() const { return depth * tiles.width * 4; }
};

void multiply(const void* left, int64_t rows, const Weights& weights, void* to) {
  if (rows == 0) return;
  const int64_t panels = weights.panel_count(), width = weights.tiles.width;
  const RowParts parts(rows, weights.tiles.rows);
  const bool are_resident = panels * weights.panel_bytes() <= RESIDENT_BYTES && parts.count > panels;
  in_parallel(parts.count * panels, [&](int64_t begin, int64_t end) {
    int64_t panel = are_resident ? begin % panels : begin / parts.count, part = are_resident ? begin / panels : begin % parts.count;
    for (int64_t job = begin; job < end; ++job) {
      const int64_t column = panel * width;
      const char* const right = weights.panels + panel * weights.panel_bytes();
      const bool has_following = !are_resident && (panel + 1) * parts.count < end;
      const CamlensProduct product{{static_cast<const char*>(left), right, nullptr},
                                   nullptr,
                                   0,
                                   weights.depth,
                                   weights.depth * 4,
                                   0,
                                   static_cast<char*>(to) + column * weights.bytes,
                                   weights.columns * weights.bytes,
                                   std::min(width, weights.columns - column),
                                   weights.bias == nullptr ? nullptr : weights.bias + column,
                                   weights.low,
                                   weights.high,
                                   {}};
      multiply_part(weights.tiles, product, parts, part, has_following ? right + weights.panel_bytes() : nullptr);
      int64_t& inner = are_resident ? panel : part;
      if (++inner == (are_resident ? panels : parts.count)) {
        inner = 0;
        ++(are_resident ? part : panel);
      }
    }
  });
}

// What is checked of a weight and a bias, and held while they are used.
class Prepared {
 public:
  Prepared(const at::Tensor& weight, int64_t outputs, const at::Tensor* bias, double low, double high)
      : tiles_(&camlens_product_tiles_of(weight)),
        low_(static_cast<float>(low)),
        high_(static_cast<float>(high)),
        outputs_(outputs),
        weight_(weight) {
    const int64_t panels = (outputs + tiles_->width - 1) / tiles_->width, numbers = numbers_of_step();
    TORCH_CHECK(weight.dim() == (numbers == 1 ? 3 : 4) && weight.numel() > 0 && weight.size(0) == panels && weight.size(2) == tiles_->width &&
                    (numbers == 1 || weight.size(3) == numbers) && weight.is_contiguous() && weight.is_cpu(),
                "a weight in panels for ", outputs, " outputs is expected, not ", weight.sizes());
    if (bias != nullptr) bias_ = camlens_whole_bias(*tiles_, *bias, outputs);
  }

  int64_t inputs() const { return weight_.size(1) * numbers_of_step(); }
  int64_t outputs() const { return outputs_; }

  void check(const at::Tensor& input) const {
    TORCH_CHECK(input.is_cpu() && input.scalar_type() == weight_.scalar_type(), "an input of ", weight_.scalar_type(),
                " on the CPU is expected");
    TORCH_CHECK(input.size(-1) == inputs(), "the input has ", input.size(-1), " channels, the weight ", inputs());
  }

  void multiply(const at::Tensor& input, const at::Tensor& result) const {
    const float* const bias = bias_.defined() ? bias_.const_data_ptr<float>() : nullptr;
    const char* const panels = static_cast<const char*>(weight_.const_data_ptr());
    const Weights weights{*tiles_, panels, static_cast<int64_t>(weight_.element_size()), weight_.size(1), outputs_, bias, low_, high_};
    ::multiply(input.const_data_ptr(), input.numel() / inputs(), weights, result.data_ptr());
  }

 private:
  int64_t numbers_of_step() const { return 4 / static_cast<int64_t>(weight_.element_size()); }

  const CamlensProductTiles* tiles_;
  float low_, high_;
  int64_t outputs_;
  at::Tensor weight_, bias_;
};

at::Tensor packed(const at::Tensor& weight) {
  TORCH_CHECK(weight.dim() == 2 && weight.numel() > 0, "a weight [outputs, inputs] is expected, not ", weight.sizes());
  return camlens_in_panels(weight.t());
}

at::Tensor linear(const at::Tensor& given, const Prepared& prepared) {
  TORCH_CHECK(given.dim() > 0, "an input [..., inputs] is expected");
  prepared.check(given);
  const at::Tensor input = given.contiguous();
  std::vector<int64_t> shape = input.sizes().vec();
  shape.back() = prepared.outputs();
  at::Tensor result = at::empty(shape, input.options());
  prepared.multiply(input, result);
  return result;
}

// Raises unless numbers `[..., channels]` can be multiplied with the weight as it is.
void check_rows(const at::Tensor& numbers, const at::Tensor& weight, int64_t axis) {
  TORCH_CHECK(weight.dim() == 2 && weight.is_contiguous() && weight.is_cpu() && weight.numel() > 0,
              "a contiguous weight [outputs, inputs] is expected, not ", weight.sizes());
  TORCH_CHECK(numbers.dim() > 0 && numbers.is_cpu() && numbers.scalar_type() == weight.scalar_type() && numbers.size(-1) == weight.size(axis),
              axis == 0 ? "a gradient" : "an input", " [..., ", weight.size(axis), "] of ", weight.scalar_type(), " on the CPU is expected, not ",
              numbers.sizes());
}

at::Tensor linear_by_rows(const at::Tensor& given, const at::Tensor& weight, const at::Tensor* bias) {
  const CamlensProductTiles& tiles = camlens_product_tiles_of(weight);
  check_rows(given, weight, 1);
  const int64_t outputs = weight.size(0), inputs = weight.size(1), bytes = weight.element_size();
  TORCH_CHECK(bias == nullptr || (bias->scalar_type() == at::kFloat && bias->is_cpu() && bias->dim() == 1 && bias->size(0) == outputs),
              "a bias of ", outputs, " float32 is expected");
  const at::Tensor input = given.contiguous(), shifts = bias == nullptr ? at::Tensor() : bias->contiguous();
  std::vector<int64_t> shape = input.sizes().vec();
  shape.back() = outputs;
  at::Tensor result = at::empty(shape, input.options());
  const char* const matrix = static_cast<const char*>(weight.const_data_ptr());
  char* const to = static_cast<char*>(result.data_ptr());
  const RowParts parts(outputs, OUTPUTS_AT_ONCE);
  in_parallel(parts.count, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = parts.begin(part);
      const CamlensDots dots{input.const_data_ptr(),
                             matrix + first * inputs * bytes,
                             input.numel() / inputs,
                             parts.begin(part + 1) - first,
                             inputs,
                             bias == nullptr ? nullptr : shifts.const_data_ptr<float>() + first,
                             to + first * bytes,
                             outputs * bytes};
      tiles.dot(&dots);
    }
  });
  return result;
}

at::Tensor linear_gradient(const at::Tensor& coming, const at::Tensor& weight) {
  const CamlensProductTiles& products = camlens_product_tiles_of(weight);
  check_rows(coming, weight, 0);
  std::vector<int64_t> shape = coming.sizes().vec();
  shape.back() = weight.size(1);
  at::Tensor result = at::empty(shape, weight.options());
  const at::Tensor given = coming.to(at::kFloat).contiguous();
  const int64_t outputs = weight.size(0), inputs = weight.size(1), rows = given.numel() / outputs;
  // Of each row of the gradient, what is not zero.
  std::vector<int64_t> places, ends;
  std::vector<float> factors;
  const float* const numbers = given.const_data_ptr<float>();
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t output = 0; output < outputs; ++output) {
      if (numbers[row * outputs + output] == 0.0f) continue;
      places.push_back(output);
      factors.push_back(numbers[row * outputs + output]);
    }
    ends.push_back(static_cast<int64_t>(places.size()));
  }
  const CamlensSparseTiles& tiles = camlens_sparse_tiles(products);
  const int64_t bytes = weight.element_size();
  const char* const matrix = static_cast<const char*>(weight.const_data_ptr());
  char* const to = static_cast<char*>(result.data_ptr());
  in_parallel((inputs + CAMLENS_SUMMED_COLUMNS - 1) / CAMLENS_SUMMED_COLUMNS, [&](int64_t begin, int64_t end) {
    // Columns of the weight that the caches hold serve all rows.
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = part * CAMLENS_SUMMED_COLUMNS, columns = std::min<int64_t>(CAMLENS_SUMMED_COLUMNS, inputs - first);
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t at = row == 0 ? 0 : ends[row - 1];
        tiles.sum_rows(matrix + first * bytes, inputs * bytes, places.data() + at, factors.data() + at, ends[row] - at, columns,
                       to + (row * inputs + first) * bytes);
      }
    }
  });
  return result;
}

}  // namespace

extern "C" {

bool camlens_has_products(bool of_bfloat16) { return camlens_product_tiles(of_bfloat16 ? at::kBFloat16 : at::kFloat) != nullptr; }

int camlens_linear_weight(const at::Tensor* weight, at::Tensor** result, char** error) {
  *result = nullptr;
  return guarded(error, [&]() -> int {
    const c10::AutoGradMode mode(false);
    return give(result, packed(*weight));
  });
}

int camlens_linear(const at::Tensor* input, const at::Tensor* weight, int64_t outputs, const at::Tensor* bias, double low, double high,
                   at::Tensor** result, char** error) {
  *result = nullptr;
  return guarded(error, [&]() -> int {
    const c10::AutoGradMode mode(false);
    return give(result, linear(*input, Prepared(*weight, outputs, bias, low, high)));
  });
}

int camlens_linear_by_rows(const at::Tensor* input, const at::Tensor* weight, const at::Tensor* bias, at::Tensor** result, char** error) {
  *result = nullptr;
  return guarded(error, [&]() -> int {
    const c10::AutoGradMode mode(false);
    return give(result, linear_by_rows(*input, *weight, bias));
  });
}

int camlens_linear_gradient(const at::Tensor* gradient, const at::Tensor* weight, at::Tensor** result, char** error) {
  *result = nullptr;
  return guarded(error, [&]() -> int {
    const c10::AutoGradMode mode(false);
    return give(result, linear_gradient(*gradient, *weight));
  });
}
}
