#include "sparse_rows.h"

#include <algorithm>

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

void SparseRows::take(const CamlensSparseTiles& tiles, const char* first, int64_t rows, int64_t depth) {
  depth_ = depth;
  segments_ = (depth + SEGMENT - 1) / SEGMENT;
  // `compress` makes the number of each segment even.
  const int64_t most = rows * (depth + segments_) + CAMLENS_SPARSE_SLACK;
  grow(starts_, rows * (segments_ + 1));
  grow(places_, most);
  grow(steps_, most);
  int64_t at = 0;
  int32_t* starts = starts_.data();
  for (int64_t row = 0; row < rows; ++row, first += depth * 4) {
    for (int64_t begin = 0; begin < depth; begin += SEGMENT) {
      *starts++ = static_cast<int32_t>(at);
      at += tiles.compress(first, begin, std::min(begin + SEGMENT, depth), &places_[at], &steps_[at]);
    }
    *starts++ = static_cast<int32_t>(at);
  }
  are_dense_ = static_cast<double>(at) > DENSE * static_cast<double>(rows * depth);
}

void SparseRows::multiply(const CamlensSparseTiles& tiles, const std::vector<CamlensSparseRun>& runs, CamlensPanels panels,
                          int64_t step_bytes, bool is_first, const char* following) const {
  const int64_t at_once = std::max<int64_t>(1, CAMLENS_SPARSE_PANELS / panels.count);
  for (int64_t segment = 0; segment < segments_; segment += at_once) {
    const int64_t end = std::min(segment + at_once, segments_);
    const int64_t next = end * SEGMENT, next_end = std::min(next + at_once * SEGMENT, depth_);
    CamlensSparseProduct product{{places_.data(), steps_.data(), starts_.data(), segments_ + 1},
                                 segment,
                                 end,
                                 runs.data(),
                                 static_cast<int64_t>(runs.size()),
                                 panels,
                                 is_first && segment == 0,
                                 panels.first + next * step_bytes,
                                 (next_end - next) * step_bytes};
    if (end == segments_) {
      product.next = following;
      product.next_bytes = following == nullptr ? 0 : std::min(at_once * SEGMENT, depth_) * step_bytes;
    }
    tiles.multiply(&product);
  }
}
