// Matrix products whose right matrix lies in panels: [panels, depth, width of a panel], the last one filled up with zeros.
#pragma once
#include "product_tiles.h"

#include <ATen/core/Tensor.h>

// What the processor has the instructions for; null without AVX2 on x86.
const CamlensProductTiles* camlens_product_tiles();

// `[..., depth, columns]` to `[..., panels, depth, width]`.
at::Tensor camlens_in_panels(const at::Tensor& right);

// The rows of a product in parts of about the same size, each no larger than the registers allow.
struct RowParts {
  int64_t count, least, longer;
  RowParts(int64_t rows, int64_t most) : count((rows + most - 1) / most), least(rows / count), longer(rows % count) {}
  int64_t begin(int64_t part) const { return part * least + (part < longer ? part : longer); }
};

// One of the parts. `product` tells of the first row; `following` is the panel that is read after its own, or null.
inline void multiply_part(const CamlensProductTiles& tiles, CamlensProduct product, const RowParts& parts, int64_t part,
                          const float* following) {
  const int64_t begin = parts.begin(part);
  product.left += begin * product.left_stride;
  product.to += begin * product.to_stride;
  // The first parts fetch it, each so many cache lines as it has steps.
  const bool fetches = following != nullptr && part < tiles.width / CAMLENS_LINE;
  product.next = fetches ? following + part * product.depth * CAMLENS_LINE : nullptr;
  tiles.multiply(&product, parts.begin(part + 1) - begin);
}
