// What camlens computes with kernels of its own on a CUDA device. Elements are float32, float16 or bfloat16; the
// arithmetic is in float32, and an element is rounded once, when it is stored. A row's result has the same bits in each
// batch. Functions throw `std::invalid_argument` if tensors do not fit, and what ATen and the launcher throw. Results
// are new tensors on the device of the arguments.
#pragma once
#include "launcher.h"

#include <cstddef>
#include <cstdint>

namespace camlens::cuda {

// A rectifier's reverse: the sum of 1 to 4 gradients of one shape and dtype, in the order given, where
// low < source < high, 0 elsewhere; with `guided`, max(sum, 0) there. As in ATen's threshold_backward, an
// element of `source` that is NaN lets the gradient pass. A bound that is NaN does not close, and a sum that is NaN
// passes. The result has the layout of `source`, if that is dense.
at::Tensor gate(Launcher& launcher, const at::Tensor* const* gradients, size_t count, const at::Tensor& source,
                double low, double high, bool guided);

// The sum of 2 to 4 tensors of one shape and dtype, in the order given. The result has the layout of the first that is
// dense.
at::Tensor sum(Launcher& launcher, const at::Tensor* const* terms, size_t count);

// min(max((value + bias[c]) + other, low), high) in the memory of `value`, which is `[N, C, H, W]`, contiguous or
// channels-last, or `[N, C]`, contiguous. `bias`, `[C]`, and `other`, of the shape of `value`, have its dtype, or are
// null; `other` may be `value`. NaN stays NaN, and a bound that is NaN does not limit.
void epilogue(Launcher& launcher, const at::Tensor& value, const at::Tensor* bias, const at::Tensor* other, double low,
              double high);

// Grad-CAM: `relu(sum_k mean_ij(gradients)_k * activations_k)`, `[N, h, w]` of float32. `activations` and `gradients`
// are `[N, K, h, w]` of one dtype, each with its own strides.
at::Tensor grad_cam(Launcher& launcher, const at::Tensor& activations, const at::Tensor& gradients);

struct Fused {
  // `[N, C, H, W]`, and `[N, H, W]` or undefined; contiguous, of float32.
  at::Tensor fused, upsampled;
};

// Guided Grad-CAM: `guided`, `[N, C, H, W]` of any strides, times `map`, `[N, h, w]` of float32, resized bilinearly
// with half-pixel centres and without antialiasing, as upsample_bilinear2d(align_corners=false) does.
Fused fuse(Launcher& launcher, const at::Tensor& guided, const at::Tensor& map, bool with_upsampled);

// Pictures of bytes `[N, H, W, C]`, of 1 to 4 channels, to `(bytes / 255 - mean[c]) / deviation[c]`, each operation
// rounded to float32 as torchvision's to_tensor and normalize do. The result is `[N, C, H, W]`, contiguous or
// channels-last.
at::Tensor normalize(Launcher& launcher, const at::Tensor& bytes, const float* mean, const float* deviation,
                     c10::ScalarType kind, bool channels_last);

}  // namespace camlens::cuda
