// The arithmetic of matrix products whose left matrix has many zeros: they are left out. The right matrix lies in panels as in
// product_tiles.h, and sparse_tiles.cpp is compiled as product_tiles.cpp is.
#pragma once
#include <stdint.h>

enum {
  // Panels that are multiplied with at once, at most.
  CAMLENS_SPARSE_PANELS = 4,
  // Columns for which `sum_rows` is called at once.
  CAMLENS_SUMMED_COLUMNS = 128,
  // How many steps `compress` may write beyond what it counts.
  CAMLENS_SPARSE_SLACK = 16,
};

// Rows of a matrix without the steps that are zero, in segments of their depth.
struct CamlensSparseRows {
  // Where each step's columns lie in a panel, in bytes; and the steps.
  const int32_t* places;
  const uint32_t* steps;
  // Where each segment of a row begins among them, and the last one ends: so many numbers for each row.
  const int32_t* starts;
  int64_t starts_of_row;
};

// Some rows, and what their products are added to.
struct CamlensSparseRun {
  // The first row, how many rows further the next one is, and how many there are.
  int64_t first, step, count;
  // Of the first row: as many panels wide as are multiplied with. Those of the next one are `apart` floats further.
  float* sums;
  int64_t apart;
};

// Panels next to each other, so many bytes apart.
struct CamlensPanels {
  const char* first;
  int64_t apart, count;
};

// Some runs, with their segments from `begin` to `end`.
struct CamlensSparseProduct {
  struct CamlensSparseRows rows;
  int64_t begin, end;
  const struct CamlensSparseRun* runs;
  int64_t run_count;
  struct CamlensPanels panels;
  // Whether sums begin with `bias`, of whole panels, or with zero where that is null, and not with what is there.
  bool is_first;
  const float* bias;
  // What is read next: so many bytes of each of as many panels, fetched on the way. None may be.
  const char* next;
  int64_t next_bytes;
};

struct CamlensSparseTiles {
  // Which of the steps from `begin` to `end` of a row are not zero, and one that is where their number would be odd; returns how many.
  int64_t (*compress)(const void* row, int64_t begin, int64_t end, int32_t* places, uint32_t* steps);
  void (*multiply)(const struct CamlensSparseProduct* product);
  // Adds, for each of `count` rows of sums that lie `apart`, so many panels to `to`, which moves by `step` floats: the rows may overlap there.
  void (*fold)(const float* sums, int64_t count, int64_t apart, int64_t panels, float* to, int64_t step);
  // The sum of some rows of a matrix of the tiles' numbers, `row_bytes` apart, each times its factor: so many columns of it.
  void (*sum_rows)(const char* matrix, int64_t row_bytes, const int64_t* rows, const float* factors, int64_t count, int64_t columns, void* to);
  // `sums` between `low` and `high`, as numbers of the row's type. NaN stays NaN.
  void (*finish)(const float* sums, int64_t columns, float low, float high, void* to);
};

extern "C" {
#if defined(__x86_64__)
extern const struct CamlensSparseTiles camlens_sparse_tiles_avx2;
extern const struct CamlensSparseTiles camlens_sparse_tiles_avx512;
extern const struct CamlensSparseTiles camlens_sparse_tiles_avx512_bf16;
#else
extern const struct CamlensSparseTiles camlens_sparse_tiles_default;
#endif
}
