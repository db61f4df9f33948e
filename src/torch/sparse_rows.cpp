#include "sparse_rows.h"

#include "gate_tiles.h"
#include "gates.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace {

// The weights that belong to a segment stay in a core's smallest cache while rows pass by.
constexpr int64_t SEGMENT = CAMLENS_SPARSE_SEGMENT;
// The share of numbers from which on a product with all of them is faster.
constexpr double DENSE = 0.55;
constexpr int64_t FLOATS_OF_LINE = CAMLENS_LINE_BYTES / sizeof(float);

// Place for so many, from the beginning of a cache line on.
float* aligned(std::vector<float>& vector, int64_t count) {
  grow(vector, count + FLOATS_OF_LINE);
  const uintptr_t lines = (reinterpret_cast<uintptr_t>(vector.data()) + CAMLENS_LINE_BYTES - 1) / CAMLENS_LINE_BYTES;
  return reinterpret_cast<float*>(lines * CAMLENS_LINE_BYTES);
}

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

CamlensGated camlens_gated(const at::Tensor* gates, const at::Tensor& gradient, bool guided) {
  static_assert(int{CAMLENS_GATE_WORD} == int{CAMLENS_SPARSE_SEGMENT}, "gates are masks");
  if (gates == nullptr) return {nullptr, false};
  camlens_check_gates(*gates, gradient);
  return {reinterpret_cast<const uint64_t*>(gates->const_data_ptr<int64_t>()), guided};
}

void SparseRows::begin(int64_t rows, int64_t depth) {
  depth_ = depth;
  segments_ = camlens_segments(depth);
  rows_ = count_ = 0;
  grow(masks_, rows * segments_);
}

void SparseRows::take(const CamlensSparseTiles& tiles, const char* first, int64_t rows, int64_t apart, CamlensGated gated) {
  count_ += tiles.find(first, rows, apart, depth_, gated, masks_.data() + rows_ * segments_);
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

void SparseRows::multiply(const CamlensSparseTiles& tiles, const std::vector<CamlensSparseRun>& runs, const Right& right, bool is_first,
                          const float* bias, std::vector<float>& scratch) const {
  CamlensSparseProduct product{0, runs.data(), static_cast<int64_t>(runs.size()), right.panels, is_first, bias, {}, 0};
  for (; product.segment < segments_; ++product.segment, product.is_first = false) {
    const int64_t begin = product.segment * SEGMENT, next = begin + SEGMENT, following = next < depth_ ? next : 0;
    const int64_t numbers = std::min(SEGMENT, depth_ - following);
    const char* const base = next < depth_ ? right.panels.first : right.following;
    int64_t next_bytes = numbers * right.row_bytes;
    if (right.is_transposed) {
      const int64_t panel = right.row_bytes / static_cast<int64_t>(sizeof(float));
      float* const to = aligned(scratch, right.panels.count * SEGMENT * panel);
      const CamlensTransposed from{right.panels.first + begin / panel * right.panels.apart, right.panels.apart, std::min(SEGMENT, depth_ - begin), right.columns};
      tiles.transpose(&from, to);
      product.panels.first = reinterpret_cast<const char*>(to);
      product.panels.apart = SEGMENT * right.row_bytes;
      // Its rows lie next to each other in each panel that has some of the columns.
      const int64_t places = right.panels.count, panels = std::max<int64_t>(1, std::min((numbers + panel - 1) / panel, places));
      const int64_t each = places / panels;
      next_bytes = right.columns * right.row_bytes / each;
      for (int64_t p = 0; p < places && base != nullptr; ++p) {
        product.next[p] = base + (following / panel + std::min(p / each, panels - 1)) * right.panels.apart + p % each * next_bytes;
      }
    } else {
      product.panels.first = right.panels.first + begin * right.row_bytes;
      for (int64_t p = 0; p < right.panels.count && base != nullptr; ++p) product.next[p] = base + following * right.row_bytes + p * right.panels.apart;
    }
    product.next_bytes = base == nullptr ? 0 : next_bytes;
    tiles.multiply(&product);
  }
}
