#include "sparse_rows.h"

#include "micro/gemm.h"

#include <algorithm>

namespace camlens {

namespace {

// The weights of one segment stay in a core's first-level cache while rows pass by.
constexpr int64_t SEGMENT = MASK_BITS;
// The share of nonzero elements above which a dense product is faster.
constexpr double DENSE = 0.55;
constexpr int64_t FLOATS_PER_LINE = CACHE_LINE_BYTES / sizeof(float);

// Makes room for `count` floats from the beginning of a cache line on.
float* aligned(std::vector<float>& vector, int64_t count) {
  grow(vector, count + FLOATS_PER_LINE);
  const uintptr_t line = (reinterpret_cast<uintptr_t>(vector.data()) + CACHE_LINE_BYTES - 1) / CACHE_LINE_BYTES;
  return reinterpret_cast<float*>(line * CACHE_LINE_BYTES);
}

}  // namespace

void SparseRows::begin(int64_t rows, int64_t depth) {
  depth_ = depth;
  words_ = mask_words(depth);
  rows_ = count_ = 0;
  grow(masks_, rows * words_);
}

void SparseRows::append(const SparseKernels& kernels, const char* first, int64_t rows, int64_t stride,
                        SparseMask mask) {
  count_ += kernels.find(first, rows, stride, depth_, mask, masks_.data() + rows_ * words_);
  rows_ += rows;
}

int64_t SparseRows::bytes() const { return static_cast<int64_t>(masks_.size() * sizeof(uint64_t)); }

SparseScratch& SparseScratch::of_thread() {
  static thread_local SparseScratch scratch;
  return scratch;
}

void SparseScratch::end() {
  const int64_t floats = static_cast<int64_t>((sums.size() + lines.size()) * sizeof(float));
  if (rows.bytes() + floats > SCRATCH_BYTES) *this = SparseScratch();
}

bool SparseRows::are_dense() const { return static_cast<double>(count_) > DENSE * static_cast<double>(rows_ * depth_); }

void SparseRows::multiply(const SparseKernels& kernels, const std::vector<SparseRun>& runs, const Right& right,
                          bool is_first, const float* bias, std::vector<float>& scratch) const {
  SparseProduct product{0, runs.data(), static_cast<int64_t>(runs.size()), right.panels, is_first, bias, {}, 0};
  for (; product.segment < words_; ++product.segment, product.is_first = false) {
    // Prefetches the next segment; after the last one, the first segment of what comes next.
    const int64_t begin = product.segment * SEGMENT, next = begin + SEGMENT, following = next < depth_ ? next : 0;
    const int64_t elements = std::min(SEGMENT, depth_ - following);
    const char* const base = next < depth_ ? right.panels.first : right.next;
    int64_t prefetch_bytes = elements * right.row_bytes;
    if (right.is_transposed) {
      const int64_t panel = right.row_bytes / static_cast<int64_t>(sizeof(float));
      float* const to = aligned(scratch, right.panels.count * SEGMENT * panel);
      const SparseTranspose from{right.panels.first + begin / panel * right.panels.stride, right.panels.stride,
                                 std::min(SEGMENT, depth_ - begin), right.columns};
      kernels.transpose(&from, to);
      product.panels.first = reinterpret_cast<const char*>(to);
      product.panels.stride = SEGMENT * right.row_bytes;
      // The segment's columns lie in `panels` panels, in which the product's columns are consecutive rows. The
      // addresses to prefetch from are divided among these panels.
      const int64_t addresses = right.panels.count;
      const int64_t panels = std::max<int64_t>(1, std::min((elements + panel - 1) / panel, addresses));
      const int64_t each = addresses / panels;
      prefetch_bytes = right.columns * right.row_bytes / each;
      for (int64_t p = 0; p < addresses && base != nullptr; ++p) {
        const int64_t source = following / panel + std::min(p / each, panels - 1);
        product.prefetch[p] = base + source * right.panels.stride + p % each * prefetch_bytes;
      }
    } else {
      product.panels.first = right.panels.first + begin * right.row_bytes;
      for (int64_t p = 0; p < right.panels.count && base != nullptr; ++p) {
        product.prefetch[p] = base + following * right.row_bytes + p * right.panels.stride;
      }
    }
    product.prefetch_bytes = base == nullptr ? 0 : prefetch_bytes;
    kernels.multiply(&product);
  }
}

}  // namespace camlens
