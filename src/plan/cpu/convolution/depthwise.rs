//! Convolutions that treat each channel alone, forward and backward.

use tch::{Device, Tensor};

use crate::torch::{
    ConvolutionParameters, Gates, OperatorError, depthwise, depthwise_input_gradient, depthwise_weight,
    has_gemm_kernels,
};

use super::epilogue::Epilogue;
use crate::plan::autotune::{bytes, float_bias, is_finite};
use crate::plan::convolution::Activation;
use crate::plan::convolution::Geometry;
use crate::plan::rules::rectifiers::Gate;

/// A convolution's weight, one kernel for each channel.
#[derive(Debug)]
pub(in crate::plan) struct Depthwise {
    weight: Tensor,
}

impl Depthwise {
    /// `None` where the kernel does not suit.
    pub fn new(weight: &Tensor, geometry: &Geometry) -> Result<Option<Self>, OperatorError> {
        let [outputs, 1, ..] = *weight.size().as_slice() else { return Ok(None) };
        let kind = weight.f_kind()?;
        let suits = outputs == geometry.groups && has_gemm_kernels(kind) && weight.device() == Device::Cpu;
        // Padding is not multiplied; an infinite or NaN weight times zero would be NaN.
        let is_padded = geometry.padding != [0, 0];
        if !suits || (is_padded && !is_finite(weight)?) {
            return Ok(None);
        }
        Ok(Some(Depthwise { weight: depthwise_weight(weight)? }))
    }

    /// Bytes of the packed weight.
    pub fn size(&self) -> usize {
        bytes(&self.weight)
    }

    pub fn call(
        &self,
        bias: Option<&Tensor>,
        geometry: &Geometry,
        activation: Activation,
    ) -> Result<DepthwiseCall, OperatorError> {
        Ok(DepthwiseCall {
            weight: self.weight.shallow_clone(),
            parameters: geometry.parameters(),
            bias: float_bias(bias)?,
            activation,
        })
    }

    /// The gradient's kernel for an input of shape `size`, `[N, C, H, W]`, with any number of rows.
    pub fn gradient_call(&self, geometry: &Geometry, size: &[i64]) -> DepthwiseGradientCall {
        DepthwiseGradientCall {
            weight: self.weight.shallow_clone(),
            parameters: geometry.parameters(),
            size: [size[1], size[2], size[3]],
        }
    }
}

/// [`Depthwise`] with all of its arguments except the input.
#[derive(Debug)]
pub(in crate::plan) struct DepthwiseCall {
    weight: Tensor,
    parameters: ConvolutionParameters,
    bias: Option<Tensor>,
    activation: Activation,
}

impl DepthwiseCall {
    pub fn run(&self, input: &Tensor) -> Result<Tensor, OperatorError> {
        Ok(self.compute(input, false)?.0)
    }

    /// The result with the whole epilogue, and the activation's mask if it is wanted.
    pub fn run_with(&self, input: &Tensor, epilogue: &Epilogue<'_>) -> Result<(Tensor, Option<Gate>), OperatorError> {
        if epilogue.other.is_some() {
            return epilogue.apply(self.run(input)?);
        }
        let (result, gates) = self.compute(input, epilogue.wants_gate)?;
        Ok((result, gates.map(|gates| Gate::of_bits(gates, epilogue.guided))))
    }

    fn compute(&self, input: &Tensor, wants_gates: bool) -> Result<(Tensor, Option<Gates>), OperatorError> {
        let bounds = self.activation.bounds();
        depthwise(input, &self.weight, &self.parameters, self.bias.as_ref(), bounds, wants_gates)
    }
}

/// [`Depthwise`] backward, prepared for one size of input.
#[derive(Debug)]
pub(in crate::plan) struct DepthwiseGradientCall {
    weight: Tensor,
    parameters: ConvolutionParameters,
    size: [i64; 3],
}

impl DepthwiseGradientCall {
    pub fn input_gradient(&self, grad_output: &Tensor) -> Result<Tensor, OperatorError> {
        let [channels, height, width] = self.size;
        let size = [grad_output.size()[0], channels, height, width];
        depthwise_input_gradient(grad_output, &self.weight, size, &self.parameters)
    }
}
