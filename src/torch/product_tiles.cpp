#include "product_tiles.h"

#include "gate_bits.h"
#include "step.h"

#include <utility>

// Given by build.rs, besides what step.h needs: CAMLENS_PRODUCT_TILES, the name of the table; CAMLENS_ROWS, how many rows the registers
// hold sums of.

namespace {

constexpr int ROWS = CAMLENS_ROWS;
static_assert(PANEL * 4 % CAMLENS_LINE_BYTES == 0, "a panel's steps are whole cache lines");

// Writes what comes of a row's sums; `is_whole` where all their columns are there.
template <int parts, bool is_whole>
inline void finish_row(const CamlensProduct& product, int64_t row, Vector (&sum)[parts]) {
  const CamlensAfter& after = product.after;
  const auto read = [&](const Number* from, int part) {
    return is_whole ? load(from + part * WIDTH) : load_some(from + part * WIDTH, product.columns - part * WIDTH);
  };
  if (after.other != nullptr) {
    const Number* const other = reinterpret_cast<const Number*>(after.other + row * product.to_stride);
    for (int part = 0; part < parts; ++part) sum[part] += read(other, part);
  }
  Number* const to = reinterpret_cast<Number*>(static_cast<char*>(product.to) + row * product.to_stride);
  for (int part = 0; part < parts; ++part) {
    sum[part] = between(sum[part], product.low, product.high);
    if (is_whole) {
      store(to + part * WIDTH, sum[part]);
    } else {
      store_some(to + part * WIDTH, sum[part], product.columns - part * WIDTH);
    }
  }
  if (after.gates == nullptr) return;
  uint64_t bits = 0;
  // As they were rounded.
  for (int part = 0; part < parts; ++part) bits |= open_bits(read(to, part), after.low, after.high) << part * WIDTH;
  if (!is_whole) bits &= (uint64_t{1} << product.columns) - 1;
  static_assert(PANEL % 8 == 0 && PANEL <= 64 && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "a panel's bits are whole bytes, the first column's first");
  __builtin_memcpy(after.gates + row * after.gates_apart, &bits, PANEL / 8);
}

// The rows of the first half.
constexpr int upper(int rows) { return (rows + 1) / 2; }

template <int rows, int parts, bool fetches>
inline void add_products(Vector (&sum)[rows][parts], const CamlensPlace& place, int64_t depth, int64_t stride, int64_t second) {
  const char *const left = place.left, *const lower = place.left + second, *const panel = place.panel, *const next = place.next;
  for (int64_t k = 0; k < depth; ++k) {
    Step right[parts];
    for (int part = 0; part < parts; ++part) right[part] = load_step(panel + (k * PANEL + part * WIDTH) * 4);
    if (fetches) __builtin_prefetch(next + k * CAMLENS_LINE_BYTES);
    for (int row = 0; row < rows; ++row) {
      const char* const at = row < upper(rows) ? left + row * stride : lower + (row - upper(rows)) * stride;
      const Step value = all_of(at + k * 4);
      for (int part = 0; part < parts; ++part) sum[row][part] = multiply_add(sum[row][part], value, right[part]);
    }
  }
}

// `parts` are the vectors of a panel that have columns.
template <int rows, int parts>
void multiply_rows(const CamlensProduct& given) {
  // No store may change it.
  const CamlensProduct product = given;
  constexpr int64_t BYTES = parts * WIDTH * sizeof(Number);
  for (int row = 0; row < rows; ++row) {
    const int64_t at = row * product.to_stride;
    fetch_to_write(static_cast<const char*>(product.to) + at, BYTES);
    if (product.after.other != nullptr) fetch(product.after.other + at, BYTES);
  }
  // Sums begin with the bias, as those without zeros do.
  Vector sum[rows][parts] = {};
  for (int part = 0; part < parts && product.bias != nullptr; ++part) {
    const Vector bias = load(product.bias + part * WIDTH);
    for (int row = 0; row < rows; ++row) sum[row][part] = bias;
  }
  const int64_t stride = product.left_stride, second = product.second == 0 ? upper(rows) * stride : product.second;
  const CamlensPlace* place = &product.first;
  for (int64_t left = product.more_count; left >= 0; --left) {
    if (place->next == nullptr) {
      add_products<rows, parts, false>(sum, *place, product.depth, stride, second);
    } else {
      add_products<rows, parts, true>(sum, *place, product.depth, stride, second);
    }
    place = product.more + (product.more_count - left);
  }
  if (product.columns == parts * WIDTH) {
    for (int row = 0; row < rows; ++row) finish_row<parts, true>(product, row, sum[row]);
  } else {
    for (int row = 0; row < rows; ++row) finish_row<parts, false>(product, row, sum[row]);
  }
}

typedef void (*Multiply)(const CamlensProduct&);

// What multiplies 1, 2, … ROWS rows.
template <int parts>
struct ByRows {
  Multiply of[ROWS];
  template <int... less>
  explicit constexpr ByRows(std::integer_sequence<int, less...>) : of{multiply_rows<less + 1, parts>...} {}
};

template <int parts>
void multiply_columns(const CamlensProduct& product, int64_t rows) {
  if constexpr (parts > 1) {
    if (product.columns <= (parts - 1) * WIDTH) return multiply_columns<parts - 1>(product, rows);
  }
  static constexpr ByRows<parts> by_rows(std::make_integer_sequence<int, ROWS>{});
  by_rows.of[rows - 1](product);
}

void multiply(const CamlensProduct* product, int64_t rows) { multiply_columns<PARTS>(*product, rows); }

// Columns whose weights are read side by side.
constexpr int64_t SIDE_BY_SIDE = 4;
// The numbers of a vector.
constexpr int64_t LANES = WIDTH * 4 / sizeof(Number);

inline float sum_of(Vector vector) {
  float sum = 0;
  for (int64_t i = 0; i < WIDTH; ++i) sum += vector[i];
  return sum;
}

// A row with some columns.
template <int columns>
void dot_columns(const CamlensDots& dots, int64_t row, int64_t column) {
  const Number* const left = static_cast<const Number*>(dots.left) + row * dots.depth;
  const Number* const right = static_cast<const Number*>(dots.right) + column * dots.depth;
  Vector sum[columns] = {};
  int64_t k = 0;
  for (; k + LANES <= dots.depth; k += LANES) {
    const Step values = load_step(reinterpret_cast<const char*>(left + k));
    for (int c = 0; c < columns; ++c) {
      sum[c] = multiply_add(sum[c], values, load_step(reinterpret_cast<const char*>(right + c * dots.depth + k)));
    }
  }
  Number* const to = reinterpret_cast<Number*>(static_cast<char*>(dots.to) + row * dots.to_stride) + column;
  for (int c = 0; c < columns; ++c) {
    float total = sum_of(sum[c]) + (dots.bias == nullptr ? 0.0f : dots.bias[column + c]);
    for (int64_t rest = k; rest < dots.depth; ++rest) total += number(left[rest]) * number(right[c * dots.depth + rest]);
    store_some(to + c, all(total), 1);
  }
}

void dot(const CamlensDots* dots) {
  int64_t column = 0;
  for (; column + SIDE_BY_SIDE <= dots->columns; column += SIDE_BY_SIDE) {
    for (int64_t row = 0; row < dots->rows; ++row) dot_columns<SIDE_BY_SIDE>(*dots, row, column);
  }
  for (; column < dots->columns; ++column) {
    for (int64_t row = 0; row < dots->rows; ++row) dot_columns<1>(*dots, row, column);
  }
}

}  // namespace

extern "C" const CamlensProductTiles CAMLENS_PRODUCT_TILES = {PANEL, ROWS, multiply, dot};
