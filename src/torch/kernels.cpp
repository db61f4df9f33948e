#include "kernels.h"

#include "status.h"

#include <ATen/ATen.h>
#include <ATen/TensorIterator.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <limits>

// A function that is compiled for several instruction sets; the best that the processor has is called.
#if defined(__x86_64__) && defined(__GNUC__) && defined(__linux__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

// Elements are independent of each other, though the result may lie where an operand does.
#if defined(__clang__)
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define INDEPENDENT _Pragma("GCC ivdep")
#else
#define INDEPENDENT
#endif

namespace {

// Nobody else can see what is written into the tensor.
bool is_ours(const at::Tensor& tensor) {
  return tensor.use_count() == 1 && tensor.has_storage() && tensor.storage().use_count() == 1 && tensor.is_non_overlapping_and_dense();
}

int give(at::Tensor** result, at::Tensor tensor) {
  *result = new at::Tensor(std::move(tensor));
  return CAMLENS_OK;
}

// What a gate does to one element. A floor of -∞ lets every gradient pass, NaN passes any.
inline float through(float gradient, float result, float low, float high, float floor) {
  const float kept = gradient < floor ? floor : gradient;
  return result <= low || result >= high ? 0.0f : kept;
}

FOR_EACH_PROCESSOR
void gate_one(float* out, const float* part, const float* result, int64_t count, float low, float high, float floor) {
  INDEPENDENT
  for (int64_t i = 0; i < count; ++i) out[i] = through(part[i], result[i], low, high, floor);
}

FOR_EACH_PROCESSOR
void gate_two(float* out, const float* one, const float* two, const float* result, int64_t count, float low, float high, float floor) {
  INDEPENDENT
  for (int64_t i = 0; i < count; ++i) out[i] = through(one[i] + two[i], result[i], low, high, floor);
}

// The gate in ATen's own operators, for what the loops above do not cover.
at::Tensor gate_by_parts(const at::Tensor& sum, const at::Tensor& result, double low, double high, bool guided) {
  at::Tensor passed = std::isnan(high) ? at::threshold_backward(sum, result, low) : at::hardtanh_backward(sum, result, low, high);
  return guided ? passed.relu_() : passed;
}

at::Tensor gate(const at::Tensor* const* parts, size_t count, const at::Tensor& result, double low, double high, bool guided) {
  TORCH_CHECK(count == 1 || count == 2, "a gate takes one part or two, not ", count);
  for (size_t i = 0; i < count; ++i) {
    TORCH_CHECK(parts[i]->sizes() == result.sizes(), "the gradient has shape ", parts[i]->sizes(), ", the result ", result.sizes());
  }
  bool covered = !std::isnan(low) && result.is_cpu() && result.scalar_type() == at::kFloat;
  for (size_t i = 0; i < count; ++i) covered = covered && parts[i]->is_cpu() && parts[i]->scalar_type() == at::kFloat;
  if (!covered) return gate_by_parts(count == 2 ? at::add(*parts[0], *parts[1]) : *parts[0], result, low, high, guided);

  at::Tensor out;
  for (size_t i = 0; i < count && !out.defined(); ++i) {
    if (is_ours(*parts[i]) && parts[i]->strides() == result.strides()) out = *parts[i];
  }
  if (!out.defined()) out = at::empty_like(result);
  at::TensorIteratorConfig config;
  config.add_output(out);
  for (size_t i = 0; i < count; ++i) config.add_const_input(*parts[i]);
  config.add_const_input(result);
  at::TensorIterator iterator = config.build();
  const float lower = static_cast<float>(low), upper = static_cast<float>(high);
  const float floor = guided ? 0.0f : -std::numeric_limits<float>::infinity();
  const bool adds = count == 2;
  iterator.for_each([=](char** data, const int64_t* strides, int64_t inner, int64_t outer) {
    const int operands = adds ? 4 : 3;
    bool is_dense = true;
    for (int i = 0; i < operands; ++i) is_dense = is_dense && strides[i] == static_cast<int64_t>(sizeof(float));
    for (int64_t row = 0; row < outer; ++row) {
      char* at[4];
      for (int i = 0; i < operands; ++i) at[i] = data[i] + row * strides[operands + i];
      const auto floats = [&](int i) { return reinterpret_cast<float*>(at[i]); };
      if (is_dense && adds) {
        gate_two(floats(0), floats(1), floats(2), floats(3), inner, lower, upper, floor);
      } else if (is_dense) {
        gate_one(floats(0), floats(1), floats(2), inner, lower, upper, floor);
      } else {
        for (int64_t i = 0; i < inner; ++i) {
          const float sum = adds ? *floats(1) + *floats(2) : *floats(1);
          *floats(0) = through(sum, *floats(operands - 1), lower, upper, floor);
          for (int k = 0; k < operands; ++k) at[k] += strides[k];
        }
      }
    }
  });
  return out;
}

template <int channels>
void interleave(float* to, const float* from, int64_t pixels) {
  for (int64_t i = 0; i < pixels; ++i) {
    for (int c = 0; c < channels; ++c) to[i * channels + c] = from[c * pixels + i];
  }
}

at::Tensor channels_last(const at::Tensor& tensor) {
  if (tensor.is_contiguous(at::MemoryFormat::ChannelsLast)) return tensor;
  const bool is_picture = tensor.dim() == 4 && tensor.is_cpu() && tensor.scalar_type() == at::kFloat && tensor.is_contiguous() &&
                          (tensor.size(1) == 3 || tensor.size(1) == 4);
  if (!is_picture) return tensor.contiguous(at::MemoryFormat::ChannelsLast);
  at::Tensor out = at::empty_like(tensor, at::MemoryFormat::ChannelsLast);
  const int64_t channels = tensor.size(1), pixels = tensor.size(2) * tensor.size(3);
  for (int64_t row = 0; row < tensor.size(0); ++row) {
    float* to = out.data_ptr<float>() + row * channels * pixels;
    const float* from = tensor.const_data_ptr<float>() + row * channels * pixels;
    if (channels == 3) {
      interleave<3>(to, from, pixels);
    } else {
      interleave<4>(to, from, pixels);
    }
  }
  return out;
}

at::Tensor unite_phases(const at::Tensor& phases, int64_t stride, int64_t top, int64_t left, int64_t height, int64_t width) {
  TORCH_CHECK(phases.dim() == 4 && stride > 0 && phases.size(1) % (stride * stride) == 0, "no phases: ", phases.sizes());
  const int64_t channels = phases.size(1) / (stride * stride);
  TORCH_CHECK(top >= 0 && left >= 0 && top + (height - 1) / stride < phases.size(2) && left + (width - 1) / stride < phases.size(3),
              "the phases do not reach that far");
  const at::Tensor from = phases.to(at::kFloat).contiguous(at::MemoryFormat::ChannelsLast);
  at::Tensor out = at::empty({phases.size(0), channels, height, width}, from.options());
  const int64_t depth = from.size(1), across = from.size(3);
  float* to = out.data_ptr<float>();
  for (int64_t row = 0; row < out.size(0); ++row) {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t y = 0; y < height; ++y) {
        const float* pixel = from.const_data_ptr<float>() +
                             ((row * from.size(2) + y / stride + top) * across + left) * depth + (c * stride + y % stride) * stride;
        for (int64_t x = 0; x < width; x += stride, pixel += depth) {
          for (int64_t phase = 0; phase < std::min(stride, width - x); ++phase) *to++ = pixel[phase];
        }
      }
    }
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

int camlens_channels_last(const at::Tensor* tensor, at::Tensor** result, char** error) {
  *result = nullptr;
  return guarded(error, [&]() -> int {
    const c10::AutoGradMode mode(false);
    return give(result, channels_last(*tensor));
  });
}

int camlens_unite_phases(const at::Tensor* phases, int64_t stride, int64_t top, int64_t left, int64_t height, int64_t width,
                         at::Tensor** result, char** error) {
  *result = nullptr;
  return guarded(error, [&]() -> int {
    const c10::AutoGradMode mode(false);
    return give(result, unite_phases(*phases, stride, top, left, height, width));
  });
}
}
