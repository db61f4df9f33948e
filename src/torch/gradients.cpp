#include "gradients.h"

#include <ATen/ATen.h>

int64_t camlens_steps(int64_t size, int64_t kernel, const CamlensMoves& moves, int axis) {
  TORCH_CHECK(kernel > 0 && moves.stride[axis] > 0 && moves.padding[axis] >= 0 && moves.dilation[axis] > 0, "a convolution does not move so");
  const int64_t room = size + 2 * moves.padding[axis] - moves.dilation[axis] * (kernel - 1) - 1;
  return room < 0 ? 0 : room / moves.stride[axis] + 1;
}

void camlens_check_gradient(const at::Tensor& gradient, at::ScalarType type, int64_t outputs, at::IntArrayRef kernel, at::IntArrayRef size,
                            const CamlensMoves& moves) {
  TORCH_CHECK(gradient.dim() == 4 && gradient.is_cpu() && gradient.scalar_type() == type, "a gradient [N, outputs, h, w] of ", type,
              " on the CPU is expected");
  TORCH_CHECK(gradient.size(1) == outputs, "the gradient has ", gradient.size(1), " channels, the weight ", outputs, " outputs");
  bool fits = gradient.size(0) == size[0];
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t steps = camlens_steps(size[axis + 2], kernel[axis], moves, axis);
    fits = fits && steps > 0 && gradient.size(axis + 2) == steps;
  }
  TORCH_CHECK(fits, "the gradient has shape ", gradient.sizes(), ", the input ", size);
}
