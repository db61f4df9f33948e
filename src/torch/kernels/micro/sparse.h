// Micro-kernels for matrix products whose left matrix has many zeros, which are skipped. The right matrix is packed in
// panels: as in gemm.h for float, as `SparsePanels` says for bfloat16. sparse.cpp is compiled once per instruction set.
#pragma once
#include "gate_layout.h"

#include <stdint.h>

namespace camlens {

// The most panels that one call multiplies with.
constexpr int64_t SPARSE_PANELS = 4;
// Columns per call of `sum_rows`.
constexpr int64_t SUM_COLUMNS = 128;

// Some rows of the left matrix, and the accumulators of their products.
struct SparseRun {
  // The first row's elements, and its mask of nonzero elements: one bit per element, in words of MASK_BITS. Strides
  // lead from one row to the next: in bytes, and in words.
  const char* elements;
  int64_t element_stride;
  const uint64_t* masks;
  int64_t mask_stride;
  int64_t count;
  // [count, columns of the panels]; `sum_stride` is in floats.
  float* sums;
  int64_t sum_stride;
};

// Panels, `stride` bytes apart. A panel has one row of columns per element of depth. Floats are in order. Of 32
// bfloat16, columns 0 to 3 and 16 to 19 come first, then 4 to 7 and 20 to 23, and so on: interleaving the lower halves
// of the 128-bit lanes of two rows gives the pairs of the first 16 columns, interleaving the upper halves the pairs of
// the others.
struct SparsePanels {
  const char* first;
  int64_t stride, count;
};

// The product of one segment of the rows of some runs.
struct SparseProduct {
  int64_t segment;
  const SparseRun* runs;
  int64_t run_count;
  // From the segment's first row on.
  SparsePanels panels;
  // Whether sums begin with `bias` (as long as the panels' columns; null: zero) instead of what they hold.
  bool is_first;
  const float* bias;
  // Weights of the next call, to prefetch: `prefetch_bytes` from each address. 0 prefetches nothing.
  const char* prefetch[SPARSE_PANELS];
  int64_t prefetch_bytes;
};

// A part of a float matrix whose transpose is packed in panels: `columns` columns, at most a segment, of `rows` rows.
struct SparseTranspose {
  // The first of the panels that have these columns, from the first of the rows on. `stride` is in bytes.
  const char* first;
  int64_t stride;
  int64_t columns, rows;
};

// Elements that count as zero besides those that are: where a bit of `gates` is 0, if there are gates (a row's words
// follow the previous row's); with `is_guided`, elements that are not above zero. NaN counts as nonzero unless its gate
// is closed.
struct SparseMask {
  const uint64_t* gates;
  bool is_guided;
};

// [rows, columns] sums that are clamped and written in the matrix's type. NaN stays NaN.
struct SparseSums {
  const float* first;
  // In floats.
  int64_t stride;
  int64_t rows, columns;
  float low, high;
  char* result;
  // In bytes.
  int64_t result_stride;
};

struct SparseKernels {
  // Writes the masks of nonzero elements of `rows` rows, `stride` bytes apart, and returns the number of nonzero
  // elements. A row's words follow the previous row's.
  int64_t (*find)(const char* first, int64_t rows, int64_t stride, int64_t depth, SparseMask mask, uint64_t* masks);
  void (*multiply)(const SparseProduct* product);
  // Packs one segment as panels that hold `rows` columns, a segment's rows apart. Columns of the last panel beyond
  // `rows` may keep their values. Null for bfloat16.
  void (*transpose)(const SparseTranspose* transpose, float* panels);
  // For each i < count, adds row i of `sums` (`stride` floats apart, `panels` panels wide) to `result` + i * step.
  // These ranges may overlap.
  void (*fold)(const float* sums, int64_t count, int64_t stride, int64_t panels, float* result, int64_t step);
  // Sums `count` rows of a matrix, each times its factor, over `columns` columns. `row_bytes` is the matrix's stride.
  void (*sum_rows)(const char* matrix, int64_t row_bytes, const int64_t* rows, const float* factors, int64_t count,
                   int64_t columns, void* result);
  void (*finish)(const SparseSums* sums);
};

extern "C" {
extern const SparseKernels camlens_sparse_default;
#if defined(__x86_64__)
extern const SparseKernels camlens_sparse_avx2;
extern const SparseKernels camlens_sparse_avx512;
extern const SparseKernels camlens_sparse_avx512_bf16;
#endif
}

}  // namespace camlens
