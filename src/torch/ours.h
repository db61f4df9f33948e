// Whether a tensor may be written into.
#pragma once
#include <ATen/core/Tensor.h>

// Nobody else can see what is written into the tensor.
inline bool is_ours(const at::Tensor& tensor) {
  return tensor.use_count() == 1 && tensor.has_storage() && tensor.storage().use_count() == 1 && tensor.is_non_overlapping_and_dense();
}
