//! Convolutions, and the ways back through them, that leave zeros out.
//!
//! What they take depends on what comes. A frame on which ways are tried may be unlike those that follow (a black one leaves hardly a
//! gradient), so they are tried on no less than rectifiers [leave as a rule](like_others). What was chosen is kept: a convolution
//! whose later inputs have fewer zeros takes as much longer, but for one of 1 × 1.

use tch::{Device, Kind, Tensor};

use crate::torch::{
    ConvolutionParameters, OperatorError, PendingMask, has_gemm_kernels, sparse_backward_weight, sparse_convolution,
    sparse_forward_weight, sparse_input_gradient,
};

use super::epilogue::Activation;
use super::geometry::Geometry;
use crate::plan::cpu::autotune::{bytes, in_float, is_finite};

/// The share of numbers that are not zero: of a rectifier's results, and of what comes back through one with guided backpropagation.
/// ResNets have about so many, and more of a sum of several.
pub(in crate::plan) const OF_RESULTS: f64 = 0.5;
pub(in crate::plan) const OF_GRADIENTS: f64 = 0.3;

/// `given`, or numbers of its shape where less than that share of it is not zero.
pub(in crate::plan) fn like_others(given: &Tensor, share: f64) -> Result<Tensor, OperatorError> {
    let count = given.f_count_nonzero(None)?.f_int64_value(&[])?;
    if count as f64 >= share * given.numel() as f64 {
        return Ok(given.shallow_clone());
    }
    let [rows, channels, height, width] = *given.size().as_slice() else { return Ok(given.shallow_clone()) };
    // Spread evenly, and not in step with pixels: the multiples of the golden ratio.
    let places = Tensor::f_arange(channels * height * width, (Kind::Double, Device::Cpu))?;
    let numbers = places.f_mul_scalar(0.618_033_988_749_895)?.f_frac_()?.f_lt(share)?.f_to_kind(given.f_kind()?)?;
    // With the channels next to each other in memory, the same in each row.
    let row = numbers.f_view([1, height, width, channels])?;
    Ok(row.f_repeat([rows, 1, 1, 1])?.f_permute([0, 3, 1, 2])?)
}

/// Whether zeros can be left out of products with the weights of such a convolution. Those that are infinite or NaN would make NaN of a
/// zero.
pub(in crate::plan) fn leaves_out(weight: &Tensor, geometry: &Geometry) -> Result<bool, OperatorError> {
    Ok(geometry.groups == 1
        && has_gemm_kernels(weight.f_kind()?)
        && weight.device() == Device::Cpu
        && is_finite(weight)?)
}

/// A convolution's weights for the way there, in panels.
#[derive(Debug)]
pub(in crate::plan) struct SparseThere {
    weight: Tensor,
    outputs: i64,
}

impl SparseThere {
    /// None where it does not suit.
    pub fn new(weight: &Tensor, geometry: &Geometry) -> Result<Option<Self>, OperatorError> {
        let [outputs, ..] = *weight.size().as_slice() else { return Ok(None) };
        let suits = leaves_out(weight, geometry)?;
        Ok(if suits { Some(SparseThere { weight: sparse_forward_weight(weight)?, outputs }) } else { None })
    }

    /// How many bytes the weights take.
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
    ) -> Result<SparseThereCall, OperatorError> {
        Ok(SparseThereCall {
            weight: self.weight.shallow_clone(),
            outputs: self.outputs,
            bias: in_float(bias)?,
            moves: geometry.moves(),
            activation,
        })
    }
}

/// [`SparseThere`] with everything but the input.
#[derive(Debug)]
pub(in crate::plan) struct SparseThereCall {
    weight: Tensor,
    outputs: i64,
    bias: Option<Tensor>,
    moves: ConvolutionParameters,
    activation: Activation,
}

impl SparseThereCall {
    pub fn run(&self, input: &Tensor) -> Result<Tensor, OperatorError> {
        let bounds = self.activation.bounds();
        sparse_convolution(input, &self.weight, self.outputs, self.bias.as_ref(), &self.moves, bounds)
    }
}

/// A convolution's weights for the way back, in panels.
#[derive(Debug)]
pub(in crate::plan) struct SparseBack {
    weight: Tensor,
    /// They are those of the way there, and transposed as they are read.
    of_there: bool,
    inputs: i64,
}

impl SparseBack {
    /// None where it does not suit.
    pub fn new(weight: &Tensor, geometry: &Geometry) -> Result<Option<Self>, OperatorError> {
        let [_, inputs, ..] = *weight.size().as_slice() else { return Ok(None) };
        let suits = leaves_out(weight, geometry)?;
        Ok(if suits {
            Some(SparseBack { weight: sparse_backward_weight(weight)?, of_there: false, inputs })
        } else {
            None
        })
    }

    /// The same with weights that lie in panels for the way there, `[height, width, panels, inputs, width of a panel]`. None where it does not
    /// suit.
    pub fn of_there(panels: &Tensor, weight: &Tensor, geometry: &Geometry) -> Result<Option<Self>, OperatorError> {
        let [_, inputs, ..] = *weight.size().as_slice() else { return Ok(None) };
        let suits = weight.f_kind()? == Kind::Float && leaves_out(weight, geometry)?;
        Ok(if suits { Some(SparseBack { weight: panels.shallow_clone(), of_there: true, inputs }) } else { None })
    }

    /// How many bytes weights take that are there for this alone.
    pub fn size(&self) -> usize {
        if self.of_there { 0 } else { bytes(&self.weight) }
    }

    /// To an input of `size`, `[N, C, H, W]`.
    pub fn call(&self, geometry: &Geometry, size: &[i64]) -> SparseBackCall {
        SparseBackCall {
            weight: self.weight.shallow_clone(),
            of_there: self.of_there,
            moves: geometry.moves(),
            size: [self.inputs, size[2], size[3]],
        }
    }
}

/// [`SparseBack`] for one size of input.
#[derive(Debug)]
pub(in crate::plan) struct SparseBackCall {
    weight: Tensor,
    of_there: bool,
    moves: ConvolutionParameters,
    size: [i64; 3],
}

impl SparseBackCall {
    pub fn input_gradient(&self, given: &Tensor, ahead: Option<PendingMask<'_>>) -> Result<Tensor, OperatorError> {
        let [inputs, height, width] = self.size;
        let size = [given.size()[0], inputs, height, width];
        sparse_input_gradient(given, ahead, &self.weight, self.of_there, size, &self.moves)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::channels_last;

    #[test]
    fn ways_are_tried_on_what_rectifiers_leave() {
        for kind in [Kind::Float, Kind::BFloat16] {
            let dense = Tensor::ones([2, 8, 3, 5], (kind, Device::Cpu));
            assert!(like_others(&dense, 0.5).unwrap().equal(&dense));
            let none = channels_last(&(dense * 0.0)).unwrap();
            let found = like_others(&none, 0.3).unwrap();
            assert_eq!((found.size(), found.stride(), found.kind()), (none.size(), none.stride(), kind));
            let share = found.to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
            assert!((share - 0.3).abs() < 0.01, "{share}");
        }
    }

    #[test]
    fn weights_that_make_numbers_of_zeros_are_not_for_this() {
        let geometry = Geometry { padding: [0; 2], stride: [1; 2], dilation: [1; 2], groups: 1 };
        let weight = Tensor::ones([4, 4, 1, 1], (Kind::Float, Device::Cpu));
        assert!(leaves_out(&weight, &geometry).unwrap());
        assert!(!leaves_out(&weight, &Geometry { groups: 2, ..geometry }).unwrap());
        let _ = weight.get(2).get(1).fill_(f64::INFINITY);
        assert!(!leaves_out(&weight, &geometry).unwrap());
        assert!(SparseThere::new(&weight, &geometry).unwrap().is_none());
        assert!(SparseBack::new(&weight, &geometry).unwrap().is_none());
    }
}
