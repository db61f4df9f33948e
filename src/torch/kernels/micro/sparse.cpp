#include "sparse.h"

#include "dot_step.h"
#include "gemm.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

using namespace camlens;

namespace {

constexpr int64_t SEGMENT = MASK_BITS;
// Results are prefetched this many rows before they are written.
constexpr int64_t AHEAD = 8;
// A panel's columns for one element of depth.
constexpr int64_t ROW_BYTES = PANEL * sizeof(Element);

// The mask of nonzero elements among `count`, at most a segment; with `is_guided`, of elements above zero or NaN.
#if defined(__AVX512BF16__)
template <bool is_guided>
uint64_t mask_of(const Element* elements, int64_t count) {
  const __m512i magnitude = _mm512_set1_epi16(0x7fff), infinite = _mm512_set1_epi16(0x7f80);
  uint64_t mask = 0;
  for (int64_t k = 0; k < count; k += 32) {
    const __mmask32 within = count - k >= 32 ? 0xffffffff : (1u << (count - k)) - 1;
    const __m512i values = _mm512_maskz_loadu_epi16(within, elements + k);
    const __mmask32 found = is_guided ? _mm512_cmpgt_epi16_mask(values, _mm512_setzero_si512()) |
                                            _mm512_cmpgt_epi16_mask(_mm512_and_si512(values, magnitude), infinite)
                                      : _mm512_test_epi16_mask(values, magnitude);
    mask |= static_cast<uint64_t>(found) << k;
  }
  return mask;
}
#elif defined(__AVX512F__)
template <bool is_guided>
uint64_t mask_of(const Element* elements, int64_t count) {
  uint64_t mask = 0;
  for (int64_t k = 0; k < count; k += 16) {
    const __mmask16 within = static_cast<__mmask16>(count - k >= 16 ? 0xffff : (1 << (count - k)) - 1);
    const __m512 values = _mm512_maskz_loadu_ps(within, elements + k);
    const __mmask16 found = _mm512_cmp_ps_mask(values, _mm512_setzero_ps(), is_guided ? _CMP_NLE_UQ : _CMP_NEQ_UQ);
    mask |= static_cast<uint64_t>(found) << k;
  }
  return mask;
}
#else
template <bool is_guided>
uint64_t mask_of(const Element* elements, int64_t count) {
  uint64_t mask = 0;
  int64_t k = 0;
#if defined(__AVX2__)
  for (; k + 8 <= count; k += 8) {
    const __m256 values = _mm256_loadu_ps(elements + k);
    const __m256 found = _mm256_cmp_ps(values, _mm256_setzero_ps(), is_guided ? _CMP_NLE_UQ : _CMP_NEQ_UQ);
    mask |= static_cast<uint64_t>(_mm256_movemask_ps(found)) << k;
  }
#endif
  for (; k < count; ++k) mask |= static_cast<uint64_t>(is_guided ? !(elements[k] <= 0) : elements[k] != 0) << k;
  return mask;
}
#endif

int64_t find(const char* first, int64_t rows, int64_t stride, int64_t depth, SparseMask mask, uint64_t* masks) {
  int64_t found = 0;
  for (int64_t row = 0; row < rows; ++row, first += stride) {
    const Element* const elements = reinterpret_cast<const Element*>(first);
    for (int64_t begin = 0; begin < depth; begin += SEGMENT) {
      const int64_t count = depth - begin < SEGMENT ? depth - begin : SEGMENT;
      *masks = mask.is_guided ? mask_of<true>(elements + begin, count) : mask_of<false>(elements + begin, count);
      if (mask.gates != nullptr) *masks &= *mask.gates++;
      found += __builtin_popcountll(*masks++);
    }
  }
  return found;
}

// Clears the lowest bit that is set and returns its index.
inline int64_t take_lowest(uint64_t& mask) {
  const int64_t index = __builtin_ctzll(mask);
  mask &= mask - 1;
  return index;
}

// Adds the products of a segment's nonzero elements to the sums. `first` is the first panel's row for the segment's
// first element; panels are `stride` bytes apart.
#if defined(__AVX512BF16__)
// Adds the products of two elements at once: one instruction multiplies a pair of elements with pairs of weights.
template <int panels>
inline void add_pair(Vector (&sum)[panels][PARTS], uint32_t pair, const char* one, const char* other, int64_t stride) {
  static_assert(PARTS == 2, "the columns of two rows are two vectors of pairs");
  const __m512bh values = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int32_t>(pair)));
  for (int p = 0; p < panels; ++p) {
    __m512i low = _mm512_loadu_si512(one + p * stride), high = _mm512_loadu_si512(other + p * stride);
    // Keeps both in registers. The compiler would load them again for the other half, and loads are the bottleneck.
    asm("" : "+v"(low), "+v"(high));
    sum[p][0] = multiply_add(sum[p][0], values, reinterpret_cast<__m512bh>(_mm512_unpacklo_epi16(low, high)));
    sum[p][1] = multiply_add(sum[p][1], values, reinterpret_cast<__m512bh>(_mm512_unpackhi_epi16(low, high)));
  }
}

template <int panels>
inline void add_products(Vector (&sum)[panels][PARTS], uint64_t mask, const Element* elements, const char* first,
                         int64_t stride) {
  for (int64_t pairs = __builtin_popcountll(mask) / 2; pairs > 0; --pairs) {
    const int64_t one = take_lowest(mask), other = take_lowest(mask);
    const uint32_t pair = elements[one].bits | static_cast<uint32_t>(elements[other].bits) << 16;
    add_pair<panels>(sum, pair, first + one * ROW_BYTES, first + other * ROW_BYTES, stride);
  }
  if (mask == 0) return;
  const int64_t last = take_lowest(mask);
  add_pair<panels>(sum, elements[last].bits, first + last * ROW_BYTES, first + last * ROW_BYTES, stride);
}
#else
template <int panels>
inline void add_products(Vector (&sum)[panels][PARTS], uint64_t mask, const Element* elements, const char* first,
                         int64_t stride) {
  while (mask != 0) {
    const int64_t k = take_lowest(mask);
    const Vector value = broadcast(elements[k]);
    for (int p = 0; p < panels; ++p) {
      const float* const row = reinterpret_cast<const float*>(first + k * ROW_BYTES + p * stride);
      for (int part = 0; part < PARTS; ++part) sum[p][part] += value * load(row + part * WIDTH);
    }
  }
}
#endif

// `is_first`: sums begin with `begin`, or with zero if it is null; otherwise with what they hold. Each row prefetches
// `lines` cache lines of each panel of the next call, from byte `offset` on.
template <int panels, bool is_first>
void multiply_run(SparseRun run, const char* first, int64_t stride, const float* begin, const char* const* next,
                  int64_t offset, int64_t lines) {
  for (; run.count > 0; --run.count) {
    for (const int64_t end = offset + lines * CACHE_LINE_BYTES; offset < end; offset += CACHE_LINE_BYTES) {
      for (int p = 0; p < panels; ++p) __builtin_prefetch(next[p] + offset, 0, 2);
    }
    // Sums of floats may be the result itself; others are scratch memory that is in the cache.
    if (is_first && sizeof(Element) == sizeof(float) && run.count > AHEAD) {
      prefetch_for_write(reinterpret_cast<const char*>(run.sums + AHEAD * run.sum_stride),
                         panels * PANEL * sizeof(float));
    }
    Vector sum[panels][PARTS] = {};
    if (!is_first) begin = run.sums;
    for (int p = 0; p < panels && begin != nullptr; ++p) {
      for (int part = 0; part < PARTS; ++part) sum[p][part] = load(begin + p * PANEL + part * WIDTH);
    }
    add_products<panels>(sum, *run.masks, reinterpret_cast<const Element*>(run.elements), first, stride);
    for (int p = 0; p < panels; ++p) {
      for (int part = 0; part < PARTS; ++part) store(run.sums + p * PANEL + part * WIDTH, sum[p][part]);
    }
    run.elements += run.element_stride;
    run.masks += run.mask_stride;
    run.sums += run.sum_stride;
  }
}

template <int panels, bool is_first>
void multiply_panels(const SparseProduct& product) {
  const char* const first = product.panels.first;
  const int64_t stride = product.panels.stride;
  int64_t offset = 0, rows = 0, left = product.prefetch_bytes / CACHE_LINE_BYTES;
  for (int64_t i = 0; i < product.run_count; ++i) rows += product.runs[i].count;
  if (rows == 0) return;
  // Each of the first rows prefetches as many lines as spread the prefetches over all rows.
  const int64_t lines = (left + rows - 1) / rows;
  for (int64_t i = 0; i < product.run_count; ++i) {
    SparseRun run = product.runs[i];
    run.masks += product.segment;
    run.elements += product.segment * SEGMENT * sizeof(Element);
    const int64_t all = run.count, prefetching = left <= 0 ? 0 : left / lines < all ? left / lines : all;
    run.count = prefetching;
    if (prefetching > 0)
      multiply_run<panels, is_first>(run, first, stride, product.bias, product.prefetch, offset, lines);
    offset += prefetching * lines * CACHE_LINE_BYTES;
    left -= prefetching * lines;
    run.count = all - prefetching;
    run.elements += prefetching * run.element_stride;
    run.masks += prefetching * run.mask_stride;
    run.sums += prefetching * run.sum_stride;
    multiply_run<panels, is_first>(run, first, stride, product.bias, product.prefetch, 0, 0);
  }
}

template <int panels>
void multiply_with(const SparseProduct& product) {
  if (product.is_first) return multiply_panels<panels, true>(product);
  multiply_panels<panels, false>(product);
}

void multiply(const SparseProduct* product) {
  static_assert(SPARSE_PANELS == 4, "one case for each number of panels");
  switch (product->panels.count) {
    case 1:
      return multiply_with<1>(*product);
    case 2:
      return multiply_with<2>(*product);
    case 3:
      return multiply_with<3>(*product);
    default:
      return multiply_with<4>(*product);
  }
}

#if defined(__AVX512BF16__)
constexpr auto transpose = nullptr;
#else
// Transposes WIDTH rows of WIDTH columns.
inline void transpose_block(const float* from, float* to) {
#if defined(__AVX512F__)
  __m512 one[WIDTH], other[WIDTH];
  for (int i = 0; i < WIDTH; ++i) one[i] = _mm512_loadu_ps(from + i * PANEL);
  for (int i = 0; i < WIDTH; i += 2) {
    other[i] = _mm512_unpacklo_ps(one[i], one[i + 1]);
    other[i + 1] = _mm512_unpackhi_ps(one[i], one[i + 1]);
  }
  const auto low = [](__m512 a, __m512 b) {
    return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  };
  const auto high = [](__m512 a, __m512 b) {
    return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  };
  // Then one[4 g + j] has in its quarter q column 4 q + j of rows 4 g to 4 g + 3.
  for (int i = 0; i < WIDTH; i += 4) {
    one[i] = low(other[i], other[i + 2]);
    one[i + 1] = high(other[i], other[i + 2]);
    one[i + 2] = low(other[i + 1], other[i + 3]);
    one[i + 3] = high(other[i + 1], other[i + 3]);
  }
  constexpr int EVEN = 0x88, ODD = 0xdd;
  for (int j = 0; j < 4; ++j) {
    const __m512 even[2] = {_mm512_shuffle_f32x4(one[j], one[4 + j], EVEN),
                            _mm512_shuffle_f32x4(one[8 + j], one[12 + j], EVEN)};
    const __m512 odd[2] = {_mm512_shuffle_f32x4(one[j], one[4 + j], ODD),
                           _mm512_shuffle_f32x4(one[8 + j], one[12 + j], ODD)};
    _mm512_storeu_ps(to + j * PANEL, _mm512_shuffle_f32x4(even[0], even[1], EVEN));
    _mm512_storeu_ps(to + (4 + j) * PANEL, _mm512_shuffle_f32x4(odd[0], odd[1], EVEN));
    _mm512_storeu_ps(to + (8 + j) * PANEL, _mm512_shuffle_f32x4(even[0], even[1], ODD));
    _mm512_storeu_ps(to + (12 + j) * PANEL, _mm512_shuffle_f32x4(odd[0], odd[1], ODD));
  }
#elif defined(__AVX2__)
  __m256 one[WIDTH], other[WIDTH];
  for (int i = 0; i < WIDTH; ++i) one[i] = _mm256_loadu_ps(from + i * PANEL);
  for (int i = 0; i < WIDTH; i += 2) {
    other[i] = _mm256_unpacklo_ps(one[i], one[i + 1]);
    other[i + 1] = _mm256_unpackhi_ps(one[i], one[i + 1]);
  }
  // Then one[4 g + j] has in its half q column 4 q + j of rows 4 g to 4 g + 3.
  for (int i = 0; i < WIDTH; i += 4) {
    one[i] = _mm256_shuffle_ps(other[i], other[i + 2], 0x44);
    one[i + 1] = _mm256_shuffle_ps(other[i], other[i + 2], 0xee);
    one[i + 2] = _mm256_shuffle_ps(other[i + 1], other[i + 3], 0x44);
    one[i + 3] = _mm256_shuffle_ps(other[i + 1], other[i + 3], 0xee);
  }
  for (int j = 0; j < 4; ++j) {
    _mm256_storeu_ps(to + j * PANEL, _mm256_permute2f128_ps(one[j], one[4 + j], 0x20));
    _mm256_storeu_ps(to + (4 + j) * PANEL, _mm256_permute2f128_ps(one[j], one[4 + j], 0x31));
  }
#else
  for (int64_t row = 0; row < WIDTH; ++row) {
    for (int64_t column = 0; column < WIDTH; ++column) to[column * PANEL + row] = from[row * PANEL + column];
  }
#endif
}

void transpose(const SparseTranspose* transposed, float* panels) {
  static_assert(SEGMENT % PANEL == 0, "a segment is whole panels");
  for (int64_t column = 0; column < transposed->columns; column += WIDTH) {
    const char* const panel = transposed->first + column / PANEL * transposed->stride;
    const float* const from = reinterpret_cast<const float*>(panel) + column % PANEL;
    for (int64_t row = 0; row < transposed->rows; row += WIDTH) {
      float* const to = panels + (row / PANEL * SEGMENT + column) * PANEL + row % PANEL;
      const int64_t left = transposed->rows - row;
      if (left >= WIDTH) {
        transpose_block(from + row * PANEL, to);
        continue;
      }
      float block[WIDTH * PANEL] = {};
      for (int64_t i = 0; i < left; ++i) store(block + i * PANEL, load(from + (row + i) * PANEL));
      transpose_block(block, to);
    }
  }
}
#endif

void fold(const float* sums, int64_t count, int64_t stride, int64_t panels, float* result, int64_t step) {
  const int64_t width = panels * PANEL;
  // Rows that overlap are not added in succession: a load right after the store to the same address would wait for it.
  const int64_t between = (width + step - 1) / step;
  for (int64_t first = 0; first < between; ++first) {
    for (int64_t row = first; row < count; row += between) {
      for (int64_t c = 0; c < width; c += WIDTH) {
        float* const to = result + row * step + c;
        store(to, load(to) + load(sums + row * stride + c));
      }
    }
  }
}

void sum_rows(const char* matrix, int64_t row_bytes, const int64_t* rows, const float* factors, int64_t count,
              int64_t columns, void* result) {
  // As many sums as the registers hold. Rows usually come from memory: they are prefetched ROWS_AHEAD rows early.
  constexpr int64_t VECTORS = 8, COLUMNS_AT_ONCE = VECTORS * WIDTH, ROWS_AHEAD = 4, BYTES = sizeof(Element);
  const int64_t whole = columns / COLUMNS_AT_ONCE * COLUMNS_AT_ONCE;
  for (int64_t c = 0; c < whole; c += COLUMNS_AT_ONCE) {
    Vector sum[VECTORS] = {};
    for (int64_t i = 0; i < count; ++i) {
      const Element* const row = reinterpret_cast<const Element*>(matrix + rows[i] * row_bytes) + c;
      if (i + ROWS_AHEAD < count)
        prefetch(matrix + rows[i + ROWS_AHEAD] * row_bytes + c * BYTES, COLUMNS_AT_ONCE * BYTES);
      for (int64_t part = 0; part < VECTORS; ++part) sum[part] += broadcast(factors[i]) * load(row + part * WIDTH);
    }
    for (int64_t part = 0; part < VECTORS; ++part) store(static_cast<Element*>(result) + c + part * WIDTH, sum[part]);
  }
  for (int64_t c = whole; c < columns; c += WIDTH) {
    float sum[WIDTH] = {};
    const int64_t left = columns - c < WIDTH ? columns - c : WIDTH;
    for (int64_t i = 0; i < count; ++i) {
      const Element* const row = reinterpret_cast<const Element*>(matrix + rows[i] * row_bytes) + c;
      for (int64_t lane = 0; lane < left; ++lane) sum[lane] += factors[i] * to_float(row[lane]);
    }
    store_first(static_cast<Element*>(result) + c, load(sum), left);
  }
}

void finish(const SparseSums* sums) {
  for (int64_t row = 0; row < sums->rows; ++row) {
    const float* const from = sums->first + row * sums->stride;
    char* const to = sums->result + row * sums->result_stride;
    if (row + AHEAD < sums->rows) prefetch_for_write(to + AHEAD * sums->result_stride, sums->columns * sizeof(Element));
    for (int64_t c = 0; c < sums->columns; c += WIDTH) {
      store_first(reinterpret_cast<Element*>(to) + c, clamp(load(from + c), sums->low, sums->high), sums->columns - c);
    }
  }
}

}  // namespace

extern "C" const SparseKernels CAMLENS_TABLE(sparse) = {find, multiply, transpose, fold, sum_rows, finish};
