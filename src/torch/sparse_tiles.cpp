#include "sparse_tiles.h"

#include "product_tiles.h"
#include "step.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// Given by build.rs, besides what step.h needs: CAMLENS_SPARSE_TILES, the name of the table.

namespace {

constexpr int64_t STEP_BYTES = PANEL * 4;

#if defined(__AVX512F__)
int64_t compress(const void* row, int64_t begin, int64_t end, int32_t* places, uint32_t* steps) {
  static_assert(CAMLENS_SPARSE_SLACK >= 16, "whole vectors are written");
  int64_t count = 0;
  __m512i place = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int32_t>(begin * STEP_BYTES)),
                                   _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                                                      _mm512_set1_epi32(STEP_BYTES)));
  for (int64_t k = begin; k < end; k += 16) {
    const __mmask16 within = static_cast<__mmask16>(end - k >= 16 ? 0xffff : (1 << (end - k)) - 1);
    const __m512i values = _mm512_maskz_loadu_epi32(within, static_cast<const char*>(row) + k * 4);
    const __mmask16 kept = _mm512_test_epi32_mask(values, _mm512_set1_epi32(MAGNITUDES));
    _mm512_storeu_si512(places + count, _mm512_maskz_compress_epi32(kept, place));
    _mm512_storeu_si512(steps + count, _mm512_maskz_compress_epi32(kept, values));
    count += __builtin_popcount(kept);
    place = _mm512_add_epi32(place, _mm512_set1_epi32(16 * STEP_BYTES));
  }
  places[count] = static_cast<int32_t>(begin * STEP_BYTES);
  steps[count] = 0;
  return (count + 1) / 2 * 2;
}
#else
int64_t compress(const void* row, int64_t begin, int64_t end, int32_t* places, uint32_t* steps) {
  int64_t count = 0;
  for (int64_t k = begin; k < end; ++k) {
    uint32_t step;
    __builtin_memcpy(&step, static_cast<const char*>(row) + k * 4, sizeof step);
    places[count] = static_cast<int32_t>(k * STEP_BYTES);
    steps[count] = step;
    count += (step & MAGNITUDES) != 0;
  }
  places[count] = static_cast<int32_t>(begin * STEP_BYTES);
  steps[count] = 0;
  return (count + 1) / 2 * 2;
}
#endif

template <int panels, bool is_first>
void multiply_panels(const CamlensSparseProduct& product) {
  const int64_t apart = product.panels.apart;
  const char* panel[panels];
  for (int p = 0; p < panels; ++p) panel[p] = product.panels.first + p * apart;
  int64_t rows = 0, fetched = 0;
  for (int64_t i = 0; i < product.run_count; ++i) rows += product.runs[i].count;
  const int64_t fetches = rows == 0 ? 0 : (product.next_bytes / CAMLENS_LINE_BYTES + rows - 1) / rows * CAMLENS_LINE_BYTES;
  for (int64_t i = 0; i < product.run_count; ++i) {
    const CamlensSparseRun run = product.runs[i];
    const int32_t* starts = product.rows.starts + run.first * product.rows.starts_of_row;
    float* sums = run.sums;
    for (int64_t row = 0; row < run.count; ++row, starts += run.step * product.rows.starts_of_row, sums += run.apart) {
      for (const int64_t end = fetched + fetches < product.next_bytes ? fetched + fetches : product.next_bytes; fetched < end; fetched += CAMLENS_LINE_BYTES) {
        for (int p = 0; p < panels; ++p) __builtin_prefetch(product.next + p * apart + fetched, 0, 2);
      }
      Vector sum[panels][PARTS] = {};
      const float* const before = is_first ? product.bias : sums;
      for (int p = 0; p < panels && before != nullptr; ++p) {
        for (int part = 0; part < PARTS; ++part) sum[p][part] = load(before + p * PANEL + part * WIDTH);
      }
      const int32_t* place = product.rows.places + starts[product.begin];
      const int32_t* const end = product.rows.places + starts[product.end];
      const uint32_t* step = product.rows.steps + starts[product.begin];
      for (; place < end; place += 2, step += 2) {
        // Two places at once: loads are what this waits for.
        uint64_t places;
        __builtin_memcpy(&places, place, sizeof places);
        const int64_t at[2] = {static_cast<int64_t>(places & 0xffffffff), static_cast<int64_t>(places >> 32)};
        for (int two = 0; two < 2; ++two) {
          const Step value = all_of(reinterpret_cast<const char*>(step + two));
          for (int p = 0; p < panels; ++p) {
            for (int part = 0; part < PARTS; ++part) {
              sum[p][part] = multiply_add(sum[p][part], value, load_step(panel[p] + at[two] + part * WIDTH * 4));
            }
          }
        }
      }
      for (int p = 0; p < panels; ++p) {
        for (int part = 0; part < PARTS; ++part) store(sums + p * PANEL + part * WIDTH, sum[p][part]);
      }
    }
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

extern "C" const CamlensSparseTiles CAMLENS_SPARSE_TILES = {compress, multiply, fold, sum_rows, finish};
