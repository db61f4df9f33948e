#include "product_tiles.h"

#include "step.h"

#include <utility>

// Given by build.rs, besides what step.h needs: CAMLENS_PRODUCT_TILES, the name of the table; CAMLENS_ROWS, how many rows the registers
// hold sums of.

namespace {

constexpr int ROWS = CAMLENS_ROWS;
static_assert(PANEL * 4 % CAMLENS_LINE_BYTES == 0, "a panel's steps are whole cache lines");

// `parts` are the vectors of a panel that have columns.
template <int rows, int parts, bool fetches>
void multiply_rows(const CamlensProduct& product) {
  const char* const left = static_cast<const char*>(product.left);
  const char* const panel = static_cast<const char*>(product.panel);
  const int64_t depth = product.depth, stride = product.left_stride;
  // Sums begin with the bias, as those without zeros do.
  Vector sum[rows][parts] = {};
  for (int part = 0; part < parts && product.bias != nullptr; ++part) {
    const Vector bias = load(product.bias + part * WIDTH);
    for (int row = 0; row < rows; ++row) sum[row][part] = bias;
  }
  for (int64_t k = 0; k < depth; ++k) {
    Step right[parts];
    for (int part = 0; part < parts; ++part) right[part] = load_step(panel + (k * PANEL + part * WIDTH) * 4);
    if (fetches) __builtin_prefetch(product.next + k * CAMLENS_LINE_BYTES);
    for (int row = 0; row < rows; ++row) {
      const Step value = all_of(left + row * stride + k * 4);
      for (int part = 0; part < parts; ++part) sum[row][part] = multiply_add(sum[row][part], value, right[part]);
    }
  }
  for (int row = 0; row < rows; ++row) {
    Number* const to = reinterpret_cast<Number*>(static_cast<char*>(product.to) + row * product.to_stride);
    for (int part = 0; part < parts; ++part) sum[row][part] = between(sum[row][part], product.low, product.high);
    if (product.columns == parts * WIDTH) {
      for (int part = 0; part < parts; ++part) store(to + part * WIDTH, sum[row][part]);
    } else {
      for (int part = 0; part < parts; ++part) store_some(to + part * WIDTH, sum[row][part], product.columns - part * WIDTH);
    }
  }
}

typedef void (*Multiply)(const CamlensProduct&);

// What multiplies 1, 2, … ROWS rows.
template <int parts, bool fetches>
struct ByRows {
  Multiply of[ROWS];
  template <int... less>
  explicit constexpr ByRows(std::integer_sequence<int, less...>) : of{multiply_rows<less + 1, parts, fetches>...} {}
};

template <int parts>
void multiply_parts(const CamlensProduct& product, int64_t rows) {
  constexpr auto counts = std::make_integer_sequence<int, ROWS>();
  static constexpr ByRows<parts, false> plain(counts);
  static constexpr ByRows<parts, true> fetching(counts);
  (product.next == nullptr ? plain.of : fetching.of)[rows - 1](product);
}

template <int parts>
void multiply_columns(const CamlensProduct& product, int64_t rows) {
  if constexpr (parts > 1) {
    if (product.columns <= (parts - 1) * WIDTH) return multiply_columns<parts - 1>(product, rows);
  }
  multiply_parts<parts>(product, rows);
}

void multiply(const CamlensProduct* product, int64_t rows) { multiply_columns<PARTS>(*product, rows); }

}  // namespace

extern "C" const CamlensProductTiles CAMLENS_PRODUCT_TILES = {PANEL, ROWS, multiply};
