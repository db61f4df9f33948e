// Work on the tensors of the fake devices.
#pragma once
#include "work.h"

#include <ATen/core/Tensor.h>

#include <optional>

namespace fake {

// The bytes between a tensor's first and last element; nothing if it has none, or if it is no memory of the fake
// devices nor page-locked.
std::optional<Use> use_of(const at::Tensor& tensor, bool is_write);

// A CPU tensor over the same bytes, which does not keep them.
at::Tensor view_of(const at::Tensor& tensor);

}  // namespace fake
