// Rows of a matrix without their zeros, and what they are multiplied with.
#pragma once
#include "product_tiles.h"
#include "sparse_tiles.h"

#include <cstdint>
#include <vector>

// What multiplies numbers of that type without zeros, where `camlens_product_tiles` has what multiplies with them.
const CamlensSparseTiles& camlens_sparse_tiles(const CamlensProductTiles& products);

// Makes place for so many; what is there is kept for the next call.
template <typename T>
void grow(std::vector<T>& vector, int64_t count) {
  if (static_cast<int64_t>(vector.size()) < count) vector.resize(count);
}

class SparseRows {
 public:
  // Of so many rows of `depth` steps, from `first` on.
  void take(const CamlensSparseTiles& tiles, const char* first, int64_t rows, int64_t depth);

  // Whether so few steps are zero that a product with them takes less.
  bool are_dense() const { return are_dense_; }

  // Adds the products of some runs with panels whose steps take so many bytes; `following` are the panels that are read next, or null.
  // Where this `is_first`, sums begin with zero.
  void multiply(const CamlensSparseTiles& tiles, const std::vector<CamlensSparseRun>& runs, CamlensPanels panels, int64_t step_bytes,
                bool is_first, const char* following) const;

 private:
  int64_t depth_ = 0, segments_ = 0;
  bool are_dense_ = false;
  std::vector<int32_t> starts_, places_;
  std::vector<uint32_t> steps_;
};
