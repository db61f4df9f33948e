#include "kernels.h"

#include "ours.h"
#include "parallel.h"
#include "processors.h"
#include "status.h"

#include <ATen/ATen.h>
#include <ATen/TensorIterator.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace {

// Where a gradient passes, and the least of it that does: a floor of -∞ lets every gradient pass. NaN passes any.
struct Opening {
  float low, high, floor;
  inline float pass(float gradient, float result) const {
    const float kept = gradient < floor ? floor : gradient;
    return result <= low || result >= high ? 0.0f : kept;
  }
};

// NaN stays NaN.
struct Range {
  float low, high;
  inline float clamp(float value) const {
    const float raised = value < low ? low : value;
    return raised > high ? high : raised;
  }
};

template <typename T, typename Stored = typename T::Stored>
inline void gate_one_of(Stored* out, const Stored* part, const Stored* result, int64_t count, Opening opening) {
  INDEPENDENT
  for (int64_t i = 0; i < count; ++i) out[i] = T::write(opening.pass(T::read(part[i]), T::read(result[i])));
}

template <typename T, typename Stored = typename T::Stored>
inline void gate_two_of(Stored* out, const Stored* one, const Stored* two, const Stored* result, int64_t count, Opening opening) {
  INDEPENDENT
  for (int64_t i = 0; i < count; ++i) out[i] = T::write(opening.pass(T::read(one[i]) + T::read(two[i]), T::read(result[i])));
}

template <typename T, typename Stored = typename T::Stored>
inline void add_clamped_of(Stored* out, const Stored* one, const Stored* two, int64_t count, Range range) {
  INDEPENDENT
  for (int64_t i = 0; i < count; ++i) out[i] = T::write(range.clamp(T::read(one[i]) + T::read(two[i])));
}

// Compilers clone functions, not templates.
FOR_EACH_PROCESSOR
void gate_one(float* out, const float* part, const float* result, int64_t count, Opening opening) {
  gate_one_of<Float32>(out, part, result, count, opening);
}

FOR_EACH_PROCESSOR
void gate_one(uint16_t* out, const uint16_t* part, const uint16_t* result, int64_t count, Opening opening) {
  gate_one_of<BFloat16>(out, part, result, count, opening);
}

FOR_EACH_PROCESSOR
void gate_two(float* out, const float* one, const float* two, const float* result, int64_t count, Opening opening) {
  gate_two_of<Float32>(out, one, two, result, count, opening);
}

FOR_EACH_PROCESSOR
void gate_two(uint16_t* out, const uint16_t* one, const uint16_t* two, const uint16_t* result, int64_t count, Opening opening) {
  gate_two_of<BFloat16>(out, one, two, result, count, opening);
}

FOR_EACH_PROCESSOR
void add_clamped(float* out, const float* one, const float* two, int64_t count, Range range) {
  add_clamped_of<Float32>(out, one, two, count, range);
}

FOR_EACH_PROCESSOR
void add_clamped(uint16_t* out, const uint16_t* one, const uint16_t* two, int64_t count, Range range) {
  add_clamped_of<BFloat16>(out, one, two, count, range);
}

// The gate in ATen's own operators, for what the loops above do not cover.
at::Tensor gate_by_parts(const at::Tensor& sum, const at::Tensor& result, double low, double high, bool guided) {
  at::Tensor passed = std::isnan(high) ? at::threshold_backward(sum, result, low) : at::hardtanh_backward(sum, result, low, high);
  return guided ? passed.relu_() : passed;
}

// Runs `row(pointers, count)` over the rows of tensors of one shape, the first of which is written; `element(pointers)` where the
// elements of a row do not lie next to each other.
template <typename Stored, int operands, typename Row, typename Element>
void for_each_row(at::TensorIterator& iterator, const Row& row, const Element& element) {
  iterator.for_each([&](char** data, const int64_t* strides, int64_t inner, int64_t outer) {
    bool is_dense = true;
    for (int i = 0; i < operands; ++i) is_dense = is_dense && strides[i] == static_cast<int64_t>(sizeof(Stored));
    for (int64_t at_row = 0; at_row < outer; ++at_row) {
      Stored* at[operands];
      for (int i = 0; i < operands; ++i) at[i] = reinterpret_cast<Stored*>(data[i] + at_row * strides[operands + i]);
      if (is_dense) {
        row(at, inner);
        continue;
      }
      for (int64_t i = 0; i < inner; ++i) {
        element(at);
        for (int k = 0; k < operands; ++k) at[k] = reinterpret_cast<Stored*>(reinterpret_cast<char*>(at[k]) + strides[k]);
      }
    }
  });
}

template <typename T>
void gate_into(const at::Tensor& out, const at::Tensor* const* parts, size_t count, const at::Tensor& result, Opening opening) {
  using Stored = typename T::Stored;
  at::TensorIteratorConfig config;
  config.add_output(out);
  for (size_t i = 0; i < count; ++i) config.add_const_input(*parts[i]);
  config.add_const_input(result);
  at::TensorIterator iterator = config.build();
  if (count == 1) {
    for_each_row<Stored, 3>(
        iterator, [=](Stored** at, int64_t length) { gate_one(at[0], at[1], at[2], length, opening); },
        [=](Stored** at) { *at[0] = T::write(opening.pass(T::read(*at[1]), T::read(*at[2]))); });
  } else {
    for_each_row<Stored, 4>(
        iterator, [=](Stored** at, int64_t length) { gate_two(at[0], at[1], at[2], at[3], length, opening); },
        [=](Stored** at) { *at[0] = T::write(opening.pass(T::read(*at[1]) + T::read(*at[2]), T::read(*at[3]))); });
  }
}

template <typename T>
void add_clamped_into(const at::Tensor& out, const at::Tensor& one, const at::Tensor& two, Range range) {
  using Stored = typename T::Stored;
  at::TensorIterator iterator = at::TensorIteratorConfig().add_output(out).add_const_input(one).add_const_input(two).build();
  for_each_row<Stored, 3>(
      iterator, [=](Stored** at, int64_t length) { add_clamped(at[0], at[1], at[2], length, range); },
      [=](Stored** at) { *at[0] = T::write(range.clamp(T::read(*at[1]) + T::read(*at[2]))); });
}

bool is_on_cpu_of(const at::Tensor& tensor, at::ScalarType kind) { return tensor.is_cpu() && tensor.scalar_type() == kind; }

at::Tensor gate(const at::Tensor* const* parts, size_t count, const at::Tensor& result, double low, double high, bool guided) {
  TORCH_CHECK(count == 1 || count == 2, "a gate takes one part or two, not ", count);
  for (size_t i = 0; i < count; ++i) {
    TORCH_CHECK(parts[i]->sizes() == result.sizes(), "the gradient has shape ", parts[i]->sizes(), ", the result ", result.sizes());
  }
  const at::ScalarType kind = result.scalar_type();
  bool is_covered = !std::isnan(low) && result.is_cpu() && (kind == at::kFloat || kind == at::kBFloat16);
  for (size_t i = 0; i < count; ++i) is_covered = is_covered && is_on_cpu_of(*parts[i], kind);
  if (!is_covered) return gate_by_parts(count == 2 ? at::add(*parts[0], *parts[1]) : *parts[0], result, low, high, guided);

  at::Tensor out;
  for (size_t i = 0; i < count && !out.defined(); ++i) {
    if (is_ours(*parts[i]) && parts[i]->strides() == result.strides()) out = *parts[i];
  }
  if (!out.defined()) out = at::empty_like(result);
  const float floor = guided ? 0.0f : -std::numeric_limits<float>::infinity();
  const float lower = static_cast<float>(low), upper = static_cast<float>(high);
  if (kind == at::kFloat) {
    gate_into<Float32>(out, parts, count, result, Opening{lower, upper, floor});
  } else {
    // A result that was clamped was rounded after that: so is the bound that it is compared with.
    const auto rounded = [](float bound) { return BFloat16::read(BFloat16::write(bound)); };
    gate_into<BFloat16>(out, parts, count, result, Opening{rounded(lower), rounded(upper), floor});
  }
  return out;
}

at::Tensor add_clamped(const at::Tensor& sum, const at::Tensor& other, double low, double high) {
  TORCH_CHECK(sum.sizes() == other.sizes(), "the sum has shape ", sum.sizes(), ", what is added ", other.sizes());
  const at::ScalarType kind = sum.scalar_type();
  const at::Tensor out = is_ours(sum) ? sum : at::empty_like(sum);
  const Range range{static_cast<float>(low), static_cast<float>(high)};
  if (is_on_cpu_of(sum, at::kFloat) && is_on_cpu_of(other, kind)) {
    add_clamped_into<Float32>(out, sum, other, range);
  } else if (is_on_cpu_of(sum, at::kBFloat16) && is_on_cpu_of(other, kind)) {
    add_clamped_into<BFloat16>(out, sum, other, range);
  } else {
    return at::add(sum, other).clamp_(low, high);
  }
  return out;
}

template <typename Stored>
void interleave(Stored* to, const Stored* from, int64_t channels, int64_t count, int64_t apart) {
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t c = 0; c < channels; ++c) to[i * channels + c] = from[c * apart + i];
  }
}

template <typename Stored>
void interleave_rows(const at::Tensor& out, const at::Tensor& tensor) {
  const int64_t channels = tensor.size(1), across = tensor.size(3), pixels = tensor.size(2) * across;
  Stored* const first_to = static_cast<Stored*>(out.data_ptr());
  const Stored* const first_from = static_cast<const Stored*>(tensor.const_data_ptr());
  in_parallel(tensor.size(0) * tensor.size(2), [&](int64_t begin, int64_t end) {
    for (int64_t line = begin; line < end; ++line) {
      Stored* const to = first_to + line * across * channels;
      const Stored* const from = first_from + line / tensor.size(2) * channels * pixels + line % tensor.size(2) * across;
      // Where the compiler knows the number, it unrolls.
      if (channels == 3) {
        interleave(to, from, 3, across, pixels);
      } else {
        interleave(to, from, 4, across, pixels);
      }
    }
  });
}

at::Tensor channels_last(const at::Tensor& tensor) {
  if (tensor.is_contiguous(at::MemoryFormat::ChannelsLast)) return tensor;
  const bool is_picture = tensor.dim() == 4 && tensor.is_cpu() && tensor.is_contiguous() && (tensor.size(1) == 3 || tensor.size(1) == 4);
  const size_t width = tensor.element_size();
  if (!is_picture || (width != sizeof(uint32_t) && width != sizeof(uint16_t))) return tensor.contiguous(at::MemoryFormat::ChannelsLast);
  at::Tensor out = at::empty_like(tensor, at::MemoryFormat::ChannelsLast);
  if (width == sizeof(uint32_t)) {
    interleave_rows<uint32_t>(out, tensor);
  } else {
    interleave_rows<uint16_t>(out, tensor);
  }
  return out;
}

}  // namespace

extern "C" {

int camlens_gate(const at::Tensor* const* parts, size_t part_count, const at::Tensor* result, double low, double high, bool guided,
                 at::Tensor** gradient, char** error) {
  *gradient = nullptr;
  return guarded(error, [&]() -> int {
    const c10::AutoGradMode mode(false);
    return give(gradient, gate(parts, part_count, *result, low, high, guided));
  });
}

int camlens_add(const at::Tensor* sum, const at::Tensor* other, at::Tensor** result, char** error) {
  *result = nullptr;
  return guarded(error, [&]() -> int {
    const c10::AutoGradMode mode(false);
    const bool in_place = is_ours(*sum) && sum->sizes() == other->sizes() && sum->scalar_type() == other->scalar_type();
    return give(result, in_place ? at::add_out(const_cast<at::Tensor&>(*sum), *sum, *other) : at::add(*sum, *other));
  });
}

int camlens_add_clamped(const at::Tensor* sum, const at::Tensor* other, double low, double high, at::Tensor** result, char** error) {
  *result = nullptr;
  return guarded(error, [&]() -> int {
    const c10::AutoGradMode mode(false);
    return give(result, add_clamped(*sum, *other, low, high));
  });
}

int camlens_channels_last(const at::Tensor* tensor, at::Tensor** result, char** error) {
  *result = nullptr;
  return guarded(error, [&]() -> int {
    const c10::AutoGradMode mode(false);
    return give(result, channels_last(*tensor));
  });
}
}
