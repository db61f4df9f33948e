#include "products.h"

#include "isa.h"

#include <ATen/ATen.h>

const CamlensProductTiles* camlens_product_tiles(at::ScalarType type) {
#if defined(__x86_64__)
  const CamlensIsa isa = camlens_isa();
  if (type == at::kBFloat16) return isa >= CAMLENS_ISA_AVX512_BF16 ? &camlens_product_tiles_avx512_bf16 : nullptr;
  if (type != at::kFloat) return nullptr;
  if (isa >= CAMLENS_ISA_AVX512) return &camlens_product_tiles_avx512;
  return isa >= CAMLENS_ISA_AVX2 ? &camlens_product_tiles_avx2 : nullptr;
#else
  return type == at::kFloat ? &camlens_product_tiles_default : nullptr;
#endif
}

const CamlensProductTiles& camlens_product_tiles_of(const at::Tensor& weight) {
  const CamlensProductTiles* const tiles = camlens_product_tiles(weight.scalar_type());
  TORCH_CHECK(tiles != nullptr, "there are no instructions for products of ", weight.scalar_type());
  return *tiles;
}

at::Tensor camlens_whole_bias(const CamlensProductTiles& tiles, const at::Tensor& bias, int64_t columns) {
  TORCH_CHECK(bias.dim() == 1 && bias.numel() == columns && bias.scalar_type() == at::kFloat && bias.is_cpu(), "a bias of ", columns,
              " float32 is expected");
  const int64_t more = (tiles.width - columns % tiles.width) % tiles.width;
  return more == 0 ? bias.contiguous() : at::constant_pad_nd(bias, {0, more});
}

namespace {

// `[..., panels, depth, width]`, not contiguous.
at::Tensor by_panels(const at::Tensor& right) {
  const CamlensProductTiles& tiles = camlens_product_tiles_of(right);
  const int64_t columns = right.size(-1), panels = (columns + tiles.width - 1) / tiles.width;
  // Padding by nothing would copy too.
  const int64_t more = panels * tiles.width - columns;
  const at::Tensor whole = more == 0 ? right : at::constant_pad_nd(right, {0, more});
  return whole.unflatten(-1, {panels, tiles.width}).transpose(-2, -3);
}

}  // namespace

at::Tensor camlens_in_panels(const at::Tensor& right) {
  const at::Tensor in_panels = by_panels(right);
  if (right.scalar_type() != at::kBFloat16) return in_panels.contiguous();
  TORCH_CHECK(right.size(-2) % 2 == 0, "an even number of inputs is expected, not ", right.size(-2));
  return in_panels.unflatten(-2, {right.size(-2) / 2, 2}).transpose(-1, -2).contiguous();
}

at::Tensor camlens_in_sparse_panels(const at::Tensor& right) {
  const at::Tensor in_panels = by_panels(right);
  if (right.scalar_type() != at::kBFloat16) return in_panels.contiguous();
  // The halves of a panel's columns, by fours, take turns.
  const int64_t width = in_panels.size(-1);
  return in_panels.unflatten(-1, {2, width / 8, 4}).transpose(-2, -3).contiguous().flatten(-3, -1);
}
