// The arithmetic of matrix products whose right matrix lies in panels. product_tiles.cpp is compiled once for each instruction set and
// shares no function with the rest of the program: what a header defines inline could be taken from the wrong one.
#pragma once
#include <stdint.h>

enum {
  CAMLENS_LINE_BYTES = 64,
};

// What comes after sums and bias, of the results' rows and columns.
struct CamlensAfter {
  // Numbers that are added to them, as far apart as the results. May be null.
  const char* other;
  // Where gates of the results are written, as gate_tiles.h has them: the byte of the first row with the first column's bit, and how many bytes
  // further that of the next row is. May be null.
  char* gates;
  int64_t gates_apart;
  // What gates are open between.
  float low, high;
};

// What is multiplied with a part of a panel's steps.
struct CamlensPlace {
  // [rows, depth].
  const char* left;
  // [depth, width of a panel].
  const char* panel;
  // `depth` cache lines that will be read next: they are fetched on the way. May be null.
  const char* next;
};

// Some rows of a product, or of a sum of several, and the columns of one panel. Numbers are floats, or bfloat16 whose products are summed as floats. A step in
// depth takes four bytes of a row and of each column: a float, or two bfloat16. Strides count bytes.
struct CamlensProduct {
  struct CamlensPlace first;
  const struct CamlensPlace* more;
  int64_t more_count, depth, left_stride;
  // How far from the first row is the first one of the second half, the smaller one; 0 where it is so many strides as rows precede it.
  int64_t second;
  // [rows, columns]; there are at most as many columns as a panel has.
  void* to;
  int64_t to_stride, columns;
  // Floats, [width of a panel]; may be null.
  const float* bias;
  // What the result lies between, once all is added. NaN stays NaN.
  float low, high;
  struct CamlensAfter after;
};

// Products of each of some rows with each of others, which lie as they came: [rows, depth] and [columns, depth], without gaps. `depth` counts
// numbers.
struct CamlensDots {
  const void *left, *right;
  int64_t rows, columns, depth;
  // Of each column; may be null.
  const float* bias;
  // [rows, columns], so many bytes apart.
  void* to;
  int64_t to_stride;
};

struct CamlensProductTiles {
  // Columns of a panel, whose steps are whole cache lines, and the most rows that `multiply` takes.
  int64_t width, rows;
  void (*multiply)(const struct CamlensProduct* product, int64_t rows);
  void (*dot)(const struct CamlensDots* dots);
};

extern "C" {
#if defined(__x86_64__)
extern const struct CamlensProductTiles camlens_product_tiles_avx2;
extern const struct CamlensProductTiles camlens_product_tiles_avx512;
// Of bfloat16.
extern const struct CamlensProductTiles camlens_product_tiles_avx512_bf16;
#else
extern const struct CamlensProductTiles camlens_product_tiles_default;
#endif
}
