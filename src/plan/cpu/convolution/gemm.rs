//! Convolutions as matrix products (implicit GEMM), with the epilogue in the same pass.

use tch::{Device, Tensor};

use crate::torch::{
    ConvolutionParameters, Epilogue as FusedEpilogue, Gates, GemmWeight, OperatorError, can_pack, gemm,
};

use super::epilogue::Epilogue;
use crate::plan::autotune::{bytes, float_bias, is_finite};
use crate::plan::convolution::Activation;
use crate::plan::convolution::Geometry;
use crate::plan::rules::rectifiers::Gate;

/// With fewer input channels, a line of the kernel is one inner product: the channels of a single tap are too few.
const FEW_INPUTS: i64 = 16;

/// A convolution's weight, packed in panels.
#[derive(Debug)]
pub(in crate::plan) struct Gemm(GemmWeight);

impl Gemm {
    /// `None` where the kernel does not suit.
    pub fn new(weight: &Tensor, geometry: &Geometry) -> Result<Option<Self>, OperatorError> {
        let [_, inputs, _, width] = *weight.size().as_slice() else { return Ok(None) };
        let by_lines = inputs < FEW_INPUTS && width > 1 && geometry.dilation[1] == 1;
        let inputs = if by_lines { inputs * width } else { inputs };
        let suits = can_pack(weight.f_kind()?, inputs) && weight.device() == Device::Cpu && geometry.groups == 1;
        // Padding is materialised, with the pixels between taps, and multiplied too.
        let is_padded = geometry.padding != [0, 0];
        if !suits || (is_padded && (geometry.dilation != [1, 1] || !is_finite(weight)?)) {
            return Ok(None);
        }
        let packed = if by_lines { GemmWeight::by_kernel_rows(weight) } else { GemmWeight::by_taps(weight) };
        Ok(Some(Gemm(packed?)))
    }

    /// Bytes of the packed weight.
    pub fn size(&self) -> usize {
        bytes(self.0.panels())
    }

    /// The packed weight, where its layout is that of the [sparse kernel](super::sparse::SparseForward).
    pub fn panels(&self) -> Result<Option<Tensor>, OperatorError> {
        Ok(self.0.fit_sparse_kernels()?.then(|| self.0.panels().shallow_clone()))
    }

    pub fn call(
        &self,
        bias: Option<&Tensor>,
        geometry: &Geometry,
        activation: Activation,
    ) -> Result<GemmCall, OperatorError> {
        Ok(GemmCall {
            weight: self.0.shallow_clone(),
            parameters: geometry.parameters(),
            bias: float_bias(bias)?,
            activation,
        })
    }
}

/// [`Gemm`] with all of its arguments except the input.
#[derive(Debug)]
pub(in crate::plan) struct GemmCall {
    weight: GemmWeight,
    parameters: ConvolutionParameters,
    bias: Option<Tensor>,
    activation: Activation,
}

impl GemmCall {
    pub fn run(&self, input: &Tensor) -> Result<Tensor, OperatorError> {
        Ok(self.multiply(input, FusedEpilogue { bounds: self.activation.bounds(), ..FusedEpilogue::default() })?.0)
    }

    /// The result with the whole epilogue, and the activation's mask if it is wanted.
    pub fn run_with(&self, input: &Tensor, epilogue: &Epilogue<'_>) -> Result<(Tensor, Option<Gate>), OperatorError> {
        if let Some(other) = epilogue.other
            && other.f_kind()? != input.f_kind()?
        {
            return epilogue.apply(self.run(input)?);
        }
        let then = FusedEpilogue {
            addend: epilogue.other,
            bounds: epilogue.activation.bounds(),
            has_gates: epilogue.wants_gate,
        };
        let (result, gates) = self.multiply(input, then)?;
        Ok((result, gates.map(|gates| Gate::of_bits(gates, epilogue.guided))))
    }

    fn multiply(&self, input: &Tensor, then: FusedEpilogue<'_>) -> Result<(Tensor, Option<Gates>), OperatorError> {
        gemm(input, &self.weight, &self.parameters, self.bias.as_ref(), then)
    }
}
