// Which numbers of a matrix are not zero, and their products.
#pragma once
#include "product_tiles.h"
#include "sparse_tiles.h"

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

// About what a thread's scratch memory of one kind takes at most between calls.
constexpr int64_t CAMLENS_SCRATCH_BYTES = 8 << 20;

// How many masks a row of such a depth has.
inline int64_t camlens_segments(int64_t depth) { return (depth + CAMLENS_SPARSE_SEGMENT - 1) / CAMLENS_SPARSE_SEGMENT; }

// Gates of a gradient, or none; raises where they are another's.
CamlensGated camlens_gated(const at::Tensor* gates, const at::Tensor& gradient, bool guided);

// Those from a pixel of such a depth on.
inline CamlensGated camlens_gated_from(CamlensGated gated, int64_t pixel, int64_t depth) {
  if (gated.gates != nullptr) gated.gates += pixel * camlens_segments(depth);
  return gated;
}

// What multiplies numbers of that type without zeros, where `camlens_product_tiles` has what multiplies with them.
const CamlensSparseTiles& camlens_sparse_tiles(const CamlensProductTiles& products);

// Makes place for so many; what is there is kept for the next call.
template <typename T>
void grow(std::vector<T>& vector, int64_t count) {
  if (static_cast<int64_t>(vector.size()) < count) vector.resize(count);
}

class SparseRows {
 public:
  // Makes place for so many rows of `depth` numbers, and forgets those that are there.
  void begin(int64_t rows, int64_t depth);
  // So many more, from `first` on, so many bytes apart. Runs point to their numbers, which must still be there then.
  void take(const CamlensSparseTiles& tiles, const char* first, int64_t rows, int64_t apart, CamlensGated gated);

  int64_t bytes() const;

  // Whether so few numbers are zero that a product with them takes less.
  bool are_dense() const;

  // A row's masks, and how many it has.
  const uint64_t* masks(int64_t row) const { return masks_.data() + row * segments_; }
  int64_t segments() const { return segments_; }

  // What the rows are multiplied with: panels whose rows take so many bytes. With `is_transposed` it is the first of those of the transposed
  // matrix that have the rows' numbers as columns, from the first of so many columns on. `following` is what is read next, or null.
  struct Right {
    CamlensPanels panels;
    int64_t row_bytes;
    const char* following;
    bool is_transposed;
    int64_t columns;
  };

  // Adds the products of some runs of these rows; or `is_first`, where sums begin with a bias, of whole panels, or with zero where that is
  // null. `scratch` is for what is transposed.
  void multiply(const CamlensSparseTiles& tiles, const std::vector<CamlensSparseRun>& runs, const Right& right, bool is_first, const float* bias,
                std::vector<float>& scratch) const;

 private:
  int64_t depth_ = 0, segments_ = 0, rows_ = 0, count_ = 0;
  std::vector<uint64_t> masks_;
};

// What a thread works in, the same memory at each call: fresh pages would take longer than what is computed in them.
struct SparseScratch {
  SparseRows rows;
  std::vector<float> sums, lines, transposed;
  std::vector<CamlensSparseRun> runs;
  static SparseScratch& of_thread();
  // Gives back what is more than a call needs as a rule.
  void end();
};
