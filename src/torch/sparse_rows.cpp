#include "sparse_rows.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <limits>

namespace {

// Steps that are kept together. The weights that belong to them stay in a core's smallest cache while rows pass by: of fewer panels,
// those of more steps.
constexpr int64_t SEGMENT = 64;
// The share of steps from which on a product with all of them is faster.
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
  // `compress` makes the number of each segment even.
  const int64_t most = rows * (depth + segments_) + CAMLENS_SPARSE_SLACK;
  TORCH_CHECK(most <= std::numeric_limits<int32_t>::max(), "too much for one line: ", rows, " × ", depth);
  grow(starts_, rows * (segments_ + 1));
  grow(places_, most);
  grow(steps_, most);
}

void SparseRows::take(const CamlensSparseTiles& tiles, const char* first, int64_t rows, int64_t apart) {
  int32_t* starts = starts_.data() + rows_ * (segments_ + 1);
  for (int64_t row = 0; row < rows; ++row, first += apart) {
    for (int64_t begin = 0; begin < depth_; begin += SEGMENT) {
      *starts++ = static_cast<int32_t>(count_);
      count_ += tiles.compress(first, begin, std::min(begin + SEGMENT, depth_), places_.data() + count_, steps_.data() + count_);
    }
    *starts++ = static_cast<int32_t>(count_);
  }
  rows_ += rows;
}

int64_t SparseRows::bytes() const {
  return static_cast<int64_t>((starts_.size() + places_.size()) * sizeof(int32_t) + steps_.size() * sizeof(uint32_t));
}

SparseScratch& SparseScratch::of_thread() {
  static thread_local SparseScratch scratch;
  return scratch;
}

void SparseScratch::end() {
  if (rows.bytes() + static_cast<int64_t>((sums.size() + lines.size()) * sizeof(float)) > CAMLENS_SCRATCH_BYTES) *this = SparseScratch();
}

bool SparseRows::are_dense() const { return static_cast<double>(count_) > DENSE * static_cast<double>(rows_ * depth_); }

void SparseRows::multiply(const CamlensSparseTiles& tiles, const std::vector<CamlensSparseRun>& runs, CamlensPanels panels,
                          int64_t step_bytes, const char* following) const {
  multiply(tiles, {{}, 0, 0, runs.data(), static_cast<int64_t>(runs.size()), panels, false, nullptr, nullptr, 0}, step_bytes, following);
}

void SparseRows::multiply_first(const CamlensSparseTiles& tiles, const std::vector<CamlensSparseRun>& runs, CamlensPanels panels,
                                int64_t step_bytes, const float* bias, const char* following) const {
  multiply(tiles, {{}, 0, 0, runs.data(), static_cast<int64_t>(runs.size()), panels, true, bias, nullptr, 0}, step_bytes, following);
}

void SparseRows::multiply(const CamlensSparseTiles& tiles, CamlensSparseProduct product, int64_t step_bytes, const char* following) const {
  product.rows = {places_.data(), steps_.data(), starts_.data(), segments_ + 1};
  const int64_t at_once = std::max<int64_t>(1, CAMLENS_SPARSE_PANELS / product.panels.count);
  for (int64_t segment = 0; segment < segments_; segment += at_once) {
    product.begin = segment;
    product.end = std::min(segment + at_once, segments_);
    const int64_t next = product.end * SEGMENT, next_end = std::min(next + at_once * SEGMENT, depth_);
    product.next = product.panels.first + next * step_bytes;
    product.next_bytes = (next_end - next) * step_bytes;
    if (product.end == segments_) {
      product.next = following;
      product.next_bytes = following == nullptr ? 0 : std::min(at_once * SEGMENT, depth_) * step_bytes;
    }
    tiles.multiply(&product);
    product.is_first = false;
  }
}
