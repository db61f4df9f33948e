#include "sparse_tiles.h"

#include "product_tiles.h"
#include "step.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// Given by build.rs, besides what step.h needs: CAMLENS_SPARSE_TILES, the name of the table.

namespace {

constexpr int64_t SEGMENT = CAMLENS_SPARSE_SEGMENT;
// Of a panel, the columns that belong to a number.
constexpr int64_t ROW_BYTES = PANEL * sizeof(Number);

// Which of so many numbers, at most a segment's, are not zero.
#if defined(__AVX512BF16__)
uint64_t mask_of(const Number* numbers, int64_t count) {
  uint64_t mask = 0;
  for (int64_t k = 0; k < count; k += 32) {
    const __mmask32 within = count - k >= 32 ? 0xffffffff : (1u << (count - k)) - 1;
    const __m512i values = _mm512_maskz_loadu_epi16(within, numbers + k);
    mask |= static_cast<uint64_t>(_mm512_test_epi16_mask(values, _mm512_set1_epi16(0x7fff))) << k;
  }
  return mask;
}
#elif defined(__AVX512F__)
uint64_t mask_of(const Number* numbers, int64_t count) {
  uint64_t mask = 0;
  for (int64_t k = 0; k < count; k += 16) {
    const __mmask16 within = static_cast<__mmask16>(count - k >= 16 ? 0xffff : (1 << (count - k)) - 1);
    const __m512i values = _mm512_maskz_loadu_epi32(within, numbers + k);
    mask |= static_cast<uint64_t>(_mm512_test_epi32_mask(values, _mm512_set1_epi32(0x7fffffff))) << k;
  }
  return mask;
}
#else
uint64_t mask_of(const Number* numbers, int64_t count) {
  uint64_t mask = 0;
  int64_t k = 0;
#if defined(__AVX2__)
  for (; k + 8 <= count; k += 8) {
    const __m256i magnitudes = _mm256_slli_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(numbers + k)), 1);
    const __m256i are_zero = _mm256_cmpeq_epi32(magnitudes, _mm256_setzero_si256());
    mask |= static_cast<uint64_t>(~_mm256_movemask_ps(_mm256_castsi256_ps(are_zero)) & 0xff) << k;
  }
#endif
  for (; k < count; ++k) {
    uint32_t bits;
    __builtin_memcpy(&bits, numbers + k, sizeof bits);
    mask |= static_cast<uint64_t>((bits & 0x7fffffff) != 0) << k;
  }
  return mask;
}
#endif

int64_t find(const char* first, int64_t rows, int64_t apart, int64_t depth, uint64_t* masks) {
  int64_t found = 0;
  for (int64_t row = 0; row < rows; ++row, first += apart) {
    const Number* const numbers = reinterpret_cast<const Number*>(first);
    for (int64_t begin = 0; begin < depth; begin += SEGMENT) {
      *masks = mask_of(numbers + begin, depth - begin < SEGMENT ? depth - begin : SEGMENT);
      found += __builtin_popcountll(*masks++);
    }
  }
  return found;
}

// The place of the lowest bit, which is taken away.
inline int64_t lowest(uint64_t& mask) {
  const int64_t place = __builtin_ctzll(mask);
  mask &= mask - 1;
  return place;
}

// Adds the products of a segment's numbers to sums. `first` is the first number's row of the first panel; those of the next one are `apart`
// bytes further.
#if defined(__AVX512BF16__)
// Of two numbers at once, which an instruction multiplies with pairs of columns.
template <int panels>
inline void add_pair(Vector (&sum)[panels][PARTS], uint32_t pair, const char* one, const char* other, int64_t apart) {
  static_assert(PARTS == 2, "the columns of two rows are two vectors of pairs");
  const __m512bh values = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int32_t>(pair)));
  for (int p = 0; p < panels; ++p) {
    __m512i low = _mm512_loadu_si512(one + p * apart), high = _mm512_loadu_si512(other + p * apart);
    // Both are read once: the compiler would read them again for the other half, and reading is what this waits for.
    asm("" : "+v"(low), "+v"(high));
    sum[p][0] = multiply_add(sum[p][0], values, reinterpret_cast<__m512bh>(_mm512_unpacklo_epi16(low, high)));
    sum[p][1] = multiply_add(sum[p][1], values, reinterpret_cast<__m512bh>(_mm512_unpackhi_epi16(low, high)));
  }
}

template <int panels>
inline void add_products(Vector (&sum)[panels][PARTS], uint64_t mask, const Number* numbers, const char* first, int64_t apart) {
  for (int64_t pairs = __builtin_popcountll(mask) / 2; pairs > 0; --pairs) {
    const int64_t one = lowest(mask), other = lowest(mask);
    const uint32_t pair = numbers[one].bits | static_cast<uint32_t>(numbers[other].bits) << 16;
    add_pair<panels>(sum, pair, first + one * ROW_BYTES, first + other * ROW_BYTES, apart);
  }
  if (mask == 0) return;
  const int64_t last = lowest(mask);
  add_pair<panels>(sum, numbers[last].bits, first + last * ROW_BYTES, first + last * ROW_BYTES, apart);
}
#else
template <int panels>
inline void add_products(Vector (&sum)[panels][PARTS], uint64_t mask, const Number* numbers, const char* first, int64_t apart) {
  while (mask != 0) {
    const int64_t k = lowest(mask);
    const Vector value = all(numbers[k]);
    for (int p = 0; p < panels; ++p) {
      const float* const row = reinterpret_cast<const float*>(first + k * ROW_BYTES + p * apart);
      for (int part = 0; part < PARTS; ++part) sum[p][part] += value * load(row + part * WIDTH);
    }
  }
}
#endif

// Sums begin with `begin`, or with zero where that is null; without `is_first` with what is there. Each row fetches so many of the `next`
// cache lines of each panel.
template <int panels, bool is_first>
void multiply_run(CamlensSparseRun run, const char* first, int64_t apart, const float* begin, const char* next, int64_t lines) {
  for (; run.count > 0; --run.count) {
    for (const char* const end = next + lines * CAMLENS_LINE_BYTES; next < end; next += CAMLENS_LINE_BYTES) {
      for (int p = 0; p < panels; ++p) __builtin_prefetch(next + p * apart, 0, 2);
    }
    Vector sum[panels][PARTS] = {};
    if (!is_first) begin = run.sums;
    for (int p = 0; p < panels && begin != nullptr; ++p) {
      for (int part = 0; part < PARTS; ++part) sum[p][part] = load(begin + p * PANEL + part * WIDTH);
    }
    add_products<panels>(sum, *run.masks, reinterpret_cast<const Number*>(run.numbers), first, apart);
    for (int p = 0; p < panels; ++p) {
      for (int part = 0; part < PARTS; ++part) store(run.sums + p * PANEL + part * WIDTH, sum[p][part]);
    }
    run.numbers += run.numbers_apart;
    run.masks += run.masks_apart;
    run.sums += run.sums_apart;
  }
}

template <int panels, bool is_first>
void multiply_panels(const CamlensSparseProduct& product) {
  const char* const first = product.panels.first + product.segment * SEGMENT * ROW_BYTES;
  const int64_t apart = product.panels.apart;
  const char* next = product.next;
  int64_t rows = 0, left = product.next_bytes / CAMLENS_LINE_BYTES;
  for (int64_t i = 0; i < product.run_count; ++i) rows += product.runs[i].count;
  if (rows == 0) return;
  const int64_t lines = (left + rows - 1) / rows;
  for (int64_t i = 0; i < product.run_count; ++i) {
    CamlensSparseRun run = product.runs[i];
    run.masks += product.segment;
    run.numbers += product.segment * SEGMENT * sizeof(Number);
    const int64_t all = run.count, fetching = left <= 0 ? 0 : left / lines < all ? left / lines : all;
    run.count = fetching;
    if (fetching > 0) multiply_run<panels, is_first>(run, first, apart, product.bias, next, lines);
    next += fetching * lines * CAMLENS_LINE_BYTES;
    left -= fetching * lines;
    run.count = all - fetching;
    run.numbers += fetching * run.numbers_apart;
    run.masks += fetching * run.masks_apart;
    run.sums += fetching * run.sums_apart;
    multiply_run<panels, is_first>(run, first, apart, product.bias, nullptr, 0);
  }
}

template <int panels>
void multiply_with(const CamlensSparseProduct& product) {
  if (product.is_first) return multiply_panels<panels, true>(product);
  multiply_panels<panels, false>(product);
}

void multiply(const CamlensSparseProduct* product) {
  static_assert(CAMLENS_SPARSE_PANELS == 4, "one case for each number of panels");
  switch (product->panels.count) {
    case 1: return multiply_with<1>(*product);
    case 2: return multiply_with<2>(*product);
    case 3: return multiply_with<3>(*product);
    default: return multiply_with<4>(*product);
  }
}

void fold(const float* sums, int64_t count, int64_t apart, int64_t panels, float* to, int64_t step) {
  const int64_t width = panels * PANEL;
  // Rows that overlap do not follow each other: what was just written is not to be read at once.
  const int64_t between = (width + step - 1) / step;
  for (int64_t first = 0; first < between; ++first) {
    for (int64_t row = first; row < count; row += between) {
      for (int64_t c = 0; c < width; c += WIDTH) {
        float* const at = to + row * step + c;
        store(at, load(at) + load(sums + row * apart + c));
      }
    }
  }
}

void sum_rows(const char* matrix, int64_t row_bytes, const int64_t* rows, const float* factors, int64_t count, int64_t columns, void* to) {
  // As many sums as registers hold; and rows ahead, which come from memory as a rule.
  constexpr int64_t VECTORS = 8, AT_ONCE = VECTORS * WIDTH, AHEAD = 4, BYTES = sizeof(Number);
  const int64_t whole = columns / AT_ONCE * AT_ONCE;
  for (int64_t c = 0; c < whole; c += AT_ONCE) {
    Vector sum[VECTORS] = {};
    for (int64_t i = 0; i < count; ++i) {
      const Number* const row = reinterpret_cast<const Number*>(matrix + rows[i] * row_bytes) + c;
      if (i + AHEAD < count) {
        const char* const ahead = matrix + rows[i + AHEAD] * row_bytes + c * BYTES;
        for (int64_t byte = 0; byte < AT_ONCE * BYTES; byte += CAMLENS_LINE_BYTES) __builtin_prefetch(ahead + byte);
      }
      for (int64_t part = 0; part < VECTORS; ++part) sum[part] += all(factors[i]) * load(row + part * WIDTH);
    }
    for (int64_t part = 0; part < VECTORS; ++part) store(static_cast<Number*>(to) + c + part * WIDTH, sum[part]);
  }
  for (int64_t c = whole; c < columns; c += WIDTH) {
    float sum[WIDTH] = {};
    const int64_t left = columns - c < WIDTH ? columns - c : WIDTH;
    for (int64_t i = 0; i < count; ++i) {
      const Number* const row = reinterpret_cast<const Number*>(matrix + rows[i] * row_bytes) + c;
      for (int64_t at = 0; at < left; ++at) sum[at] += factors[i] * number(row[at]);
    }
    store_some(static_cast<Number*>(to) + c, load(sum), left);
  }
}

void finish(const float* sums, int64_t columns, float low, float high, void* to) {
  for (int64_t c = 0; c < columns; c += WIDTH) {
    store_some(static_cast<Number*>(to) + c, between(load(sums + c), low, high), columns - c);
  }
}

}  // namespace

extern "C" const CamlensSparseTiles CAMLENS_SPARSE_TILES = {find, multiply, fold, sum_rows, finish};
