// Rows of a matrix with many zeros: the masks of their nonzero elements, and their products.
#pragma once
#include "micro/gate_layout.h"
#include "micro/sparse.h"
#include "scratch.h"

#include <cstdint>
#include <vector>

namespace camlens {

// Words of the mask of a row, or of the gates of a pixel, with `depth` channels.
inline int64_t mask_words(int64_t depth) { return (depth + MASK_BITS - 1) / MASK_BITS; }

// The mask from a pixel on; a pixel has `depth` channels.
inline SparseMask mask_from(SparseMask mask, int64_t pixel, int64_t depth) {
  if (mask.gates != nullptr) mask.gates += pixel * mask_words(depth);
  return mask;
}

class SparseRows {
 public:
  // Removes all rows and makes room for `rows` rows of `depth` elements.
  void begin(int64_t rows, int64_t depth);
  // Appends `rows` rows, `stride` bytes apart. Only their masks are stored; `SparseRun` points to the elements.
  void append(const SparseKernels& kernels, const char* first, int64_t rows, int64_t stride, SparseMask mask);

  // Memory in use.
  int64_t bytes() const;

  // Whether zeros are so rare that a dense product is faster.
  bool are_dense() const;

  // A row's mask, and its number of words.
  const uint64_t* masks(int64_t row) const { return masks_.data() + row * words_; }
  int64_t words() const { return words_; }

  // The right matrix of a product.
  struct Right {
    // Panels whose rows have `row_bytes` bytes. With `is_transposed`: the first panel of the transposed matrix, from
    // the first of `columns` rows on, which are the product's columns; the panels' columns are then the product's
    // depth.
    SparsePanels panels;
    int64_t row_bytes;
    // What the next product reads, to prefetch; may be null.
    const char* next;
    bool is_transposed;
    int64_t columns;
  };

  // Adds the products of some runs of these rows to the runs' sums. With `is_first`, sums begin with `bias`, as long as
  // the panels' columns, or with zero if it is null. `scratch` holds what is transposed.
  void multiply(const SparseKernels& kernels, const std::vector<SparseRun>& runs, const Right& right, bool is_first,
                const float* bias, std::vector<float>& scratch) const;

 private:
  int64_t depth_ = 0, words_ = 0, rows_ = 0;
  // Nonzero elements.
  int64_t count_ = 0;
  std::vector<uint64_t> masks_;
};

struct SparseScratch {
  SparseRows rows;
  std::vector<float> sums, lines, transposed;
  std::vector<SparseRun> runs;
  // This thread's.
  static SparseScratch& of_thread();
  // Releases the memory if there is more than is kept between calls.
  void end();
};

}  // namespace camlens
