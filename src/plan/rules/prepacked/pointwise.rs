//! Convolutions of 1 × 1 kernels as matrix products.

use tch::{Device, Kind, Tensor};

use crate::torch::{OperatorError, Then, can_multiply, linear_weight, pointwise};

use super::super::fastest::{bytes, in_float};
use super::super::rectifiers::Gate;
use super::Activation;
use super::after::After;
use super::geometry::Geometry;

/// A convolution's weights, in panels.
#[derive(Debug)]
pub(super) struct Pointwise {
    weight: Tensor,
    outputs: i64,
}

impl Pointwise {
    /// None where it does not suit.
    pub fn new(weight: &Tensor, geometry: &Geometry) -> Result<Option<Self>, OperatorError> {
        let Geometry { padding, stride, groups, .. } = *geometry;
        let [outputs, inputs, 1, 1] = *weight.size().as_slice() else { return Ok(None) };
        let suits = can_multiply(weight.f_kind()?, inputs)
            && weight.device() == Device::Cpu
            && (padding, stride, groups) == ([0, 0], [1, 1], 1);
        if !suits {
            return Ok(None);
        }
        let weight = linear_weight(&weight.f_reshape([outputs, inputs])?)?;
        Ok(Some(Pointwise { weight, outputs }))
    }

    /// How many bytes the weights take.
    pub fn size(&self) -> usize {
        bytes(&self.weight)
    }

    /// As those of a [way without zeros](super::sparse::SparseThere) lie. None of another dtype than float32.
    pub fn panels(&self) -> Result<Option<Tensor>, OperatorError> {
        let is_float = self.weight.f_kind()? == Kind::Float;
        Ok(if is_float { Some(self.weight.f_unsqueeze(0)?.f_unsqueeze(0)?) } else { None })
    }

    pub fn call(&self, bias: Option<&Tensor>, activation: Activation) -> Result<PointwiseCall, OperatorError> {
        Ok(PointwiseCall {
            weight: self.weight.shallow_clone(),
            outputs: self.outputs,
            bias: in_float(bias)?,
            activation,
        })
    }
}

/// [`Pointwise`] with everything but the input.
#[derive(Debug)]
pub(super) struct PointwiseCall {
    weight: Tensor,
    outputs: i64,
    bias: Option<Tensor>,
    activation: Activation,
}

impl PointwiseCall {
    pub fn run(&self, input: &Tensor) -> Result<Tensor, OperatorError> {
        let then = Then { bounds: self.activation.bounds(), ..Then::default() };
        Ok(pointwise(input, &self.weight, self.outputs, self.bias.as_ref(), then)?.0)
    }

    /// With all that follows.
    pub fn run_with(&self, input: &Tensor, after: &After<'_>) -> Result<(Tensor, Option<Gate>), OperatorError> {
        if let Some(other) = after.other
            && other.f_kind()? != input.f_kind()?
        {
            return after.then(self.run(input)?);
        }
        let then = Then { other: after.other, bounds: after.activation.bounds(), has_gates: after.has_gate };
        let (result, gates) = pointwise(input, &self.weight, self.outputs, self.bias.as_ref(), then)?;
        Ok((result, gates.map(|gates| Gate::of_bits(gates, after.guided))))
    }
}
