//! Convolutions with 3 × 3 kernels by Winograd's algorithm (Lavin and Gray, 2016).

use tch::{Device, Kind, Tensor};

use crate::torch::{
    OperatorError, WINOGRAD_CHANNELS, WinogradStep, has_gemm_kernels, has_onednn_kernels, winograd, winograd_weight,
};

use crate::plan::autotune::{Candidate, bytes, float_bias};
use crate::plan::convolution::Activation;
use crate::plan::convolution::Geometry;

/// A convolution's transformed weight.
#[derive(Debug)]
pub(in crate::plan) struct Winograd {
    weight: Tensor,
    outputs: i64,
}

impl Winograd {
    /// Kernels for output tiles of 2 × 2 and 4 × 4; empty where the algorithm does not suit.
    pub fn candidates<'a>(weight: &'a Tensor, geometry: &Geometry) -> Vec<Candidate<'a, Self>> {
        if !suits(weight, geometry) {
            return Vec::new();
        }
        let outputs = weight.size()[0];
        let of = |step: WinogradStep, points: usize| {
            let bytes = points * weight.numel() / 9 * Kind::Float.elt_size_in_bytes();
            Candidate::of_bytes(bytes, move || Ok(Some(Winograd { weight: winograd_weight(weight, step)?, outputs })))
        };
        vec![of(WinogradStep::Two, 4 * 4), of(WinogradStep::Four, 6 * 6)]
    }

    /// Bytes of the transformed weight.
    pub fn size(&self) -> usize {
        bytes(&self.weight)
    }

    /// The kernel for a convolution with these parameters.
    pub fn call(
        &self,
        bias: Option<&Tensor>,
        geometry: &Geometry,
        activation: Activation,
    ) -> Result<WinogradCall, OperatorError> {
        Ok(WinogradCall {
            weight: self.weight.shallow_clone(),
            outputs: self.outputs,
            bias: float_bias(bias)?,
            padding: geometry.padding[0],
            activation,
        })
    }
}

fn suits(weight: &Tensor, geometry: &Geometry) -> bool {
    let Geometry { padding, stride, dilation, groups } = *geometry;
    let [outputs, inputs, 3, 3] = *weight.size().as_slice() else { return false };
    has_gemm_kernels(Kind::Float)
        && weight.device() == Device::Cpu
        && weight.f_kind().is_ok_and(has_onednn_kernels)
        && (stride, dilation, groups) == ([1, 1], [1, 1], 1)
        && padding[0] == padding[1]
        && outputs % WINOGRAD_CHANNELS == 0
        && inputs % WINOGRAD_CHANNELS == 0
}

/// [`Winograd`] with all of its arguments except the input.
#[derive(Debug)]
pub(in crate::plan) struct WinogradCall {
    weight: Tensor,
    outputs: i64,
    bias: Option<Tensor>,
    padding: i64,
    activation: Activation,
}

impl WinogradCall {
    pub fn run(&self, input: &Tensor) -> Result<Tensor, OperatorError> {
        let bias = self.bias.as_ref();
        winograd(input, &self.weight, self.outputs, bias, self.padding, self.activation.bounds())
    }
}
