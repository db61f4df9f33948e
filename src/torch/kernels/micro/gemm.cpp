#include "gemm.h"

#include "dot_step.h"
#include "gate_bits.h"

#include <utility>

using namespace camlens;

namespace {

// Rows of accumulators that fit the registers, as build.rs sets it.
constexpr int ROWS = CAMLENS_ROWS;
static_assert(PANEL * 4 % CACHE_LINE_BYTES == 0, "a panel's steps are whole cache lines");

// Applies the epilogue to a row of sums and stores it. `is_whole`: the row has all columns of `parts` vectors.
template <int parts, bool is_whole>
inline void finish_row(const GemmTile& tile, int64_t row, Vector (&sum)[parts]) {
  const GemmEpilogue& epilogue = tile.epilogue;
  const auto read = [&](const Element* from, int part) {
    return is_whole ? load(from + part * WIDTH) : load_first(from + part * WIDTH, tile.columns - part * WIDTH);
  };
  if (epilogue.addend != nullptr) {
    const Element* const addend = reinterpret_cast<const Element*>(epilogue.addend + row * tile.result_stride);
    for (int part = 0; part < parts; ++part) sum[part] += read(addend, part);
  }
  Element* const to = reinterpret_cast<Element*>(static_cast<char*>(tile.result) + row * tile.result_stride);
  for (int part = 0; part < parts; ++part) {
    sum[part] = clamp(sum[part], tile.low, tile.high);
    if (is_whole) {
      store(to + part * WIDTH, sum[part]);
    } else {
      store_first(to + part * WIDTH, sum[part], tile.columns - part * WIDTH);
    }
  }
  if (epilogue.gates == nullptr) return;
  uint64_t bits = 0;
  // Gates are those of the rounded results.
  for (int part = 0; part < parts; ++part) {
    bits |= open_bits(read(to, part), epilogue.gate_low, epilogue.gate_high) << part * WIDTH;
  }
  if (!is_whole) bits &= (uint64_t{1} << tile.columns) - 1;
  static_assert(PANEL % 8 == 0 && PANEL <= 64, "a panel's bits are whole bytes of one word");
  static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the first column's bit is in the first byte");
  __builtin_memcpy(epilogue.gates + row * epilogue.gates_stride, &bits, PANEL / 8);
}

// The number of rows in the first half of a tile.
constexpr int first_half(int rows) { return (rows + 1) / 2; }

template <int rows, int parts, bool prefetches>
inline void add_products(Vector (&sum)[rows][parts], const GemmTerm& term, int64_t depth, int64_t stride,
                         int64_t second_half) {
  const char *const left = term.left, *const lower = term.left + second_half;
  const char *const panel = term.panel, *const next = term.prefetch;
  for (int64_t k = 0; k < depth; ++k) {
    Step right[parts];
    for (int part = 0; part < parts; ++part) right[part] = load_step(panel + (k * PANEL + part * WIDTH) * 4);
    if (prefetches) __builtin_prefetch(next + k * CACHE_LINE_BYTES);
    for (int row = 0; row < rows; ++row) {
      const char* const at = row < first_half(rows) ? left + row * stride : lower + (row - first_half(rows)) * stride;
      const Step value = broadcast_step(at + k * 4);
      for (int part = 0; part < parts; ++part) sum[row][part] = multiply_add(sum[row][part], value, right[part]);
    }
  }
}

// `parts` is the number of the panel's vectors that have columns.
template <int rows, int parts>
void multiply_rows(const GemmTile& given) {
  // A copy, which no store can change.
  const GemmTile tile = given;
  constexpr int64_t BYTES = parts * WIDTH * sizeof(Element);
  for (int row = 0; row < rows; ++row) {
    const int64_t offset = row * tile.result_stride;
    prefetch_for_write(static_cast<const char*>(tile.result) + offset, BYTES);
    if (tile.epilogue.addend != nullptr) prefetch(tile.epilogue.addend + offset, BYTES);
  }
  // Sums begin with the bias, as in the sparse kernels.
  Vector sum[rows][parts] = {};
  for (int part = 0; part < parts && tile.bias != nullptr; ++part) {
    const Vector bias = load(tile.bias + part * WIDTH);
    for (int row = 0; row < rows; ++row) sum[row][part] = bias;
  }
  const int64_t stride = tile.left_stride;
  const int64_t second_half = tile.second_half == 0 ? first_half(rows) * stride : tile.second_half;
  const GemmTerm* term = &tile.first;
  for (int64_t left = tile.more_count; left >= 0; --left) {
    if (term->prefetch == nullptr) {
      add_products<rows, parts, false>(sum, *term, tile.depth, stride, second_half);
    } else {
      add_products<rows, parts, true>(sum, *term, tile.depth, stride, second_half);
    }
    term = tile.more + (tile.more_count - left);
  }
  if (tile.columns == parts * WIDTH) {
    for (int row = 0; row < rows; ++row) finish_row<parts, true>(tile, row, sum[row]);
  } else {
    for (int row = 0; row < rows; ++row) finish_row<parts, false>(tile, row, sum[row]);
  }
}

typedef void (*Multiply)(const GemmTile&);

// The functions that multiply 1, 2, … ROWS rows.
template <int parts>
struct ByRows {
  Multiply of[ROWS];
  template <int... index>
  explicit constexpr ByRows(std::integer_sequence<int, index...>) : of{multiply_rows<index + 1, parts>...} {}
};

template <int parts>
void multiply_columns(const GemmTile& tile, int64_t rows) {
  if constexpr (parts > 1) {
    if (tile.columns <= (parts - 1) * WIDTH) return multiply_columns<parts - 1>(tile, rows);
  }
  static constexpr ByRows<parts> by_rows(std::make_integer_sequence<int, ROWS>{});
  by_rows.of[rows - 1](tile);
}

void multiply(const GemmTile* tile, int64_t rows) { multiply_columns<PARTS>(*tile, rows); }

// Columns whose weights are read side by side.
constexpr int64_t COLUMNS_AT_ONCE = 4;
// Elements of a vector register.
constexpr int64_t LANES = WIDTH * 4 / sizeof(Element);

inline float sum_of(Vector vector) {
  float sum = 0;
  for (int64_t i = 0; i < WIDTH; ++i) sum += vector[i];
  return sum;
}

// One row with `columns` columns.
template <int columns>
void dot_columns(const DotProducts& products, int64_t row, int64_t column) {
  const int64_t depth = products.depth;
  const Element* const left = static_cast<const Element*>(products.left) + row * depth;
  const Element* const right = static_cast<const Element*>(products.right) + column * depth;
  Vector sum[columns] = {};
  int64_t k = 0;
  for (; k + LANES <= depth; k += LANES) {
    const Step values = load_step(reinterpret_cast<const char*>(left + k));
    for (int c = 0; c < columns; ++c) {
      sum[c] = multiply_add(sum[c], values, load_step(reinterpret_cast<const char*>(right + c * depth + k)));
    }
  }
  char* const first = static_cast<char*>(products.result) + row * products.result_stride;
  Element* const to = reinterpret_cast<Element*>(first) + column;
  for (int c = 0; c < columns; ++c) {
    float total = sum_of(sum[c]) + (products.bias == nullptr ? 0.0f : products.bias[column + c]);
    for (int64_t rest = k; rest < depth; ++rest) total += to_float(left[rest]) * to_float(right[c * depth + rest]);
    store_first(to + c, broadcast(total), 1);
  }
}

void dot(const DotProducts* products) {
  int64_t column = 0;
  for (; column + COLUMNS_AT_ONCE <= products->columns; column += COLUMNS_AT_ONCE) {
    for (int64_t row = 0; row < products->rows; ++row) dot_columns<COLUMNS_AT_ONCE>(*products, row, column);
  }
  for (; column < products->columns; ++column) {
    for (int64_t row = 0; row < products->rows; ++row) dot_columns<1>(*products, row, column);
  }
}

}  // namespace

extern "C" const GemmKernels CAMLENS_TABLE(gemm) = {PANEL, ROWS, multiply, dot};
