// Which numbers of a matrix are not zero, and their products.
#pragma once
#include "product_tiles.h"
#include "sparse_tiles.h"

#include <cstdint>
#include <vector>

// About what a thread's scratch memory takes at most between calls.
constexpr int64_t CAMLENS_SCRATCH_BYTES = 8 << 20;

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
  void take(const CamlensSparseTiles& tiles, const char* first, int64_t rows, int64_t apart);

  int64_t bytes() const;

  // Whether so few numbers are zero that a product with them takes less.
  bool are_dense() const;

  // A row's masks, and how many it has.
  const uint64_t* masks(int64_t row) const { return masks_.data() + row * segments_; }
  int64_t segments() const { return segments_; }

  // Adds the products of some runs of these rows with panels, whose rows take so many bytes; `following` are the panels that are read next,
  // or null.
  void multiply(const CamlensSparseTiles& tiles, const std::vector<CamlensSparseRun>& runs, CamlensPanels panels, int64_t row_bytes,
                const char* following) const;
  // The same where sums begin with a bias, of whole panels, or with zero where that is null.
  void multiply_first(const CamlensSparseTiles& tiles, const std::vector<CamlensSparseRun>& runs, CamlensPanels panels, int64_t row_bytes,
                      const float* bias, const char* following) const;

 private:
  void multiply(const CamlensSparseTiles& tiles, CamlensSparseProduct product, int64_t row_bytes, const char* following) const;

  int64_t depth_ = 0, segments_ = 0, rows_ = 0, count_ = 0;
  std::vector<uint64_t> masks_;
};

// What a thread works in, the same memory at each call: fresh pages would take longer than what is computed in them.
struct SparseScratch {
  SparseRows rows;
  std::vector<float> sums, lines;
  std::vector<CamlensSparseRun> runs;
  static SparseScratch& of_thread();
  // Gives back what is more than a call needs as a rule.
  void end();
};
