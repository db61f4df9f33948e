// Matrix products whose right matrix lies in panels: [panels, depth, width of a panel], the last one filled up with zeros; of bfloat16,
// [panels, depth, width, 2].
#pragma once
#include "product_tiles.h"

#include <ATen/core/Tensor.h>

// What multiplies numbers of that type, float32 or bfloat16; null where `camlens_isa` lacks the instructions: AVX2 on
// x86; for bfloat16 AVX-512 BF16. The other kernels' tables are chosen by this one.
const CamlensProductTiles* camlens_product_tiles(at::ScalarType type);

// The same; raises where it is null.
const CamlensProductTiles& camlens_product_tiles_of(const at::Tensor& weight);

// A bias of so many float32, as long as all panels; raises where it is another.
at::Tensor camlens_whole_bias(const CamlensProductTiles& tiles, const at::Tensor& bias, int64_t columns);

// `[..., depth, columns]` to panels. Of bfloat16, the depth is even, and must be what `camlens_product_tiles` has the instructions for.
at::Tensor camlens_in_panels(const at::Tensor& right);

// The same for products without zeros: `[..., panels, depth, width]`, of any depth, the columns in the order of sparse_tiles.h.
at::Tensor camlens_in_sparse_panels(const at::Tensor& right);

// The rows of a product in parts of about the same size.
struct RowParts {
  int64_t count, least, longer;
  // None has more than `most`.
  RowParts(int64_t rows, int64_t most) : RowParts(of(rows, (rows + most - 1) / most)) {}
  static RowParts of(int64_t rows, int64_t count) { return RowParts(count, rows / count, rows % count); }
  int64_t begin(int64_t part) const { return part * least + (part < longer ? part : longer); }

 private:
  RowParts(int64_t count, int64_t least, int64_t longer) : count(count), least(least), longer(longer) {}
};

// One of the parts. `product` tells of the first row; `following` is the panel that is read after its own, or null.
inline void multiply_part(const CamlensProductTiles& tiles, CamlensProduct product, const RowParts& parts, int64_t part,
                          const void* following) {
  const int64_t begin = parts.begin(part);
  product.first.left += begin * product.left_stride;
  product.to = static_cast<char*>(product.to) + begin * product.to_stride;
  // The first parts fetch it, each so many cache lines as it has steps.
  const bool fetches = following != nullptr && part < tiles.width * 4 / CAMLENS_LINE_BYTES;
  product.first.next = fetches ? static_cast<const char*>(following) + part * product.depth * CAMLENS_LINE_BYTES : nullptr;
  tiles.multiply(&product, parts.begin(part + 1) - begin);
}

// All of so many rows.
inline void multiply_rows(const CamlensProductTiles& tiles, const CamlensProduct& product, int64_t rows, const void* following) {
  const RowParts parts(rows, tiles.rows);
  for (int64_t part = 0; part < parts.count; ++part) multiply_part(tiles, product, parts, part, following);
}
