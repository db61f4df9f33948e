#include "linear.h"

#include "parallel.h"
#include "products.h"
#include "status.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <array>
#include <vector>

namespace {

// Weights of at most so many bytes stay in a core's cache while rows pass by; larger ones are read once, and the rows again for each
// of their panels.
constexpr int64_t RESIDENT_BYTES = 512 << 10;

// What each row of a matrix is multiplied with.
struct Weights {
  const CamlensProductTiles& tiles;
  const float* panels;
  int64_t depth, columns;
  // Whole panels long, or null.
  const float* bias;
  float low, high;
  int64_t panel_count() const { return (columns + tiles.width - 1) / tiles.width; }
  int64_t panel_size() const { return depth * tiles.width; }
};

void multiply(const float* left, int64_t rows, const Weights& weights, float* to) {
  if (rows == 0) return;
  const int64_t panels = weights.panel_count(), width = weights.tiles.width;
  const RowParts parts(rows, weights.tiles.rows);
  const bool are_resident = panels * weights.panel_size() * static_cast<int64_t>(sizeof(float)) <= RESIDENT_BYTES && parts.count > panels;
  in_parallel(parts.count * panels, [&](int64_t begin, int64_t end) {
    int64_t panel = are_resident ? begin % panels : begin / parts.count, part = are_resident ? begin / panels : begin % parts.count;
    for (int64_t job = begin; job < end; ++job) {
      const int64_t column = panel * width;
      const float* const right = weights.panels + panel * weights.panel_size();
      const bool has_following = !are_resident && (panel + 1) * parts.count < end;
      const CamlensProduct product{left, weights.depth, weights.depth, right, to + column, weights.columns,
                                   std::min(width, weights.columns - column), weights.bias == nullptr ? nullptr : weights.bias + column,
                                   weights.low, weights.high, nullptr};
      multiply_part(weights.tiles, product, parts, part, has_following ? right + weights.panel_size() : nullptr);
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
      : tiles_(camlens_product_tiles()), low_(static_cast<float>(low)), high_(static_cast<float>(high)), outputs_(outputs), weight_(weight) {
    TORCH_CHECK(tiles_ != nullptr, "the processor lacks AVX2");
    const int64_t panels = (outputs + tiles_->width - 1) / tiles_->width;
    TORCH_CHECK(weight.dim() == 3 && weight.size(0) == panels && weight.size(2) == tiles_->width && weight.is_contiguous() &&
                    weight.scalar_type() == at::kFloat,
                "a weight in panels for ", outputs, " outputs is expected, not ", weight.sizes());
    if (bias == nullptr) return;
    TORCH_CHECK(bias->dim() == 1 && bias->numel() == outputs && bias->scalar_type() == at::kFloat, "a bias of ", outputs,
                " float32 is expected");
    bias_ = at::constant_pad_nd(*bias, {0, panels * tiles_->width - outputs}).contiguous();
  }

  int64_t inputs() const { return weight_.size(1); }
  int64_t outputs() const { return outputs_; }

  void multiply(const at::Tensor& input, const at::Tensor& result) const {
    const float* const bias = bias_.defined() ? bias_.const_data_ptr<float>() : nullptr;
    const Weights weights{*tiles_, weight_.const_data_ptr<float>(), inputs(), outputs_, bias, low_, high_};
    ::multiply(input.const_data_ptr<float>(), input.numel() / inputs(), weights, result.data_ptr<float>());
  }

 private:
  const CamlensProductTiles* tiles_;
  float low_, high_;
  int64_t outputs_;
  at::Tensor weight_, bias_;
};

void check_input(const at::Tensor& input, int64_t channels, int64_t inputs) {
  TORCH_CHECK(input.is_cpu() && input.scalar_type() == at::kFloat, "a float32 input on the CPU is expected");
  TORCH_CHECK(channels == inputs, "the input has ", channels, " channels, the weight ", inputs);
}

at::Tensor packed(const at::Tensor& weight) {
  TORCH_CHECK(weight.dim() == 2 && weight.numel() > 0 && weight.scalar_type() == at::kFloat, "a float32 weight [outputs, inputs] is expected, not ",
              weight.sizes());
  return camlens_in_panels(weight.t());
}

at::Tensor linear(const at::Tensor& given, const Prepared& prepared) {
  TORCH_CHECK(given.dim() > 0, "an input [..., inputs] is expected");
  check_input(given, given.size(-1), prepared.inputs());
  const at::Tensor input = given.contiguous();
  std::vector<int64_t> shape = input.sizes().vec();
  shape.back() = prepared.outputs();
  at::Tensor result = at::empty(shape, input.options());
  prepared.multiply(input, result);
  return result;
}

at::Tensor pointwise(const at::Tensor& given, const Prepared& prepared) {
  TORCH_CHECK(given.dim() == 4, "an input [N, inputs, H, W] is expected, not ", given.sizes());
  check_input(given, given.size(1), prepared.inputs());
  const at::Tensor input = given.contiguous(at::MemoryFormat::ChannelsLast);
  const std::array<int64_t, 4> shape{input.size(0), prepared.outputs(), input.size(2), input.size(3)};
  at::Tensor result = at::empty(shape, input.options(), at::MemoryFormat::ChannelsLast);
  prepared.multiply(input, result);
  return result;
}

}  // namespace

extern "C" {

bool camlens_has_products() { return camlens_product_tiles() != nullptr; }

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

int camlens_pointwise(const at::Tensor* input, const at::Tensor* weight, int64_t outputs, const at::Tensor* bias, double low, double high,
                      at::Tensor** result, char** error) {
  *result = nullptr;
  return guarded(error, [&]() -> int {
    const c10::AutoGradMode mode(false);
    return give(result, pointwise(*input, Prepared(*weight, outputs, bias, low, high)));
  });
}
}
