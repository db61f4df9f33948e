//! Convolution kernels that skip zeros, forward and backward.
//!
//! Their time depends on the number of zeros, and the input on which kernels are timed may be unlike later ones (a
//! black frame leaves hardly any gradient). So they are timed on no fewer non-zeros than [rectifiers usually
//! leave](with_typical_zeros). The choice is kept: except for 1 × 1 kernels, a convolution whose later inputs have
//! fewer zeros takes correspondingly longer.

use tch::{Device, Kind, Tensor};

use crate::torch::{
    ConvolutionParameters, OperatorError, PendingMask, has_gemm_kernels, sparse_backward_weight, sparse_convolution,
    sparse_forward_weight, sparse_input_gradient,
};

use crate::plan::autotune::{bytes, float_bias, is_finite};
use crate::plan::convolution::Activation;
use crate::plan::convolution::Geometry;

/// Shares of non-zero elements: of a rectifier's results, and of gradients behind a rectifier in guided
/// backpropagation. Typical of ResNets, where sums of several gradients have more.
pub(in crate::plan) const DENSITY_OF_ACTIVATIONS: f64 = 0.5;
pub(in crate::plan) const DENSITY_OF_GUIDED_GRADIENTS: f64 = 0.3;

/// `tensor` itself, or zeros and ones of its shape, with a share of ones of `density`, if fewer of its elements are not
/// zero.
pub(in crate::plan) fn with_typical_zeros(tensor: &Tensor, density: f64) -> Result<Tensor, OperatorError> {
    let count = tensor.f_count_nonzero(None)?.f_int64_value(&[])?;
    if count as f64 >= density * tensor.numel() as f64 {
        return Ok(tensor.shallow_clone());
    }
    let [rows, channels, height, width] = *tensor.size().as_slice() else {
        return Ok(tensor.shallow_clone());
    };
    // Multiples of the golden ratio: spread evenly, without a period that matches the rows of the image.
    let indices = Tensor::f_arange(channels * height * width, (Kind::Double, Device::Cpu))?;
    let numbers = indices.f_mul_scalar(0.618_033_988_749_895)?.f_frac_()?.f_lt(density)?.f_to_kind(tensor.f_kind()?)?;
    // Channels-last, the same in each row of the batch.
    let row = numbers.f_view([1, height, width, channels])?;
    Ok(row.f_repeat([rows, 1, 1, 1])?.f_permute([0, 3, 1, 2])?)
}

/// Whether products with the weight can skip zeros. An infinite or NaN weight times zero is NaN, which would be missed.
pub(in crate::plan) fn can_skip_zeros(weight: &Tensor, geometry: &Geometry) -> Result<bool, OperatorError> {
    Ok(geometry.groups == 1
        && has_gemm_kernels(weight.f_kind()?)
        && weight.device() == Device::Cpu
        && is_finite(weight)?)
}

/// A convolution's weight, packed in panels for the forward kernel.
#[derive(Debug)]
pub(in crate::plan) struct SparseForward {
    weight: Tensor,
    outputs: i64,
}

impl SparseForward {
    /// `None` where the kernel does not suit.
    pub fn new(weight: &Tensor, geometry: &Geometry) -> Result<Option<Self>, OperatorError> {
        let [outputs, ..] = *weight.size().as_slice() else { return Ok(None) };
        let suits = can_skip_zeros(weight, geometry)?;
        Ok(if suits { Some(SparseForward { weight: sparse_forward_weight(weight)?, outputs }) } else { None })
    }

    /// Bytes of the packed weight.
    pub fn size(&self) -> usize {
        bytes(&self.weight)
    }

    pub fn panels(&self) -> Tensor {
        self.weight.shallow_clone()
    }

    pub fn call(
        &self,
        bias: Option<&Tensor>,
        geometry: &Geometry,
        activation: Activation,
    ) -> Result<SparseForwardCall, OperatorError> {
        Ok(SparseForwardCall {
            weight: self.weight.shallow_clone(),
            outputs: self.outputs,
            bias: float_bias(bias)?,
            parameters: geometry.parameters(),
            activation,
        })
    }
}

/// [`SparseForward`] with all of its arguments except the input.
#[derive(Debug)]
pub(in crate::plan) struct SparseForwardCall {
    weight: Tensor,
    outputs: i64,
    bias: Option<Tensor>,
    parameters: ConvolutionParameters,
    activation: Activation,
}

impl SparseForwardCall {
    pub fn run(&self, input: &Tensor) -> Result<Tensor, OperatorError> {
        let bounds = self.activation.bounds();
        sparse_convolution(input, &self.weight, self.outputs, self.bias.as_ref(), &self.parameters, bounds)
    }
}

/// A convolution's weight, packed in panels for the backward kernel.
#[derive(Debug)]
pub(in crate::plan) struct SparseBackward {
    weight: Tensor,
    /// The panels are the forward kernel's, transposed as they are read.
    from_forward: bool,
    inputs: i64,
}

impl SparseBackward {
    /// `None` where the kernel does not suit.
    pub fn new(weight: &Tensor, geometry: &Geometry) -> Result<Option<Self>, OperatorError> {
        let [_, inputs, ..] = *weight.size().as_slice() else { return Ok(None) };
        let suits = can_skip_zeros(weight, geometry)?;
        Ok(if suits {
            Some(SparseBackward { weight: sparse_backward_weight(weight)?, from_forward: false, inputs })
        } else {
            None
        })
    }

    /// The same from the forward kernel's panels, `[height, width, panels, inputs, panel width]`. `None` where it does
    /// not suit.
    pub fn from_forward(panels: &Tensor, weight: &Tensor, geometry: &Geometry) -> Result<Option<Self>, OperatorError> {
        let [_, inputs, ..] = *weight.size().as_slice() else { return Ok(None) };
        let suits = weight.f_kind()? == Kind::Float && can_skip_zeros(weight, geometry)?;
        Ok(if suits {
            Some(SparseBackward { weight: panels.shallow_clone(), from_forward: true, inputs })
        } else {
            None
        })
    }

    /// Bytes of the weight packed for this kernel alone.
    pub fn size(&self) -> usize {
        if self.from_forward { 0 } else { bytes(&self.weight) }
    }

    /// The kernel for an input of shape `size`, `[N, C, H, W]`.
    pub fn call(&self, geometry: &Geometry, size: &[i64]) -> SparseBackwardCall {
        SparseBackwardCall {
            weight: self.weight.shallow_clone(),
            from_forward: self.from_forward,
            parameters: geometry.parameters(),
            size: [self.inputs, size[2], size[3]],
        }
    }
}

/// [`SparseBackward`] prepared for one size of input.
#[derive(Debug)]
pub(in crate::plan) struct SparseBackwardCall {
    weight: Tensor,
    from_forward: bool,
    parameters: ConvolutionParameters,
    size: [i64; 3],
}

impl SparseBackwardCall {
    pub fn input_gradient(&self, grad_output: &Tensor, mask: Option<PendingMask<'_>>) -> Result<Tensor, OperatorError> {
        let [inputs, height, width] = self.size;
        let size = [grad_output.size()[0], inputs, height, width];
        sparse_input_gradient(grad_output, mask, &self.weight, self.from_forward, size, &self.parameters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::channels_last;

    #[test]
    fn kernels_are_timed_on_the_density_that_rectifiers_leave() {
        for kind in [Kind::Float, Kind::BFloat16] {
            let dense = Tensor::ones([2, 8, 3, 5], (kind, Device::Cpu));
            assert!(with_typical_zeros(&dense, 0.5).unwrap().equal(&dense));
            let none = channels_last(&(dense * 0.0)).unwrap();
            let found = with_typical_zeros(&none, 0.3).unwrap();
            assert_eq!((found.size(), found.stride(), found.kind()), (none.size(), none.stride(), kind));
            let share = found.to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
            assert!((share - 0.3).abs() < 0.01, "{share}");
        }
    }

    #[test]
    fn weights_that_make_numbers_of_zeros_are_not_for_this() {
        let geometry = Geometry { padding: [0; 2], stride: [1; 2], dilation: [1; 2], groups: 1 };
        let weight = Tensor::ones([4, 4, 1, 1], (Kind::Float, Device::Cpu));
        assert!(can_skip_zeros(&weight, &geometry).unwrap());
        assert!(!can_skip_zeros(&weight, &Geometry { groups: 2, ..geometry }).unwrap());
        let _ = weight.get(2).get(1).fill_(f64::INFINITY);
        assert!(!can_skip_zeros(&weight, &geometry).unwrap());
        assert!(SparseForward::new(&weight, &geometry).unwrap().is_none());
        assert!(SparseBackward::new(&weight, &geometry).unwrap().is_none());
    }
}
