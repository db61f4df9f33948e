//! Kernels for the gradient of a convolution to its input.
//!
//! Which one is the fastest depends on the shapes and on the processor. They are timed on the first gradient, and the
//! fastest is kept.

use tch::{Kind, Tensor};

use crate::torch::{Call, OperatorError, PendingMask, Value, channels_last, window_may_miss};

use super::col2im::{Col2im, Col2imCall};
use super::depthwise::{Depthwise, DepthwiseGradientCall};
use super::forward::{ForwardCall, ForwardKernel};
use super::onednn::{INPUT, Operators};
use super::sparse::{DENSITY_OF_GUIDED_GRADIENTS, SparseBackward, SparseBackwardCall, with_typical_zeros};
use crate::plan::KernelChoice;
use crate::plan::autotune::{Candidate, Chosen, Fetched, Task, autotune, bytes};
use crate::plan::convolution::Activation;
use crate::plan::convolution::Geometry;

/// A weight packed for one kernel.
#[derive(Debug)]
pub(in crate::plan) enum InputGradientKernel {
    /// oneDNN's transposed convolution.
    Transposed(Tensor),
    /// The same in float32, for a gradient in another dtype: with groups, oneDNN's bfloat16 kernel takes up to ten
    /// times as long where the stride is 2.
    Float32(Tensor),
    /// A convolution with the kernel flipped in both axes and the channels exchanged. For a stride of 1.
    FlippedKernel(ForwardKernel),
    Col2im(Col2im),
    Sparse(SparseBackward),
    Depthwise(Depthwise),
}

impl InputGradientKernel {
    /// The kernel for a convolution with `weight`, timed on `grad_output`, the gradient of the result for an input of
    /// shape `size`. `forward_weight` is the [weight packed for the forward kernel](ForwardKernel::panels), if this one
    /// can share it; `before` as for [`autotune`].
    #[expect(clippy::too_many_arguments, reason = "each is a part of the operation")]
    pub fn choose(
        weight: &Tensor,
        forward_weight: Option<&Tensor>,
        geometry: &Geometry,
        grad_output: &Tensor,
        size: &[i64],
        operators: &Operators,
        choice: &KernelChoice,
        before: Option<Chosen<Self>>,
    ) -> Result<Chosen<Self>, OperatorError> {
        let (shape, grad_shape) = (weight.size(), grad_output.size());
        let flipped = flipped(weight, geometry, &grad_shape)?;
        let kernels =
            Self::candidates(weight, forward_weight, flipped.as_ref(), geometry, &grad_shape, size, operators);
        let (kind, shares) = (grad_output.f_kind()?, forward_weight.is_some());
        let shapes = format_args!("{kind:?} {shape:?} {size:?} {grad_shape:?} {geometry:?} {shares}");
        let task = Task { operator: "a convolution's input gradient", shapes, choice };
        let grad_output = &channels_last(&with_typical_zeros(grad_output, DENSITY_OF_GUIDED_GRADIENTS)?)?;
        autotune(&task, before, kernels, Self::fetched, |kernel| {
            let call = kernel.call(&shape, geometry, &grad_output.size(), size, operators)?;
            Ok(move || call.input_gradient(grad_output))
        })
    }

    /// What a run fetches.
    fn fetched(&self) -> Fetched {
        let own = |bytes| Fetched { bytes, is_onednn: false };
        match self {
            InputGradientKernel::Transposed(weight) | InputGradientKernel::Float32(weight) => {
                Fetched { bytes: bytes(weight), is_onednn: true }
            }
            InputGradientKernel::FlippedKernel(kernel) => kernel.fetched(),
            InputGradientKernel::Col2im(col2im) => own(col2im.size()),
            InputGradientKernel::Sparse(sparse) => own(sparse.size()),
            InputGradientKernel::Depthwise(depthwise) => own(depthwise.size()),
        }
    }

    /// Every kernel that may suit; `forward_weight` is as for [`InputGradientKernel::choose`], `flipped` as [`flipped`]
    /// returns it.
    pub(in crate::plan) fn candidates<'a>(
        weight: &'a Tensor,
        forward_weight: Option<&'a Tensor>,
        flipped: Option<&'a (Tensor, Geometry)>,
        geometry: &'a Geometry,
        grad_output: &'a [i64],
        size: &[i64],
        operators: &'a Operators,
    ) -> Vec<Candidate<'a, Self>> {
        let output_padding = geometry.output_padding(size, &weight.size());
        let transposed = move || {
            Ok(Some(InputGradientKernel::Transposed(operators.pack_transposed(
                weight,
                geometry,
                output_padding,
                grad_output,
            )?)))
        };
        let depthwise = move || Ok(Depthwise::new(weight, geometry)?.map(InputGradientKernel::Depthwise));
        let mut kernels = vec![Candidate::new(depthwise), Candidate::new(transposed)];
        if geometry.groups > 1 && weight.f_kind().is_ok_and(|kind| kind != Kind::Float) {
            kernels.push(Candidate::new(move || {
                let wide = weight.f_to_kind(Kind::Float)?;
                Ok(Some(InputGradientKernel::Float32(operators.pack_transposed(
                    &wide,
                    geometry,
                    output_padding,
                    grad_output,
                )?)))
            }));
        }
        if let Some((flipped, flipped_geometry)) = flipped {
            let dense = ForwardKernel::dense(flipped, flipped_geometry, grad_output, operators);
            kernels.extend(dense.into_iter().map(|kernel| kernel.map(InputGradientKernel::FlippedKernel)));
        }
        kernels.push(Candidate::new(move || Ok(Col2im::new(weight, geometry)?.map(InputGradientKernel::Col2im))));
        kernels
            .push(Candidate::new(move || Ok(SparseBackward::new(weight, geometry)?.map(InputGradientKernel::Sparse))));
        if let Some(forward_weight) = forward_weight {
            let from_forward = move || {
                Ok(SparseBackward::from_forward(forward_weight, weight, geometry)?.map(InputGradientKernel::Sparse))
            };
            kernels.push(Candidate::new(from_forward));
        }
        kernels
    }

    /// Whether the kernel suits a gradient of this shape too; packed weights are kept for inputs of any size.
    pub fn suits(&self, weight: &[i64], geometry: &Geometry, grad_output: &[i64]) -> bool {
        !matches!(self, InputGradientKernel::FlippedKernel(_))
            || flipped_geometry(weight, geometry, grad_output).is_some()
    }

    /// The kernel prepared for a weight of shape `shape` and one shape of input and gradient, with any number of rows.
    pub fn call(
        &self,
        shape: &[i64],
        geometry: &Geometry,
        grad_output: &[i64],
        size: &[i64],
        operators: &Operators,
    ) -> Result<InputGradientCall, OperatorError> {
        Ok(match self {
            InputGradientKernel::Transposed(weight) => InputGradientCall::Transposed(operators.transposed(
                weight,
                geometry,
                geometry.output_padding(size, shape),
            )?),
            InputGradientKernel::Float32(weight) => InputGradientCall::Float32(operators.transposed(
                weight,
                geometry,
                geometry.output_padding(size, shape),
            )?),
            InputGradientKernel::FlippedKernel(kernel) => {
                let flipped_geometry = flipped_geometry(shape, geometry, grad_output)
                    .ok_or_else(|| OperatorError::Unsupported { operator: "a flipped convolution".into() })?;
                InputGradientCall::FlippedKernel(kernel.call(
                    &Value::None,
                    &flipped_geometry,
                    Activation::None,
                    operators,
                )?)
            }
            InputGradientKernel::Col2im(col2im) => InputGradientCall::Col2im(col2im.call(geometry, size)),
            InputGradientKernel::Sparse(sparse) => InputGradientCall::Sparse(sparse.call(geometry, size)),
            InputGradientKernel::Depthwise(depthwise) => {
                InputGradientCall::Depthwise(depthwise.gradient_call(geometry, size))
            }
        })
    }
}

/// The parameters with which a convolution by the flipped weight gives the gradient to the input; `None` where it does
/// not.
fn flipped_geometry(weight: &[i64], geometry: &Geometry, grad_output: &[i64]) -> Option<Geometry> {
    let padding = [0, 1].map(|axis| geometry.dilation[axis] * (weight[axis + 2] - 1) - geometry.padding[axis]);
    let suits = geometry.stride == [1, 1]
        && padding.iter().all(|&padding| padding >= 0)
        // The pass `fuse_convolutions` excludes the same shapes: oneDNN's operators are wrong for them.
        && grad_output[1] > 1
        && !window_may_miss(&grad_output[2..], &weight[2..], &padding, &geometry.dilation);
    suits.then_some(Geometry { padding, ..*geometry })
}

/// The weight `[outputs, inputs / groups, h, w]` as `[inputs, outputs / groups, h, w]`, flipped in both axes, and the
/// parameters of the convolution of `grad_output` with it. `None` where that is not the gradient to the input.
pub(in crate::plan) fn flipped(
    weight: &Tensor,
    geometry: &Geometry,
    grad_output: &[i64],
) -> Result<Option<(Tensor, Geometry)>, OperatorError> {
    let [outputs, inputs, height, width] = *weight.size().as_slice() else { return Ok(None) };
    let Some(geometry_of_flipped) = flipped_geometry(&weight.size(), geometry, grad_output) else { return Ok(None) };
    let groups = geometry.groups;
    let exchanged = weight
        .f_reshape([groups, outputs / groups, inputs, height, width])?
        .f_transpose(1, 2)?
        .f_reshape([groups * inputs, outputs / groups, height, width])?;
    Ok(Some((exchanged.f_flip([2i64, 3])?.f_contiguous()?, geometry_of_flipped)))
}

/// A kernel with all of its arguments except the gradient.
#[derive(Debug)]
pub(in crate::plan) enum InputGradientCall {
    Transposed(Call),
    Float32(Call),
    FlippedKernel(ForwardCall),
    Col2im(Col2imCall),
    Sparse(SparseBackwardCall),
    Depthwise(DepthwiseGradientCall),
}

impl InputGradientCall {
    /// The gradient to the input. `grad_output` is channels-last.
    pub fn input_gradient(&self, grad_output: &Tensor) -> Result<Tensor, OperatorError> {
        match self {
            InputGradientCall::Transposed(call) => call.call([(INPUT, grad_output)]),
            InputGradientCall::Float32(call) => {
                let wide = call.call([(INPUT, &grad_output.f_to_kind(Kind::Float)?)])?;
                Ok(wide.f_to_kind(grad_output.f_kind()?)?)
            }
            InputGradientCall::FlippedKernel(call) => call.run(grad_output),
            InputGradientCall::Col2im(call) => call.input_gradient(grad_output, None),
            InputGradientCall::Sparse(call) => call.input_gradient(grad_output, None),
            InputGradientCall::Depthwise(call) => call.input_gradient(grad_output),
        }
    }

    /// The same, with the mask of the activation applied to `grad_output` first. `None` for kernels that cannot.
    pub fn input_gradient_masked(
        &self,
        grad_output: &Tensor,
        mask: PendingMask<'_>,
    ) -> Result<Option<Tensor>, OperatorError> {
        match self {
            InputGradientCall::Col2im(call) => call.input_gradient(grad_output, Some(mask)).map(Some),
            InputGradientCall::Sparse(call) => call.input_gradient(grad_output, Some(mask)).map(Some),
            InputGradientCall::Transposed(_)
            | InputGradientCall::Float32(_)
            | InputGradientCall::FlippedKernel(_)
            | InputGradientCall::Depthwise(_) => Ok(None),
        }
    }
}
