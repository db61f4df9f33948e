//! Convolutions as matrix products (implicit GEMM), with what follows them in the same pass.

use tch::{Device, Kind, Tensor};

use crate::torch::{Gates, Moves, OperatorError, Then, can_multiply, gemm, gemm_weight};

use super::super::fastest::{bytes, in_float, is_finite};
use super::super::rectifiers::Gate;
use super::Activation;
use super::after::After;
use super::geometry::Geometry;

/// A convolution's weights, in panels.
#[derive(Debug)]
pub(super) struct Gemm {
    weight: Tensor,
    outputs: i64,
}

impl Gemm {
    /// None where it does not suit.
    pub fn new(weight: &Tensor, geometry: &Geometry) -> Result<Option<Self>, OperatorError> {
        let [outputs, inputs, ..] = *weight.size().as_slice() else { return Ok(None) };
        let suits = can_multiply(weight.f_kind()?, inputs) && weight.device() == Device::Cpu && geometry.groups == 1;
        // Padding is multiplied too.
        if !suits || (geometry.padding != [0, 0] && !is_finite(weight)?) {
            return Ok(None);
        }
        Ok(Some(Gemm { weight: gemm_weight(weight)?, outputs }))
    }

    /// How many bytes the weights take.
    pub fn size(&self) -> usize {
        bytes(&self.weight)
    }

    /// As those of a [way without zeros](super::sparse::SparseThere) lie. None of another dtype than float32.
    pub fn panels(&self) -> Result<Option<Tensor>, OperatorError> {
        let is_float = self.weight.f_kind()? == Kind::Float;
        Ok(is_float.then(|| self.weight.shallow_clone()))
    }

    pub fn call(
        &self,
        bias: Option<&Tensor>,
        geometry: &Geometry,
        activation: Activation,
    ) -> Result<GemmCall, OperatorError> {
        Ok(GemmCall {
            weight: self.weight.shallow_clone(),
            outputs: self.outputs,
            moves: geometry.moves(),
            bias: in_float(bias)?,
            activation,
        })
    }
}

/// [`Gemm`] with everything but the input.
#[derive(Debug)]
pub(super) struct GemmCall {
    weight: Tensor,
    outputs: i64,
    moves: Moves,
    bias: Option<Tensor>,
    activation: Activation,
}

impl GemmCall {
    pub fn run(&self, input: &Tensor) -> Result<Tensor, OperatorError> {
        Ok(self.then(input, Then { bounds: self.activation.bounds(), ..Then::default() })?.0)
    }

    /// With all that follows.
    pub fn run_with(&self, input: &Tensor, after: &After<'_>) -> Result<(Tensor, Option<Gate>), OperatorError> {
        if let Some(other) = after.other
            && other.f_kind()? != input.f_kind()?
        {
            return after.then(self.run(input)?);
        }
        let then = Then { other: after.other, bounds: after.activation.bounds(), has_gates: after.has_gate };
        let (result, gates) = self.then(input, then)?;
        Ok((result, gates.map(|gates| Gate::of_bits(gates, after.guided))))
    }

    fn then(&self, input: &Tensor, then: Then<'_>) -> Result<(Tensor, Option<Gates>), OperatorError> {
        gemm(input, &self.weight, self.outputs, &self.moves, self.bias.as_ref(), then)
    }
}
