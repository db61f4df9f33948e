#include "elementwise.h"

#include "../status.h"
#include "dispatch.h"
#include "multiversion.h"
#include "parallel.h"

#include <limits>

namespace camlens {

namespace {

// Where a gradient passes, and its least value there: with a floor of -∞ every gradient passes as it is. A bound that
// is NaN does not close; a result that is NaN lets the gradient pass.
struct Gate {
  float low, high, floor;
  inline float pass(float gradient, float result) const {
    const float raised = gradient < floor ? floor : gradient;
    return result <= low || result >= high ? 0.0f : raised;
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
inline void gate_one_of(Stored* out, const Stored* part, const Stored* result, int64_t count, Gate gate) {
  INDEPENDENT
  for (int64_t i = 0; i < count; ++i) out[i] = T::write(gate.pass(T::read(part[i]), T::read(result[i])));
}

template <typename T, typename Stored = typename T::Stored>
inline void gate_two_of(Stored* out, const Stored* left, const Stored* right, const Stored* result, int64_t count,
                        Gate gate) {
  INDEPENDENT
  for (int64_t i = 0; i < count; ++i) {
    out[i] = T::write(gate.pass(T::read(left[i]) + T::read(right[i]), T::read(result[i])));
  }
}

template <typename T, typename Stored = typename T::Stored>
inline void add_clamped_of(Stored* out, const Stored* left, const Stored* right, int64_t count, Range range) {
  INDEPENDENT
  for (int64_t i = 0; i < count; ++i) out[i] = T::write(range.clamp(T::read(left[i]) + T::read(right[i])));
}

// Compilers clone functions, not templates: one function per type.
MULTIVERSION
void gate_one(float* out, const float* part, const float* result, int64_t count, Gate gate) {
  gate_one_of<Float32>(out, part, result, count, gate);
}

MULTIVERSION
void gate_one(uint16_t* out, const uint16_t* part, const uint16_t* result, int64_t count, Gate gate) {
  gate_one_of<BFloat16>(out, part, result, count, gate);
}

MULTIVERSION
void gate_two(float* out, const float* left, const float* right, const float* result, int64_t count, Gate gate) {
  gate_two_of<Float32>(out, left, right, result, count, gate);
}

MULTIVERSION
void gate_two(uint16_t* out, const uint16_t* left, const uint16_t* right, const uint16_t* result, int64_t count,
              Gate gate) {
  gate_two_of<BFloat16>(out, left, right, result, count, gate);
}

MULTIVERSION
void add_clamped(float* out, const float* left, const float* right, int64_t count, Range range) {
  add_clamped_of<Float32>(out, left, right, count, range);
}

MULTIVERSION
void add_clamped(uint16_t* out, const uint16_t* left, const uint16_t* right, int64_t count, Range range) {
  add_clamped_of<BFloat16>(out, left, right, count, range);
}

// What is done to elements: `row` to `count` consecutive elements, `element` to one. `at` has each operand's first
// element.
template <typename T>
struct PassOne {
  using Stored = typename T::Stored;
  static constexpr int operands = 3;
  Gate gate;
  void row(Stored** at, int64_t count) const { gate_one(at[0], at[1], at[2], count, gate); }
  void element(Stored** at) const { *at[0] = T::write(gate.pass(T::read(*at[1]), T::read(*at[2]))); }
};

template <typename T>
struct PassTwo {
  using Stored = typename T::Stored;
  static constexpr int operands = 4;
  Gate gate;
  void row(Stored** at, int64_t count) const { gate_two(at[0], at[1], at[2], at[3], count, gate); }
  void element(Stored** at) const { *at[0] = T::write(gate.pass(T::read(*at[1]) + T::read(*at[2]), T::read(*at[3]))); }
};

template <typename T>
struct AddClamped {
  using Stored = typename T::Stored;
  static constexpr int operands = 3;
  Range range;
  void row(Stored** at, int64_t count) const { add_clamped(at[0], at[1], at[2], count, range); }
  void element(Stored** at) const { *at[0] = T::write(range.clamp(T::read(*at[1]) + T::read(*at[2]))); }
};

// Applies `operation` to all elements of tensors of one shape; the first tensor is written.
template <typename Operation>
void apply(const at::Tensor* const* tensors, const Operation& operation) {
  using Stored = typename Operation::Stored;
  constexpr int operands = Operation::operands;
  const auto loop = [](const void* context, char** data, const int64_t* strides, int64_t inner, int64_t outer) {
    const Operation& operation = *static_cast<const Operation*>(context);
    bool is_dense = true;
    for (int i = 0; i < operands; ++i) is_dense = is_dense && strides[i] == static_cast<int64_t>(sizeof(Stored));
    for (int64_t row = 0; row < outer; ++row) {
      Stored* at[operands];
      for (int i = 0; i < operands; ++i) at[i] = reinterpret_cast<Stored*>(data[i] + row * strides[operands + i]);
      if (is_dense) {
        operation.row(at, inner);
        continue;
      }
      for (int64_t i = 0; i < inner; ++i) {
        operation.element(at);
        for (int k = 0; k < operands; ++k) {
          at[k] = reinterpret_cast<Stored*>(reinterpret_cast<char*>(at[k]) + strides[k]);
        }
      }
    }
  };
  for_each_element(tensors, operands, loop, &operation);
}

template <typename T>
void pass(const at::Tensor* gradient, const at::Tensor* const* parts, size_t part_count, const at::Tensor* result,
          Gate gate) {
  if (part_count == 1) {
    const at::Tensor* const tensors[] = {gradient, parts[0], result};
    apply(tensors, PassOne<T>{gate});
  } else {
    const at::Tensor* const tensors[] = {gradient, parts[0], parts[1], result};
    apply(tensors, PassTwo<T>{gate});
  }
}

template <typename Stored>
void interleave_line(Stored* to, const Stored* from, int64_t channels, int64_t width, int64_t channel_stride) {
  for (int64_t x = 0; x < width; ++x) {
    for (int64_t c = 0; c < channels; ++c) to[x * channels + c] = from[c * channel_stride + x];
  }
}

template <typename Stored>
void interleave(const Stored* from, int64_t images, int64_t channels, int64_t height, int64_t width, Stored* to) {
  const int64_t pixels = height * width;
  in_parallel(images * height, [&](int64_t begin, int64_t end) {
    for (int64_t line = begin; line < end; ++line) {
      Stored* const to_line = to + line * width * channels;
      const Stored* const from_line = from + line / height * channels * pixels + line % height * width;
      // The compiler unrolls a loop whose length it knows.
      if (channels == 3) {
        interleave_line(to_line, from_line, 3, width, pixels);
      } else {
        interleave_line(to_line, from_line, 4, width, pixels);
      }
    }
  });
}

}  // namespace

}  // namespace camlens

extern "C" {

int camlens_gate(int32_t element, const at::Tensor* gradient, const at::Tensor* const* parts, size_t part_count,
                 const at::Tensor* result, float low, float high, bool guided, char** error) {
  using namespace camlens;
  return guarded(error, [&]() -> int {
    const Gate gate{low, high, guided ? 0.0f : -std::numeric_limits<float>::infinity()};
    if (static_cast<ElementType>(element) == ElementType::FLOAT32) {
      pass<Float32>(gradient, parts, part_count, result, gate);
    } else {
      pass<BFloat16>(gradient, parts, part_count, result, gate);
    }
    return CAMLENS_OK;
  });
}

int camlens_add_clamped(int32_t element, const at::Tensor* sum, const at::Tensor* left, const at::Tensor* right,
                        float low, float high, char** error) {
  using namespace camlens;
  return guarded(error, [&]() -> int {
    const at::Tensor* const tensors[] = {sum, left, right};
    if (static_cast<ElementType>(element) == ElementType::FLOAT32) {
      apply(tensors, AddClamped<Float32>{{low, high}});
    } else {
      apply(tensors, AddClamped<BFloat16>{{low, high}});
    }
    return CAMLENS_OK;
  });
}

int camlens_interleave(const void* from, int64_t images, int64_t channels, int64_t height, int64_t width,
                       int64_t element_bytes, void* to, char** error) {
  using namespace camlens;
  return guarded(error, [&]() -> int {
    if (element_bytes == sizeof(uint32_t)) {
      interleave(static_cast<const uint32_t*>(from), images, channels, height, width, static_cast<uint32_t*>(to));
    } else {
      interleave(static_cast<const uint16_t*>(from), images, channels, height, width, static_cast<uint16_t*>(to));
    }
    return CAMLENS_OK;
  });
}
}
