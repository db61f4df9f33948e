// Rows of a matrix product in parts that fit the registers.
#pragma once
#include "micro/gemm.h"

#include <cstdint>

namespace camlens {

// `rows` rows in consecutive parts whose lengths differ by at most one.
struct RowParts {
  // The number of parts; the length of the shorter ones; the number of longer ones, which come first.
  int64_t count, shorter, longer;
  // As few parts as have at most `most` rows each.
  RowParts(int64_t rows, int64_t most) : RowParts(of(rows, (rows + most - 1) / most)) {}
  static RowParts of(int64_t rows, int64_t count) { return RowParts(count, rows / count, rows % count); }
  // The first row of a part.
  int64_t begin(int64_t part) const { return part * shorter + (part < longer ? part : longer); }

 private:
  RowParts(int64_t count, int64_t shorter, int64_t longer) : count(count), shorter(shorter), longer(longer) {}
};

// Multiplies one part of a matrix's rows. `tile` describes the product from the matrix's first row on. The first parts
// prefetch `next_panel`, which may be null.
inline void multiply_part(const GemmKernels& kernels, GemmTile tile, const RowParts& parts, int64_t part,
                          const void* next_panel) {
  const int64_t begin = parts.begin(part);
  tile.first.left += begin * tile.left_stride;
  tile.result = static_cast<char*>(tile.result) + begin * tile.result_stride;
  // Each part prefetches one cache line per step.
  const bool prefetches = next_panel != nullptr && part < kernels.panel_width * 4 / CACHE_LINE_BYTES;
  const int64_t offset = part * tile.depth * CACHE_LINE_BYTES;
  tile.first.prefetch = prefetches ? static_cast<const char*>(next_panel) + offset : nullptr;
  kernels.multiply(&tile, parts.begin(part + 1) - begin);
}

inline void multiply_rows(const GemmKernels& kernels, const GemmTile& tile, int64_t rows, const void* next_panel) {
  const RowParts parts(rows, kernels.max_rows);
  for (int64_t part = 0; part < parts.count; ++part) multiply_part(kernels, tile, parts, part, next_panel);
}

}  // namespace camlens
