// Micro-kernels for matrix products whose right matrix is packed in panels. gemm.cpp is compiled once per instruction
// set. This header defines no function: the linker could take an inline function from the wrong instruction set.
#pragma once
#include <stdint.h>

namespace camlens {

constexpr int64_t CACHE_LINE_BYTES = 64;

// What is done to the results after sums and bias.
struct GemmEpilogue {
  // A matrix of the result's shape, type and strides that is added; may be null.
  const char* addend;
  // The gates of the results, as gate_layout.h says: the byte that has the bit of the first row and column. May be
  // null.
  char* gates;
  // Bytes from the gates of one row to those of the next.
  int64_t gates_stride;
  // A gate is open between these bounds.
  float gate_low, gate_high;
};

// One term of a sum of products: `left` times a panel.
struct GemmTerm {
  // [rows, depth].
  const char* left;
  // [depth, panel width].
  const char* panel;
  // `depth` cache lines to prefetch for a later product; may be null.
  const char* prefetch;
};

// Some rows of a sum of products, and the columns of one panel. Elements are float, or bfloat16 with sums in float.
// `depth` counts steps of four bytes of a row and of each column: one float or two bfloat16. Strides are in bytes.
struct GemmTile {
  GemmTerm first;
  const GemmTerm* more;
  int64_t more_count, depth, left_stride;
  // Bytes from the first row to the first row of the second half, which is the smaller half; 0 if all rows are
  // `left_stride` apart.
  int64_t second_half;
  // [rows, columns]; at most a panel's columns.
  void* result;
  int64_t result_stride, columns;
  // Floats, [panel width]; may be null.
  const float* bias;
  // Results are clamped to these bounds at the end. NaN stays NaN; a bound that is NaN does not limit.
  float low, high;
  GemmEpilogue epilogue;
};

// Dot products of every row of `left` with every row of `right`: [rows, depth] and [columns, depth], both dense.
// `depth` counts elements.
struct DotProducts {
  const void *left, *right;
  int64_t rows, columns, depth;
  // One float per column; may be null.
  const float* bias;
  // [rows, columns].
  void* result;
  // In bytes.
  int64_t result_stride;
};

struct GemmKernels {
  // Columns of a panel. One step of a panel is whole cache lines.
  int64_t panel_width;
  // The most rows that `multiply` takes.
  int64_t max_rows;
  void (*multiply)(const GemmTile* tile, int64_t rows);
  void (*dot)(const DotProducts* products);
};

extern "C" {
extern const GemmKernels camlens_gemm_default;
#if defined(__x86_64__)
extern const GemmKernels camlens_gemm_avx2;
extern const GemmKernels camlens_gemm_avx512;
extern const GemmKernels camlens_gemm_avx512_bf16;
#endif
}

}  // namespace camlens
