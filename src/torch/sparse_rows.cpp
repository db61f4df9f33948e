#include "sparse_rows.h"

#include <algorithm>

namespace {

// The weights that belong to a segment stay in a core's smallest cache while rows pass by.
constexpr int64_t SEGMENT = CAMLENS_SPARSE_SEGMENT;
// The share of numbers from which on a product with all of them is faster.
constexpr double DENSE = 0.55;

}  // namespace

const CamlensSparseTiles& camlens_sparse_tiles(const CamlensProductTiles& products) {
#if defined(__x86_64__)
  if (&products == &camlens_product_tiles_avx512_bf16) return camlens_sparse_tiles_avx512_bf16;
  return &products == &camlens_product_tiles_avx512 ? camlens_sparse_tiles_avx512 : camlens_sparse_tiles_avx2;
#else
  (void)products;
  return camlens_sparse_tiles_default;
#endif
}

void SparseRows::begin(int64_t rows, int64_t depth) {
  depth_ = depth;
  segments_ = (depth + SEGMENT - 1) / SEGMENT;
  rows_ = count_ = 0;
  grow(masks_, rows * segments_);
}

void SparseRows::take(const CamlensSparseTiles& tiles, const char* first, int64_t rows, int64_t apart) {
  count_ += tiles.find(first, rows, apart, depth_, masks_.data() + rows_ * segments_);
  rows_ += rows;
}

int64_t SparseRows::bytes() const { return static_cast<int64_t>(masks_.size() * sizeof(uint64_t)); }

SparseScratch& SparseScratch::of_thread() {
  static thread_local SparseScratch scratch;
  return scratch;
}

void SparseScratch::end() {
  if (rows.bytes() + static_cast<int64_t>((sums.size() + lines.size()) * sizeof(float)) > CAMLENS_SCRATCH_BYTES) *this = SparseScratch();
}

bool SparseRows::are_dense() const { return static_cast<double>(count_) > DENSE * static_cast<double>(rows_ * depth_); }

void SparseRows::multiply(const CamlensSparseTiles& tiles, const std::vector<CamlensSparseRun>& runs, CamlensPanels panels,
                          int64_t row_bytes, const char* following) const {
  multiply(tiles, {0, runs.data(), static_cast<int64_t>(runs.size()), panels, false, nullptr, nullptr, 0}, row_bytes, following);
}

void SparseRows::multiply_first(const CamlensSparseTiles& tiles, const std::vector<CamlensSparseRun>& runs, CamlensPanels panels,
                                int64_t row_bytes, const float* bias, const char* following) const {
  multiply(tiles, {0, runs.data(), static_cast<int64_t>(runs.size()), panels, true, bias, nullptr, 0}, row_bytes, following);
}

void SparseRows::multiply(const CamlensSparseTiles& tiles, CamlensSparseProduct product, int64_t row_bytes, const char* following) const {
  for (; product.segment < segments_; ++product.segment) {
    const int64_t next = (product.segment + 1) * SEGMENT;
    const bool is_last = next >= depth_;
    product.next = is_last ? following : product.panels.first + next * row_bytes;
    product.next_bytes = is_last ? (following == nullptr ? 0 : std::min(SEGMENT, depth_) * row_bytes) : std::min(SEGMENT, depth_ - next) * row_bytes;
    tiles.multiply(&product);
    product.is_first = false;
  }
}
