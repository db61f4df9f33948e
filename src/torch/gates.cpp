#include "gates.h"

#include "gate_tiles.h"
#include "ours.h"
#include "parallel.h"
#include "products.h"
#include "sparse_rows.h"
#include "status.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <limits>

namespace {

// Fewer numbers than that are not worth another thread.
constexpr int64_t NUMBERS_OF_THREAD = 16384;

const CamlensGateTiles& tiles_of(const at::Tensor& numbers) {
  const CamlensProductTiles& products = camlens_product_tiles_of(numbers);
#if defined(__x86_64__)
  if (&products == &camlens_product_tiles_avx512_bf16) return camlens_gate_tiles_avx512_bf16;
  return &products == &camlens_product_tiles_avx512 ? camlens_gate_tiles_avx512 : camlens_gate_tiles_avx2;
#else
  (void)products;
  return camlens_gate_tiles_default;
#endif
}

// Calls `work(first, pixels)`, on as many threads as are worth it, for all pixels of a tensor.
template <typename Work>
void for_pixels(const at::Tensor& numbers, const Work& work) {
  const int64_t channels = numbers.size(1), pixels = numbers.size(0) * numbers.size(2) * numbers.size(3);
  if (pixels * channels <= NUMBERS_OF_THREAD) return work(0, CamlensPixels{pixels, channels});
  const RowParts parts(pixels, std::max<int64_t>(1, NUMBERS_OF_THREAD / channels));
  in_parallel(parts.count, [&](int64_t begin, int64_t end) {
    const int64_t first = parts.begin(begin);
    work(first, CamlensPixels{parts.begin(end) - first, channels});
  });
}

const char* pixel(const at::Tensor& numbers, int64_t at) {
  return static_cast<const char*>(numbers.const_data_ptr()) + at * numbers.size(1) * numbers.element_size();
}
char* place(const at::Tensor& numbers, int64_t at) {
  return static_cast<char*>(numbers.data_ptr()) + at * numbers.size(1) * numbers.element_size();
}
uint64_t* words(const at::Tensor& gates, int64_t pixel) {
  return reinterpret_cast<uint64_t*>(gates.data_ptr<int64_t>()) + pixel * gates.size(3);
}

void check(const at::Tensor& numbers) {
  TORCH_CHECK(numbers.dim() == 4 && numbers.is_cpu() && numbers.is_contiguous(at::MemoryFormat::ChannelsLast),
              "numbers [N, C, H, W] with the channels next to each other are expected, not ", numbers.sizes(), ", ", numbers.strides());
}

at::Tensor gates_of(const at::Tensor& result, double low, double high) {
  check(result);
  const CamlensGateTiles& tiles = tiles_of(result);
  const at::Tensor gates = camlens_gates_for(result);
  const float lower = camlens_gate_bound(result, low), upper = camlens_gate_bound(result, high);
  for_pixels(result, [&](int64_t first, CamlensPixels pixels) { tiles.open(pixel(result, first), pixels, lower, upper, words(gates, first)); });
  return gates;
}

at::Tensor add(const at::Tensor& sum, const at::Tensor& other, double low, double high, at::Tensor& gates) {
  check(sum);
  check(other);
  TORCH_CHECK(sum.sizes() == other.sizes() && sum.scalar_type() == other.scalar_type(), "the sum has shape ", sum.sizes(), " and type ",
              sum.scalar_type(), ", what is added ", other.sizes(), " and ", other.scalar_type());
  const CamlensGateTiles& tiles = tiles_of(sum);
  const at::Tensor out = is_ours(sum) ? sum : at::empty_like(sum);
  gates = camlens_gates_for(sum);
  const float lower = camlens_gate_bound(sum, low), upper = camlens_gate_bound(sum, high);
  for_pixels(sum, [&](int64_t first, CamlensPixels pixels) {
    tiles.add(pixel(sum, first), pixel(other, first), pixels, static_cast<float>(low), static_cast<float>(high), lower, upper,
              place(out, first), words(gates, first));
  });
  return out;
}

at::Tensor pass(const at::Tensor* const* parts, size_t count, const at::Tensor& gates, bool guided) {
  TORCH_CHECK(count == 1 || count == 2, "gates take one part or two, not ", count);
  at::Tensor out, numbers[2];
  for (size_t i = 0; i < count; ++i) {
    const at::Tensor& part = *parts[i];
    TORCH_CHECK(part.sizes() == parts[0]->sizes() && part.scalar_type() == parts[0]->scalar_type(), "parts have shapes ", parts[0]->sizes(), " and ",
                part.sizes(), ", and types ", parts[0]->scalar_type(), " and ", part.scalar_type());
    camlens_check_gates(gates, part);
    const bool is_taken_over = is_ours(part);
    numbers[i] = part.contiguous(at::MemoryFormat::ChannelsLast);
    // What was copied is ours too.
    if (!out.defined() && (is_taken_over || !numbers[i].is_same(part))) out = numbers[i];
  }
  if (!out.defined()) out = at::empty_like(numbers[0]);
  const CamlensGateTiles& tiles = tiles_of(numbers[0]);
  const float floor = guided ? 0.0f : -std::numeric_limits<float>::infinity();
  for_pixels(out, [&](int64_t first, CamlensPixels pixels) {
    tiles.pass(pixel(numbers[0], first), count == 2 ? pixel(numbers[1], first) : nullptr, pixels, words(gates, first), floor, place(out, first));
  });
  return out;
}

}  // namespace

at::Tensor camlens_gates_for(const at::Tensor& result) {
  return at::empty({result.size(0), result.size(2), result.size(3), camlens_segments(result.size(1))}, result.options().dtype(at::kLong));
}

float camlens_gate_bound(const at::Tensor& result, double bound) {
  const float wide = static_cast<float>(bound);
  return result.scalar_type() == at::kBFloat16 ? static_cast<float>(at::BFloat16(wide)) : wide;
}

void camlens_check_gates(const at::Tensor& gates, const at::Tensor& gradient) {
  TORCH_CHECK(gradient.dim() == 4, "a gradient [N, C, H, W] is expected, not ", gradient.sizes());
  const bool fits = gates.dim() == 4 && gates.scalar_type() == at::kLong && gates.is_cpu() && gates.is_contiguous() &&
                    gates.size(0) == gradient.size(0) && gates.size(1) == gradient.size(2) && gates.size(2) == gradient.size(3) &&
                    gates.size(3) == camlens_segments(gradient.size(1));
  TORCH_CHECK(fits, "the gradient has shape ", gradient.sizes(), ", its gates ", gates.sizes());
}

extern "C" {

int camlens_gates(const at::Tensor* result, double low, double high, at::Tensor** gates, char** error) {
  *gates = nullptr;
  return guarded(error, [&]() -> int {
    const c10::AutoGradMode mode(false);
    return give(gates, gates_of(*result, low, high));
  });
}

int camlens_add_gates(const at::Tensor* sum, const at::Tensor* other, double low, double high, at::Tensor** result, at::Tensor** gates,
                      char** error) {
  *result = *gates = nullptr;
  return guarded(error, [&]() -> int {
    const c10::AutoGradMode mode(false);
    at::Tensor found;
    const int status = give(result, add(*sum, *other, low, high, found));
    give(gates, found);
    return status;
  });
}

int camlens_pass_gates(const at::Tensor* const* parts, size_t part_count, const at::Tensor* gates, bool guided, at::Tensor** gradient,
                       char** error) {
  *gradient = nullptr;
  return guarded(error, [&]() -> int {
    const c10::AutoGradMode mode(false);
    return give(gradient, pass(parts, part_count, *gates, guided));
  });
}
}
