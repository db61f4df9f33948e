// Transforms are in float32 for images of either type, so instructions for bfloat16 have no table of their own.
#if !defined(__AVX512BF16__)
#include "winograd.h"

#include "simd.h"

using namespace camlens;

namespace {

// F(2×2, 3×3). Interpolation points 0, ±1 and ∞: Winograd 1980; Lavin and Gray 2016 (arXiv 1509.09308).
struct Two {
  static constexpr int EDGE = 4, STEP = 2;
  // Bᵀ times a column; elements are `step` apart.
  static inline void evaluate(const Vector* d, Vector* to, int step) {
    to[0 * step] = d[0 * step] - d[2 * step];
    to[1 * step] = d[1 * step] + d[2 * step];
    to[2 * step] = d[2 * step] - d[1 * step];
    to[3 * step] = d[1 * step] - d[3 * step];
  }
  // Aᵀ times a column.
  static inline void interpolate(const Vector* m, int from_step, Vector* to, int to_step) {
    to[0 * to_step] = m[0 * from_step] + m[1 * from_step] + m[2 * from_step];
    to[1 * to_step] = m[1 * from_step] - m[2 * from_step] - m[3 * from_step];
  }
};

// F(4×4, 3×3). Interpolation points 0, ±A, ±B and ∞. The error is half that of the usual points ±1 and ±2; Barabasz et
// al. 2020 (arXiv 1803.10986) and Alam et al. 2022 (arXiv 2201.10369) report the same for similar points.
struct Four {
  static constexpr int EDGE = 6, STEP = 4;
  static constexpr float A = 0.75f, B = 1.5f, AA = A * A, BB = B * B;
  static inline void evaluate(const Vector* d, Vector* to, int step) {
    const Vector even_a = d[4 * step] - BB * d[2 * step], odd_a = A * (d[3 * step] - BB * d[1 * step]);
    const Vector even_b = d[4 * step] - AA * d[2 * step], odd_b = B * (d[3 * step] - AA * d[1 * step]);
    to[0 * step] = AA * BB * d[0 * step] - (AA + BB) * d[2 * step] + d[4 * step];
    to[1 * step] = even_a + odd_a;
    to[2 * step] = even_a - odd_a;
    to[3 * step] = even_b + odd_b;
    to[4 * step] = even_b - odd_b;
    to[5 * step] = AA * BB * d[1 * step] - (AA + BB) * d[3 * step] + d[5 * step];
  }
  static inline void interpolate(const Vector* m, int from_step, Vector* to, int to_step) {
    const Vector sum_a = m[1 * from_step] + m[2 * from_step], difference_a = m[1 * from_step] - m[2 * from_step];
    const Vector sum_b = m[3 * from_step] + m[4 * from_step], difference_b = m[3 * from_step] - m[4 * from_step];
    to[0 * to_step] = m[0] + sum_a + sum_b;
    to[1 * to_step] = A * difference_a + B * difference_b;
    to[2 * to_step] = AA * sum_a + BB * sum_b;
    to[3 * to_step] = A * AA * difference_a + B * BB * difference_b + m[5 * from_step];
  }
};

template <typename Scheme, typename Element>
void input(const void* const* pixels, int64_t channels, float* to, int64_t stride) {
  constexpr int EDGE = Scheme::EDGE;
  for (int64_t c = 0; c < channels; c += WIDTH) {
    Vector d[EDGE * EDGE], half[EDGE * EDGE];
    for (int i = 0; i < EDGE * EDGE; ++i) d[i] = load(static_cast<const Element*>(pixels[i]) + c);
    for (int x = 0; x < EDGE; ++x) Scheme::evaluate(d + x, half + x, EDGE);
    for (int y = 0; y < EDGE; ++y) Scheme::evaluate(half + y * EDGE, d + y * EDGE, 1);
    for (int i = 0; i < EDGE * EDGE; ++i) store(to + i * stride + c, d[i]);
  }
}

template <typename Scheme, typename Element>
void output(const float* products, int64_t stride, int64_t channels, const float* bias, float low, float high,
            void* const* pixels) {
  constexpr int EDGE = Scheme::EDGE, STEP = Scheme::STEP;
  for (int64_t c = 0; c < channels; c += WIDTH) {
    Vector m[EDGE * EDGE], half[STEP * EDGE], result[STEP * STEP];
    for (int i = 0; i < EDGE * EDGE; ++i) m[i] = load(products + i * stride + c);
    for (int x = 0; x < EDGE; ++x) Scheme::interpolate(m + x, EDGE, half + x, EDGE);
    for (int y = 0; y < STEP; ++y) Scheme::interpolate(half + y * EDGE, 1, result + y * STEP, 1);
    const Vector shift = bias == nullptr ? Vector{} : load(bias + c);
    for (int i = 0; i < STEP * STEP; ++i) {
      if (pixels[i] == nullptr) continue;
      store(static_cast<Element*>(pixels[i]) + c, clamp(result[i] + shift, low, high));
    }
  }
}

template <typename Scheme, typename Element>
constexpr WinogradTransforms transforms() {
  return {input<Scheme, Element>, output<Scheme, Element>};
}

template <typename Scheme>
constexpr WinogradScheme scheme() {
  return {Scheme::EDGE, Scheme::STEP, transforms<Scheme, float>(), transforms<Scheme, Bfloat16>()};
}

}  // namespace

extern "C" const WinogradKernels CAMLENS_TABLE(winograd) = {scheme<Two>(), scheme<Four>()};
#endif
