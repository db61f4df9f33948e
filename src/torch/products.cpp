#include "products.h"

#include <ATen/ATen.h>

const CamlensProductTiles* camlens_product_tiles() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return &camlens_product_tiles_avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &camlens_product_tiles_avx2;
  return nullptr;
#else
  return &camlens_product_tiles_default;
#endif
}

at::Tensor camlens_in_panels(const at::Tensor& right) {
  const CamlensProductTiles* const tiles = camlens_product_tiles();
  TORCH_CHECK(tiles != nullptr, "the processor lacks AVX2");
  const int64_t columns = right.size(-1), panels = (columns + tiles->width - 1) / tiles->width;
  const at::Tensor whole = at::constant_pad_nd(right, {0, panels * tiles->width - columns});
  return whole.unflatten(-1, {panels, tiles->width}).transpose(-2, -3).contiguous();
}
