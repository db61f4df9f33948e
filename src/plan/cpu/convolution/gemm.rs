//! Convolutions as matrix products (implicit GEMM), with what follows them in the same pass.

use tch::{Device, Tensor};

use crate::torch::{ConvolutionParameters, Epilogue, Gates, GemmWeight, OperatorError, can_pack, gemm};

use super::epilogue::Activation;
use super::epilogue::After;
use super::geometry::Geometry;
use crate::plan::cpu::autotune::{bytes, in_float, is_finite};
use crate::plan::rules::rectifiers::Gate;

/// Kernels of fewer inputs are multiplied line by line: a place alone has hardly a sum.
const FEW_INPUTS: i64 = 16;

/// A convolution's weights, in panels.
#[derive(Debug)]
pub(in crate::plan) struct Gemm(GemmWeight);

impl Gemm {
    /// None where it does not suit.
    pub fn new(weight: &Tensor, geometry: &Geometry) -> Result<Option<Self>, OperatorError> {
        let [_, inputs, _, width] = *weight.size().as_slice() else { return Ok(None) };
        let by_lines = inputs < FEW_INPUTS && width > 1 && geometry.dilation[1] == 1;
        let inputs = if by_lines { inputs * width } else { inputs };
        let suits = can_pack(weight.f_kind()?, inputs) && weight.device() == Device::Cpu && geometry.groups == 1;
        // Padding is copied with all that lies between places, and multiplied too.
        let is_padded = geometry.padding != [0, 0];
        if !suits || (is_padded && (geometry.dilation != [1, 1] || !is_finite(weight)?)) {
            return Ok(None);
        }
        let packed = if by_lines { GemmWeight::by_kernel_rows(weight) } else { GemmWeight::by_taps(weight) };
        Ok(Some(Gemm(packed?)))
    }

    /// How many bytes the weights take.
    pub fn size(&self) -> usize {
        bytes(self.0.panels())
    }

    /// Where they lie as those of a [way without zeros](super::sparse::SparseThere) do.
    pub fn panels(&self) -> Result<Option<Tensor>, OperatorError> {
        Ok(self.0.fit_sparse_kernels()?.then(|| self.0.panels().shallow_clone()))
    }

    pub fn call(
        &self,
        bias: Option<&Tensor>,
        geometry: &Geometry,
        activation: Activation,
    ) -> Result<GemmCall, OperatorError> {
        Ok(GemmCall { weight: self.0.shallow_clone(), moves: geometry.moves(), bias: in_float(bias)?, activation })
    }
}

/// [`Gemm`] with everything but the input.
#[derive(Debug)]
pub(in crate::plan) struct GemmCall {
    weight: GemmWeight,
    moves: ConvolutionParameters,
    bias: Option<Tensor>,
    activation: Activation,
}

impl GemmCall {
    pub fn run(&self, input: &Tensor) -> Result<Tensor, OperatorError> {
        Ok(self.then(input, Epilogue { bounds: self.activation.bounds(), ..Epilogue::default() })?.0)
    }

    /// With all that follows.
    pub fn run_with(&self, input: &Tensor, after: &After<'_>) -> Result<(Tensor, Option<Gate>), OperatorError> {
        if let Some(other) = after.other
            && other.f_kind()? != input.f_kind()?
        {
            return after.then(self.run(input)?);
        }
        let then = Epilogue { addend: after.other, bounds: after.activation.bounds(), has_gates: after.has_gate };
        let (result, gates) = self.then(input, then)?;
        Ok((result, gates.map(|gates| Gate::of_bits(gates, after.guided))))
    }

    fn then(&self, input: &Tensor, then: Epilogue<'_>) -> Result<(Tensor, Option<Gates>), OperatorError> {
        gemm(input, &self.weight, &self.moves, self.bias.as_ref(), then)
    }
}
