// Runs every kernel on its twin, over shapes, layouts, offsets and elements, and compares the results with ATen's and
// with those of camlens's kernels for the CPU. Memory has its exact size, so that AddressSanitizer sees what a kernel
// reads or writes beyond it.
//
//   twin_test [NAME…]   only the tests of these names
#include <ATen/ATen.h>

#include <sys/mman.h>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../src/torch/cuda/kernels/element.cuh"
#include "../../src/torch/cuda/kernels/kernels.h"
#include "../../src/torch/cuda/kernels/twin.h"
#include "../../src/torch/kernels/elementwise.h"
#include "../../src/torch/kernels/parallel.h"

namespace camlens {

// The kernels for the CPU run on this thread, element by element.
void parallel_for(int64_t jobs, void (*work)(const void* context, int64_t begin, int64_t end), const void* context) {
  work(context, 0, jobs);
}

void for_each_element(const at::Tensor* const* tensors, size_t count, ElementLoop loop, const void* context) {
  for (int64_t element = 0; element < tensors[0]->numel(); ++element) {
    std::vector<char*> data;
    for (size_t i = 0; i < count; ++i) {
      const at::Tensor& tensor = *tensors[i];
      int64_t offset = 0;
      for (int64_t dimension = tensor.dim() - 1, rest = element; dimension >= 0; --dimension) {
        offset += rest % tensor.size(dimension) * tensor.stride(dimension);
        rest /= tensor.size(dimension);
      }
      data.push_back(static_cast<char*>(tensor.data_ptr()) + offset * static_cast<int64_t>(tensor.element_size()));
    }
    const std::vector<int64_t> strides(2 * count, static_cast<int64_t>(tensors[0]->element_size()));
    loop(context, data.data(), strides.data(), 1, 1);
  }
}

}  // namespace camlens

namespace cuda = camlens::cuda;

namespace {

constexpr float NONE = std::numeric_limits<float>::quiet_NaN();
const std::vector<c10::ScalarType> KINDS = {at::kFloat, at::kHalf, at::kBFloat16};

// ------------------------------------------------------------------------------------------------------- failures
void require(bool holds, const std::string& sentence) {
  if (!holds) throw std::runtime_error(sentence);
}

void require(bool holds, const char* sentence) {
  if (!holds) throw std::runtime_error(sentence);
}

std::string text(const at::Tensor& tensor) {
  std::ostringstream out;
  out << tensor.scalar_type() << tensor.sizes() << tensor.strides();
  return out.str();
}

// ------------------------------------------------------------------------------------------------------- numbers
std::mt19937 random_bits(20261130);

int64_t below(int64_t bound) { return static_cast<int64_t>(random_bits() % static_cast<uint64_t>(bound)); }

// Numbers around `centre`, of both signs; with `specials`, many halves of integers, zeros of both signs, infinities,
// NaN, and numbers that are subnormal as float16.
at::Tensor numbers(at::IntArrayRef sizes, bool specials, float centre = 0.0f) {
  const at::Tensor tensor = at::empty(sizes, at::kFloat);
  std::normal_distribution<float> normal(centre, 2.0f);
  float* const to = tensor.data_ptr<float>();
  for (int64_t i = 0; i < tensor.numel(); ++i) {
    to[i] = normal(random_bits);
    if (!specials) continue;
    const int64_t kind = below(40);
    if (kind < 12) to[i] = std::round(to[i] * 2) / 2;
    if (kind == 12) to[i] = std::numeric_limits<float>::quiet_NaN();
    if (kind == 13) to[i] = below(2) == 0 ? INFINITY : -INFINITY;
    if (kind == 14) to[i] = below(2) == 0 ? 0.0f : -0.0f;
    if (kind == 15) to[i] *= 0x1p-20f;
  }
  return tensor;
}

uint32_t bits(float value) { return camlens::cuda::bits_of(value); }

// Whether all elements have the same bits, or are NaN in both.
bool are_equal(const at::Tensor& left, const at::Tensor& right) {
  if (left.sizes() != right.sizes() || left.scalar_type() != right.scalar_type()) return false;
  const at::Tensor floats = left.to(at::kFloat).contiguous(), others = right.to(at::kFloat).contiguous();
  const float *const lefts = floats.data_ptr<float>(), *const rights = others.data_ptr<float>();
  for (int64_t i = 0; i < left.numel(); ++i) {
    const float a = lefts[i], b = rights[i];
    if (std::isnan(a) ? !std::isnan(b) : bits(a) != bits(b)) return false;
  }
  return true;
}

// The largest difference relative to the largest number of `right`.
double relative_error(const at::Tensor& left, const at::Tensor& right) {
  if (right.numel() == 0) return 0.0;
  const at::Tensor exact = right.to(at::kDouble);
  const double scale = std::max(exact.abs().max().item<double>(), 1e-30);
  return (left.to(at::kDouble) - exact).abs().max().item<double>() / scale;
}

// ------------------------------------------------------------------------------------------------------- layouts
enum class Layout { CONTIGUOUS, CHANNELS_LAST, SHUFFLED, SLICED, EXPANDED };

// The values of `tensor`, of that dtype and layout, in memory that ends with the last element and begins `offset`
// elements before the first. SHUFFLED is dense with the dimensions in another order, SLICED has gaps, EXPANDED has the
// values of the first row in all rows.
at::Tensor lay(const at::Tensor& tensor, c10::ScalarType kind, Layout layout, int64_t offset) {
  const int64_t dimensions = tensor.dim();
  std::vector<int64_t> order(dimensions), strides(dimensions);
  for (int64_t i = 0; i < dimensions; ++i) order[i] = i;
  if (layout == Layout::CHANNELS_LAST && dimensions == 4) order = {0, 2, 3, 1};
  if (layout == Layout::SHUFFLED && dimensions == 4) order = {2, 0, 1, 3};
  int64_t stride = 1;
  for (int64_t i = dimensions - 1; i >= 0; --i) {
    strides[order[i]] = layout == Layout::EXPANDED && order[i] == 0 ? 0 : stride;
    stride *= tensor.size(order[i]) + (layout == Layout::SLICED && i == dimensions - 1 ? 3 : 0);
  }
  int64_t extent = tensor.numel() == 0 ? 0 : 1;
  for (int64_t i = 0; i < dimensions && extent != 0; ++i) extent += (tensor.size(i) - 1) * strides[i];
  const int64_t bytes = static_cast<int64_t>(c10::elementSize(kind));
  char* const memory = static_cast<char*>(std::malloc((offset + extent) * bytes));
  const at::Tensor result = at::from_blob(
      memory + offset * bytes, tensor.sizes(), strides, [memory](void*) { std::free(memory); },
      at::TensorOptions(kind));
  if (tensor.numel() == 0) return result;
  if (layout == Layout::EXPANDED) {
    result.narrow(0, 0, 1).copy_(tensor.narrow(0, 0, 1));
  } else {
    result.copy_(tensor);
  }
  return result;
}

// ------------------------------------------------------------------------------------------------------- launcher
// Runs each kernel several times: with the grid that is asked for and with a smaller one, with threads in both orders.
// All must write the same bits, and nothing but what they say.
class TwinLauncher : public cuda::Launcher {
 public:
  c10::DeviceType device_type() const override { return type; }

  void launch(cuda::Kernel kernel, cuda::Element element, const cuda::Geometry& geometry,
              const std::vector<cuda::Argument>& arguments) override {
    const std::string name = cuda::function_name(kernel, element);
    std::vector<cuda::Parameter> kinds;
    for (const cuda::Argument& argument : arguments) kinds.push_back(argument.kind);
    require(kinds == cuda::twin_parameters(kernel), name + " has other parameters than it is launched with");
    std::vector<at::Tensor> before, first;
    for (const cuda::Argument& argument : arguments) before.push_back(memory(argument).clone());
    const auto run = [&](uint32_t grid, cuda::ThreadOrder order) {
      for (size_t i = 0; i < arguments.size(); ++i) {
        if (arguments[i].access == cuda::Access::WRITE) memory(arguments[i]).fill_(0xff);
        if (arguments[i].access == cuda::Access::READ_WRITE) memory(arguments[i]).copy_(before[i]);
      }
      cuda::PackedArguments packed(arguments);
      require(cuda::run_twin(kernel, element, grid, geometry.block, geometry.shared_bytes, packed.data(), order),
              name + ": threads of a block disagree about a barrier");
      for (size_t i = 0; i < arguments.size(); ++i) {
        if (arguments[i].access != cuda::Access::READ || is_updated(arguments, i)) continue;
        require(at::equal(memory(arguments[i]), before[i]), name + " writes to an argument that it only reads");
      }
      std::vector<at::Tensor> after;
      for (const cuda::Argument& argument : arguments) {
        if (argument.access != cuda::Access::READ) after.push_back(memory(argument).clone());
      }
      if (first.empty()) first = after;
      for (size_t i = 0; i < after.size(); ++i) {
        require(at::equal(after[i], first[i]), name + ": the result depends on the grid or on the order of threads");
      }
    };
    run(geometry.grid, cuda::ThreadOrder::ASCENDING);
    run(geometry.grid, cuda::ThreadOrder::DESCENDING);
    if (geometry.grid > 1) run((geometry.grid + 2) / 3, cuda::ThreadOrder::DESCENDING);
    launched.insert(name);
  }

  c10::DeviceType type = c10::kCPU;
  std::set<std::string> launched;

 private:
  // The bytes from a tensor's first element to its last; empty without a tensor. Tensors that are written are dense.
  static at::Tensor memory(const cuda::Argument& argument) {
    const at::Tensor& tensor = argument.tensor;
    if (!tensor.defined() || tensor.numel() == 0) return at::empty({0}, at::kByte);
    int64_t extent = 1;
    for (int64_t i = 0; i < tensor.dim(); ++i) extent += (tensor.size(i) - 1) * tensor.stride(i);
    // Tensors that lie apart in gigabytes of untouched memory.
    if (extent > 1 << 28) return at::empty({0}, at::kByte);
    return at::from_blob(tensor.data_ptr(), {extent * static_cast<int64_t>(tensor.element_size())}, at::kByte);
  }

  static bool is_updated(const std::vector<cuda::Argument>& arguments, size_t index) {
    for (const cuda::Argument& argument : arguments) {
      if (argument.access == cuda::Access::READ_WRITE && argument.tensor.is_same(arguments[index].tensor)) return true;
    }
    return false;
  }
};

TwinLauncher launcher;

// ------------------------------------------------------------------------------------------------------- elementwise
const std::vector<std::vector<int64_t>> SHAPES = {
    {1, 1, 1, 1}, {2, 3, 1, 1},  {1, 5, 3, 1},   {2, 8, 2, 2},   {3, 7, 5, 3},   {1, 16, 4, 4},
    {2, 1, 9, 1}, {2, 12, 7, 7}, {1, 64, 13, 9}, {4, 24, 14, 6}, {0, 3, 2, 2},   {2, 0, 3, 3},
    {5, 37},      {1, 1},        {3, 16},        {0, 4},         {2, 40, 17, 13}};

const std::vector<std::pair<float, float>> BOUNDS = {{0.0f, NONE}, {0.0f, 6.0f}, {-1.5f, 2.0f},
                                                     {0.5f, NONE}, {NONE, 1.0f}, {-INFINITY, INFINITY}};

// Calls `test(tensors, kind)` with `count` tensors of one shape: of one layout, aligned or not, then of several.
void for_each_operands(size_t count, const std::function<void(std::vector<at::Tensor>, c10::ScalarType)>& test) {
  for (const std::vector<int64_t>& shape : SHAPES) {
    for (const c10::ScalarType kind : KINDS) {
      for (int variant = 0; variant < 5; ++variant) {
        std::vector<at::Tensor> tensors;
        for (size_t i = 0; i < count; ++i) {
          const int layouts = shape.size() == 4 ? 5 : 1;
          const Layout layout = variant < 4 ? (variant % 2 == 0 ? Layout::CONTIGUOUS : Layout::CHANNELS_LAST)
                                            : static_cast<Layout>(below(layouts));
          // Offsets of no elements, or of some: the first element is then not aligned to a pack.
          tensors.push_back(lay(numbers(shape, true), kind, layout, variant < 2 ? 0 : below(9)));
        }
        test(tensors, kind);
      }
    }
  }
}

std::vector<const at::Tensor*> pointers(const std::vector<at::Tensor>& tensors) {
  std::vector<const at::Tensor*> result;
  for (const at::Tensor& tensor : tensors) result.push_back(&tensor);
  return result;
}

// The sum of the first `count` tensors, in float32.
at::Tensor float_sum(const std::vector<at::Tensor>& tensors, size_t count) {
  at::Tensor sum = tensors[0].to(at::kFloat);
  for (size_t i = 1; i < count; ++i) sum = sum + tensors[i].to(at::kFloat);
  return sum;
}

int32_t cpu_element(c10::ScalarType kind) { return kind == at::kFloat ? 0 : 1; }

void succeeded(int status, char* error) { require(status == 0, error == nullptr ? "no text" : error); }

// Each rectifier's reverse in ATen, and camlens's on the CPU.
void gate_is_that_of_the_cpu() {
  for (size_t count = 1; count <= 4; ++count) {
    for_each_operands(count + 1, [&](std::vector<at::Tensor> tensors, c10::ScalarType kind) {
      const at::Tensor source = tensors.back();
      tensors.pop_back();
      const auto [low, high] = BOUNDS[below(BOUNDS.size())];
      const bool guided = below(2) == 0;
      const std::vector<const at::Tensor*> gradients = pointers(tensors);
      const at::Tensor result = cuda::gate(launcher, gradients.data(), count, source, low, high, guided);
      require(!source.is_non_overlapping_and_dense() || result.strides() == source.strides(),
              "the result has not the layout of its source: " + text(result) + text(source));

      at::Tensor sum = float_sum(tensors, count);
      if (guided) sum = at::where(sum < 0, at::zeros_like(sum), sum);
      const at::Tensor from = source.to(at::kFloat);
      at::Tensor expected = at::threshold_backward(sum, from, low);
      if (!std::isnan(high)) expected = at::hardtanh_backward(sum, from, low, high);
      // hardtanh_backward passes single elements where its input is NaN, but not vectors of elements.
      if (!std::isnan(high)) expected = at::where(from.isnan(), sum, expected);
      if (std::isnan(low)) expected = at::where(from >= high, at::zeros_like(sum), sum);
      require(are_equal(result, expected.to(kind)), "gate differs from ATen: " + text(source));

      if (count > 2 || kind == at::kHalf || source.numel() == 0) return;
      const at::Tensor on_cpu = at::empty_like(source);
      char* error = nullptr;
      succeeded(camlens_gate(cpu_element(kind), &on_cpu, gradients.data(), count, &source, low, high, guided, &error),
                error);
      require(are_equal(result, on_cpu), "gate differs from that of the CPU: " + text(source));
    });
  }
}

void sum_adds_in_the_order_given() {
  for (size_t count = 2; count <= 4; ++count) {
    for_each_operands(count, [&](std::vector<at::Tensor> tensors, c10::ScalarType kind) {
      const std::vector<const at::Tensor*> terms = pointers(tensors);
      const at::Tensor result = cuda::sum(launcher, terms.data(), count);
      require(result.is_non_overlapping_and_dense(), "the sum is not dense: " + text(result));
      require(!tensors[0].is_non_overlapping_and_dense() || result.strides() == tensors[0].strides(),
              "the sum has not the layout of its first term: " + text(result) + text(tensors[0]));
      require(are_equal(result, float_sum(tensors, count).to(kind)), "sum differs from ATen: " + text(tensors[0]));
    });
  }
}

void epilogue_adds_and_clamps_in_place() {
  for_each_operands(2, [](std::vector<at::Tensor> tensors, c10::ScalarType kind) {
    const bool is_contiguous = tensors[0].is_contiguous();
    if (!is_contiguous && !(tensors[0].dim() == 4 && tensors[0].is_contiguous(at::MemoryFormat::ChannelsLast))) return;
    const auto [low, high] = BOUNDS[below(BOUNDS.size())];
    const int64_t channels = tensors[0].size(1);
    const at::Tensor bias = lay(numbers({channels}, true), kind, Layout::CONTIGUOUS, below(2) * below(9));
    for (int present = 0; present < 5; ++present) {
      // The clamp's input is left as it is, the bias and the other tensor by turns; at last the value itself is added.
      const at::Tensor value =
          lay(tensors[0], kind, is_contiguous ? Layout::CONTIGUOUS : Layout::CHANNELS_LAST, below(2) * below(9));
      const bool has_bias = present % 2 == 1, has_other = present >= 2;
      const at::Tensor other = present == 4 ? value : tensors[1];
      at::Tensor expected = value.to(at::kFloat).clone();
      if (has_bias) {
        expected = expected + (value.dim() == 4 ? bias.to(at::kFloat).view({1, channels, 1, 1}) : bias.to(at::kFloat));
      }
      if (has_other) expected = expected + other.to(at::kFloat);
      const at::Tensor first = value.clone(), second = other.clone();
      if (!std::isnan(low)) expected = at::where(expected < low, at::full_like(expected, low), expected);
      if (!std::isnan(high)) expected = at::where(expected > high, at::full_like(expected, high), expected);
      const void* const memory = value.data_ptr();
      cuda::epilogue(launcher, value, has_bias ? &bias : nullptr, has_other ? &other : nullptr, low, high);
      require(value.data_ptr() == memory && are_equal(value, expected.to(kind)),
              "epilogue differs from ATen: " + text(value) + text(other));

      if (has_bias || !has_other || kind == at::kHalf || value.numel() == 0) continue;
      const at::Tensor on_cpu = at::empty_like(first);
      char* error = nullptr;
      succeeded(camlens_add_clamped(cpu_element(kind), &on_cpu, &first, &second, low, high, &error), error);
      require(are_equal(value, on_cpu), "epilogue differs from that of the CPU: " + text(value));
    }
  });
}

// ------------------------------------------------------------------------------------------------------- Grad-CAM
at::Tensor exact_cam(const at::Tensor& activations, const at::Tensor& gradients) {
  const at::Tensor weights = gradients.to(at::kDouble).mean({2, 3}, true);
  return (weights * activations.to(at::kDouble)).sum({1}).relu();
}

void grad_cam_weights_channels_by_their_mean_gradients() {
  const std::vector<std::vector<int64_t>> shapes = {{1, 1, 1, 1},   {2, 3, 2, 2},   {1, 9, 7, 7},    {3, 8, 1, 5},
                                                    {2, 17, 5, 1},  {2, 530, 1, 2}, {1, 1030, 2, 1}, {1, 5, 13, 11},
                                                    {1, 2, 33, 32}, {2, 4, 0, 3},   {0, 3, 2, 2},    {2, 0, 3, 2}};
  for (const std::vector<int64_t>& shape : shapes) {
    for (const c10::ScalarType kind : KINDS) {
      // Many blocks take long under AddressSanitizer.
      const bool is_large = shape[1] > 500 || shape[2] > 30;
      if (is_large && kind != at::kFloat) continue;
      const at::Tensor values = numbers(shape, false, 0.5f), slopes = numbers(shape, false, 0.5f);
      at::Tensor first;
      for (const Layout layout : {Layout::CONTIGUOUS, Layout::CHANNELS_LAST, Layout::SHUFFLED, Layout::SLICED}) {
        if (is_large && layout == Layout::SHUFFLED) break;
        const Layout other = static_cast<Layout>(below(4));
        const at::Tensor activations = lay(values, kind, layout, below(4)),
                         gradients = lay(slopes, kind, other, below(4));
        const at::Tensor map = cuda::grad_cam(launcher, activations, gradients);
        require(map.is_contiguous() && map.scalar_type() == at::kFloat, "the map is not contiguous float32");
        const at::Tensor expected = exact_cam(activations, gradients);
        require(map.sizes() == expected.sizes() && relative_error(map, expected) < 2e-6,
                "Grad-CAM differs from ATen: " + text(activations) + text(gradients));
        if (!first.defined()) first = map;
        require(are_equal(map, first), "Grad-CAM depends on the layout: " + text(activations));
        if (shape[0] < 2) continue;
        const at::Tensor row = cuda::grad_cam(launcher, activations.narrow(0, 1, 1), gradients.narrow(0, 1, 1));
        require(are_equal(row, map.narrow(0, 1, 1)), "Grad-CAM depends on the batch: " + text(activations));
      }
    }
  }
}

void grad_cam_reads_tokens_as_a_grid() {
  const at::Tensor tokens = numbers({2, 1 + 14 * 14, 40}, false, 0.5f),
                   slopes = numbers({2, 1 + 14 * 14, 40}, false, 0.5f);
  const auto grid = [](const at::Tensor& tokens) {
    return tokens.narrow(1, 1, 14 * 14).permute({0, 2, 1}).reshape({2, 40, 14, 14});
  };
  for (const c10::ScalarType kind : KINDS) {
    const at::Tensor activations = grid(lay(tokens, kind, Layout::CONTIGUOUS, 0));
    const at::Tensor gradients = grid(lay(slopes, kind, Layout::CONTIGUOUS, 0));
    require(activations.stride(1) == 1, "the grid is not a view");
    require(relative_error(cuda::grad_cam(launcher, activations, gradients), exact_cam(activations, gradients)) < 2e-6,
            "Grad-CAM of tokens differs from ATen");
  }
}

void grad_cam_cuts_off_what_speaks_against_the_class_and_keeps_nan() {
  const at::Tensor activations = at::full({1, 2, 2, 2}, -1.0f), gradients = at::ones({1, 2, 2, 2});
  const at::Tensor map = cuda::grad_cam(launcher, activations, gradients);
  require(are_equal(map, at::zeros({1, 2, 2})), "negative evidence is not cut off");
  activations[0][1][0][1] = NONE;
  const at::Tensor with_nan = cuda::grad_cam(launcher, activations, gradients);
  require(at::isnan(with_nan).sum().item<int64_t>() == 1 && std::isnan(with_nan[0][0][1].item<float>()),
          "NaN does not stay where it is");
}

// ------------------------------------------------------------------------------------------------------- fusion
void fuse_multiplies_with_the_resized_map() {
  const std::vector<std::vector<int64_t>> sizes = {
      // Rows, channels, height, width, and the map's height and width.
      {1, 3, 32, 32, 7, 7}, {2, 1, 5, 3, 2, 9}, {2, 4, 1, 1, 3, 3}, {1, 3, 9, 31, 1, 1}, {3, 2, 6, 5, 6, 5},
      {1, 3, 12, 8, 12, 3}, {2, 3, 0, 4, 2, 2}, {0, 3, 4, 4, 2, 2}, {2, 0, 4, 4, 2, 2},  {1, 3, 71, 67, 14, 13}};
  for (const std::vector<int64_t>& size : sizes) {
    for (const c10::ScalarType kind : KINDS) {
      for (const Layout layout : {Layout::CONTIGUOUS, Layout::CHANNELS_LAST, Layout::SHUFFLED, Layout::SLICED}) {
        const at::Tensor guided = lay(numbers({size[0], size[1], size[2], size[3]}, false), kind, layout, below(5));
        const at::Tensor map = lay(numbers({size[0], size[4], size[5]}, false), at::kFloat,
                                   below(2) == 0 ? layout : Layout::CONTIGUOUS, below(5));
        const cuda::Fused result = cuda::fuse(launcher, guided, map, true);
        const at::Tensor resized =
            size[0] * size[2] * size[3] == 0
                ? at::empty({size[0], size[2], size[3]})
                : at::upsample_bilinear2d(map.contiguous().unsqueeze(1), {size[2], size[3]}, false).squeeze(1);
        require(result.fused.is_contiguous() && result.fused.scalar_type() == at::kFloat,
                "the product is not contiguous");
        require(result.upsampled.sizes() == resized.sizes() && relative_error(result.upsampled, resized) < 2e-6,
                "the resized map differs from ATen: " + text(map) + text(guided));
        require(are_equal(result.fused, guided.to(at::kFloat) * result.upsampled.unsqueeze(1)),
                "the product differs from ATen: " + text(guided));
        const cuda::Fused alone = cuda::fuse(launcher, guided, map, false);
        require(!alone.upsampled.defined() && are_equal(alone.fused, result.fused),
                "the product depends on what is asked");
      }
    }
  }
  const at::Tensor guided = at::ones({1, 1, 2, 2}), map = at::full({1, 2, 2}, INFINITY);
  require(are_equal(cuda::fuse(launcher, guided, map, false).fused, map.unsqueeze(1)),
          "a map of this size is not copied");
}

// ------------------------------------------------------------------------------------------------------- pictures
void normalize_computes_what_torchvision_computes() {
  const float mean[] = {0.485f, 0.456f, 0.406f, 0.5f}, deviation[] = {0.229f, 0.224f, 0.225f, 0.25f};
  const std::vector<std::vector<int64_t>> shapes = {
      {1, 1, 1, 3}, {2, 3, 5, 3}, {1, 16, 16, 3}, {2, 4, 6, 1},   {3, 5, 7, 1},   {2, 8, 4, 4}, {1, 3, 3, 4},
      {2, 6, 2, 2}, {2, 5, 5, 2}, {0, 4, 4, 3},   {2, 33, 31, 3}, {2, 40, 36, 3}, {1, 0, 2, 3}};
  for (const std::vector<int64_t>& shape : shapes) {
    for (const c10::ScalarType kind : KINDS) {
      for (int variant = 0; variant < 8; ++variant) {
        const bool channels_last = variant % 2 == 1;
        const at::Tensor values = numbers(shape, false).mul(1000).remainder(256).floor();
        const Layout layout = variant < 6 ? Layout::CONTIGUOUS : Layout::SLICED;
        const at::Tensor bytes = lay(values, at::kByte, layout, variant < 2 ? 0 : below(9));
        const at::Tensor result = cuda::normalize(launcher, bytes, mean, deviation, kind, channels_last);
        const int64_t channels = shape[3];
        const auto each = [&](const float* numbers) {
          return at::from_blob(const_cast<float*>(numbers), {1, channels, 1, 1});
        };
        const at::Tensor expected =
            bytes.permute({0, 3, 1, 2}).to(at::kFloat).div(255).sub(each(mean)).div(each(deviation)).to(kind);
        require(are_equal(result, expected), "normalize differs from ATen: " + text(bytes) + text(result));
        require(result.is_contiguous(channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous),
                "the input has another layout than asked for");
      }
    }
  }
}

// ------------------------------------------------------------------------------------------------------- elements
void elements_are_rounded_as_aten_rounds_them() {
  for (uint32_t i = 0; i < 0x10000; ++i) {
    const uint16_t stored = static_cast<uint16_t>(i);
    const float half = cuda::to_float(cuda::Float16{stored}), upper = cuda::to_float(cuda::BFloat16{stored});
    const float half_of_aten = c10::Half(stored, c10::Half::from_bits());
    const float upper_of_aten = c10::BFloat16(stored, c10::BFloat16::from_bits());
    require(std::isnan(half_of_aten) ? std::isnan(half) : bits(half) == bits(half_of_aten), "float16 is read wrongly");
    require(std::isnan(upper_of_aten) ? std::isnan(upper) : bits(upper) == bits(upper_of_aten),
            "bfloat16 is read wrongly");
  }
  const auto check = [](float value) {
    const uint16_t half = cuda::to_element<cuda::Float16>(value).bits, half_of_aten = c10::Half(value).x;
    const uint16_t upper = cuda::to_element<cuda::BFloat16>(value).bits, upper_of_aten = c10::BFloat16(value).x;
    const bool is_nan = std::isnan(value);
    require(is_nan ? std::isnan(cuda::to_float(cuda::Float16{half})) : half == half_of_aten,
            "float16 is rounded wrongly");
    require(is_nan ? std::isnan(cuda::to_float(cuda::BFloat16{upper})) : upper == upper_of_aten,
            "bfloat16 is rounded wrongly");
  };
  // Every number of 16 bits, the ties between neighbours, and the float32 beside these; then all sorts.
  for (uint64_t i = 0; i < uint64_t{1} << 32; i += 0x800) {
    for (const uint64_t beside : {i - 1, i, i + 1}) check(camlens::cuda::float_of(static_cast<uint32_t>(beside)));
  }
  for (int i = 0; i < 1000000; ++i) check(camlens::cuda::float_of(static_cast<uint32_t>(random_bits())));
}

// ------------------------------------------------------------------------------------------------------- far apart
// A tensor whose rows are gigabytes apart: what lies between is never touched.
void rows_may_be_further_apart_than_32_bits_count() {
  const int64_t row = (int64_t{1} << 32) + 16, bytes = (row + 64) * static_cast<int64_t>(sizeof(float));
  void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  require(memory != MAP_FAILED, "no address space");
  const at::Tensor far = at::from_blob(memory, {2, 2, 4, 4}, {row, 16, 4, 1}, at::kFloat);
  far.copy_(numbers({2, 2, 4, 4}, false, 0.5f));
  require(relative_error(cuda::grad_cam(launcher, far, far), exact_cam(far, far)) < 2e-6,
          "Grad-CAM of far rows is wrong");
  const at::Tensor map = at::ones({2, 2, 2});
  require(are_equal(cuda::fuse(launcher, far, map, false).fused, far.contiguous()), "the product of far rows is wrong");
  munmap(memory, bytes);
}

// ------------------------------------------------------------------------------------------------------- refusals
void refuses(const std::string& part, const std::function<void()>& call) {
  try {
    call();
  } catch (const std::invalid_argument& error) {
    require(std::string(error.what()).find(part) != std::string::npos,
            "an error says \"" + std::string(error.what()) + "\", not \"" + part + "\"");
    return;
  }
  require(false, "nothing is refused, rather than \"" + part + "\"");
}

void what_does_not_fit_is_refused_with_its_name() {
  const at::Tensor image = at::ones({2, 3, 4, 4}), other = at::ones({2, 3, 4, 5}), half = image.to(at::kHalf);
  const at::Tensor bytes = at::ones({1, 2, 2, 3}, at::kByte), undefined;
  const at::Tensor *const one[] = {&image}, *const two[] = {&image, &other}, *const mixed[] = {&image, &half};
  const at::Tensor doubles = image.to(at::kDouble), *const wide[] = {&doubles, &doubles};
  const at::Tensor* const nothing[] = {&image, &undefined};
  const at::Tensor* const five[] = {&image, &image, &image, &image, &image};
  const float numbers[] = {0.5f, 0.5f, 0.5f, 0.5f};
  refuses("gate: 0 gradients, not 1 to 4", [&] { cuda::gate(launcher, one, 0, image, 0, 6, false); });
  refuses("gate: 5 gradients, not 1 to 4", [&] { cuda::gate(launcher, five, 5, image, 0, 6, false); });
  refuses("gate: source has the shape [2, 3, 4, 5]", [&] { cuda::gate(launcher, one, 1, other, 0, 6, false); });
  refuses("gate: source has the dtype Half, not Float", [&] { cuda::gate(launcher, one, 1, half, 0, 6, false); });
  refuses("sum: 1 terms, not 2 to 4", [&] { cuda::sum(launcher, one, 1); });
  refuses("sum: terms has the shape [2, 3, 4, 5], not [2, 3, 4, 4]", [&] { cuda::sum(launcher, two, 2); });
  refuses("sum: terms has the dtype Half, not Float", [&] { cuda::sum(launcher, mixed, 2); });
  refuses("sum: terms has the dtype Double, not Float, Half or BFloat16", [&] { cuda::sum(launcher, wide, 2); });
  refuses("sum: terms is undefined", [&] { cuda::sum(launcher, nothing, 2); });
  const at::Tensor sparse = image.to_sparse(), *const sparse_terms[] = {&sparse, &sparse};
  refuses("sum: terms is not a strided tensor", [&] { cuda::sum(launcher, sparse_terms, 2); });
  refuses("epilogue: value has the shape [3], not [N, C, H, W] or [N, C]",
          [&] { cuda::epilogue(launcher, at::ones({3}), nullptr, nullptr, 0, 6); });
  refuses("neither contiguous nor channels-last",
          [&] { cuda::epilogue(launcher, image.transpose(0, 1), nullptr, nullptr, 0, 6); });
  refuses("epilogue: bias has the shape", [&] { cuda::epilogue(launcher, image, &image, nullptr, 0, 6); });
  refuses("epilogue: other has the dtype Half", [&] { cuda::epilogue(launcher, image, nullptr, &half, 0, 6); });
  refuses("epilogue: other has the shape", [&] { cuda::epilogue(launcher, image, nullptr, &other, 0, 6); });
  refuses("grad_cam: activations has the shape [3], not [N, K, h, w]",
          [&] { cuda::grad_cam(launcher, at::ones({3}), image); });
  refuses("grad_cam: gradients has the shape [2, 3, 4, 5]", [&] { cuda::grad_cam(launcher, image, other); });
  refuses("grad_cam: gradients has the dtype Half", [&] { cuda::grad_cam(launcher, image, half); });
  refuses("fuse: map has the shape [2, 3, 4, 4], not [N, h, w]", [&] { cuda::fuse(launcher, image, image, false); });
  refuses("fuse: map has 1 rows, guided has 2", [&] { cuda::fuse(launcher, image, at::ones({1, 2, 2}), false); });
  refuses("fuse: map has the dtype Half", [&] { cuda::fuse(launcher, image, half.select(1, 0), false); });
  refuses("no pixels to resize", [&] { cuda::fuse(launcher, image, at::ones({2, 0, 2}), false); });
  refuses("normalize: bytes has the dtype Float",
          [&] { cuda::normalize(launcher, image, numbers, numbers, at::kFloat, false); });
  refuses("normalize: the result has the dtype Double",
          [&] { cuda::normalize(launcher, bytes, numbers, numbers, at::kDouble, false); });
  refuses("normalize: pictures have 5 channels, not 1 to 4",
          [&] { cuda::normalize(launcher, at::ones({1, 2, 2, 5}, at::kByte), numbers, numbers, at::kFloat, false); });
  launcher.type = c10::kCUDA;
  refuses("gate: gradients is on cpu, not on a device of type cuda",
          [&] { cuda::gate(launcher, one, 1, image, 0, 6, false); });
  launcher.type = c10::kCPU;
}

struct Test {
  const char* name;
  void (*run)();
};

#define TEST(name) {#name, name}
const Test TESTS[] = {
    TEST(gate_is_that_of_the_cpu),
    TEST(sum_adds_in_the_order_given),
    TEST(epilogue_adds_and_clamps_in_place),
    TEST(grad_cam_weights_channels_by_their_mean_gradients),
    TEST(grad_cam_reads_tokens_as_a_grid),
    TEST(grad_cam_cuts_off_what_speaks_against_the_class_and_keeps_nan),
    TEST(fuse_multiplies_with_the_resized_map),
    TEST(normalize_computes_what_torchvision_computes),
    TEST(elements_are_rounded_as_aten_rounds_them),
    TEST(rows_may_be_further_apart_than_32_bits_count),
    TEST(what_does_not_fit_is_refused_with_its_name),
};
#undef TEST

}  // namespace

int main(int count, char** names) {
  const std::set<std::string> asked(names + 1, names + count);
  int failed = 0, run = 0;
  for (const Test& test : TESTS) {
    if (!asked.empty() && asked.count(test.name) == 0) continue;
    ++run;
    try {
      test.run();
    } catch (const std::exception& error) {
      ++failed;
      std::printf("%s: %s\n", test.name, error.what());
    }
  }
  const size_t functions = cuda::KERNEL_COUNT * cuda::ELEMENT_COUNT;
  if (asked.empty() && launcher.launched.size() != functions) {
    ++failed;
    std::printf("only %zu of %zu kernels have run\n", launcher.launched.size(), functions);
  }
  std::printf("%d tests, %d failed; %zu kernels run\n", run, failed, launcher.launched.size());
  return failed == 0 && run != 0 ? 0 : 1;
}
