// The arithmetic of matrix products whose left matrix has many zeros: they are left out. The right matrix lies in panels, as in
// product_tiles.h for floats; of bfloat16, see `CamlensPanels`. sparse_tiles.cpp is compiled as product_tiles.cpp is.
#pragma once
#include <stdint.h>

enum {
  // Panels that are multiplied with at once, at most.
  CAMLENS_SPARSE_PANELS = 4,
  // Columns for which `sum_rows` is called at once.
  CAMLENS_SUMMED_COLUMNS = 128,
  // The numbers of a row that one mask tells of: a segment.
  CAMLENS_SPARSE_SEGMENT = 64,
};

// Some rows, and what their products are added to.
struct CamlensSparseRun {
  // The numbers of the first row, and which of them are not zero: a bit for each, the lowest of a mask first. Those of the next row are so
  // many bytes, and so many masks, further.
  const char* numbers;
  int64_t numbers_apart;
  const uint64_t* masks;
  int64_t masks_apart;
  int64_t count;
  // Of the first row: as many panels wide as are multiplied with. Those of the next one are `sums_apart` floats further.
  float* sums;
  int64_t sums_apart;
};

// Panels next to each other, so many bytes apart. Each has a row of columns for each number of depth: floats in their order; of 32 bfloat16
// those to which numbers 0 to 3 and 16 to 19 belong come first, then 4 to 7 and 20 to 23 and so on, so that the lower halves of the
// quarters of two rows, taken in turns, are the pairs of the first 16 columns, and the upper halves those of the others.
struct CamlensPanels {
  const char* first;
  int64_t apart, count;
};

// One segment of the rows of some runs.
struct CamlensSparseProduct {
  int64_t segment;
  const struct CamlensSparseRun* runs;
  int64_t run_count;
  // From the segment's rows on.
  struct CamlensPanels panels;
  // Whether sums begin with `bias`, of whole panels, or with zero where that is null, and not with what is there.
  bool is_first;
  const float* bias;
  // What is read next: so many bytes from each of as many places as there are panels, fetched on the way. None may be.
  const char* next[CAMLENS_SPARSE_PANELS];
  int64_t next_bytes;
};

// Floats of panels of the transposed matrix, as `CamlensPanels` has them: at most a segment's columns of some of its rows.
struct CamlensTransposed {
  // The first panel that has the columns, from the first of the rows on; the next one is so many bytes further.
  const char* first;
  int64_t apart;
  int64_t columns, rows;
};

// Which numbers of rows count as zero too: those whose bit is not set, where there are bits, a row's masks after each other; and with `is_guided`
// those that are not above zero. NaN counts where its bit is set.
struct CamlensGated {
  const uint64_t* gates;
  bool is_guided;
};

// Rows of sums, so many floats apart, that are written as numbers of the tiles, so many bytes apart; between `low` and `high`. NaN stays NaN.
struct CamlensSums {
  const float* first;
  int64_t apart, rows, columns;
  float low, high;
  char* to;
  int64_t to_apart;
};

struct CamlensSparseTiles {
  // Which of the numbers of rows of such a depth, so many bytes apart, are not zero; returns how many. A row's masks follow each other.
  int64_t (*find)(const char* first, int64_t rows, int64_t apart, int64_t depth, struct CamlensGated gated, uint64_t* masks);
  void (*multiply)(const struct CamlensSparseProduct* product);
  // The same as a segment of as many panels as the rows fill, a segment's rows apart; further columns of the last one may stay as they are.
  // Null for bfloat16.
  void (*transpose)(const struct CamlensTransposed* transposed, float* panels);
  // Adds, for each of `count` rows of sums that lie `apart`, so many panels to `to`, which moves by `step` floats: the rows may overlap there.
  void (*fold)(const float* sums, int64_t count, int64_t apart, int64_t panels, float* to, int64_t step);
  // The sum of some rows of a matrix of the tiles' numbers, `row_bytes` apart, each times its factor: so many columns of it.
  void (*sum_rows)(const char* matrix, int64_t row_bytes, const int64_t* rows, const float* factors, int64_t count, int64_t columns, void* to);
  void (*finish)(const struct CamlensSums* sums);
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
