//! How the gradient of a convolution's result goes back to its input.
//!
//! There are several ways, and which is the fastest depends on the shapes and on the processor. They are tried on the first gradient
//! that comes, and what won is kept.

use tch::Tensor;

use crate::torch::{Call, OperatorError, Value, channels_last, window_may_miss};

use super::super::fastest::{bytes, fastest};
use super::Activation;
use super::folded::{Folded, FoldedCall};
use super::geometry::Geometry;
use super::operators::{INPUT, Operators};
use super::sparse::{OF_GRADIENTS, SparseBack, SparseBackCall, like_others};
use super::way_there::{ThereCall, WayThere};

/// Weights laid out for a way.
#[derive(Debug)]
pub(super) enum WayBack {
    /// A transposed convolution.
    Transposed(Tensor),
    /// A convolution with the kernel turned by 180° and inputs and outputs exchanged. Where the stride is 1.
    Turned(WayThere),
    Folded(Folded),
    Sparse(SparseBack),
}

impl WayBack {
    /// The fastest way for a convolution of `weight`, tried on the gradient `given` of the result for an input of `size`.
    pub fn choose(
        weight: &Tensor,
        geometry: &Geometry,
        given: &Tensor,
        size: &[i64],
        operators: &Operators,
    ) -> Result<Self, OperatorError> {
        let ways = Self::all(weight, geometry, &given.size(), size, operators)?;
        let (shape, given) = (weight.size(), &channels_last(&like_others(given, OF_GRADIENTS)?)?);
        fastest(ways, Self::size, |way| {
            let call = way.call(&shape, geometry, &given.size(), size, operators)?;
            Ok(move || call.input_gradient(given))
        })
    }

    /// How many bytes its weights take.
    fn size(&self) -> usize {
        match self {
            WayBack::Transposed(weight) => bytes(weight),
            WayBack::Turned(way) => way.size(),
            WayBack::Folded(folded) => folded.size(),
            WayBack::Sparse(sparse) => sparse.size(),
        }
    }

    /// Every way that there is.
    pub(super) fn all(
        weight: &Tensor,
        geometry: &Geometry,
        given: &[i64],
        size: &[i64],
        operators: &Operators,
    ) -> Result<Vec<Self>, OperatorError> {
        let shape = weight.size();
        let rest = geometry.rest(size, &shape);
        let mut ways = vec![WayBack::Transposed(operators.lay_out_transposed(weight, geometry, rest, given)?)];
        if let Some(moves) = turned_geometry(&shape, geometry, given) {
            let turned = turned(weight, geometry.groups)?;
            ways.extend(WayThere::dense(&turned, &moves, given, operators)?.into_iter().map(WayBack::Turned));
        }
        ways.extend(Folded::new(weight, geometry)?.map(WayBack::Folded));
        ways.extend(SparseBack::new(weight, geometry)?.map(WayBack::Sparse));
        Ok(ways)
    }

    /// Whether the way is one for a gradient of that shape too; layouts are kept for inputs of any size.
    pub fn suits(&self, weight: &[i64], geometry: &Geometry, given: &[i64]) -> bool {
        !matches!(self, WayBack::Turned(_)) || turned_geometry(weight, geometry, given).is_some()
    }

    /// The way for a weight of that shape and one size of input and gradient, but for the number of rows.
    pub fn call(
        &self,
        shape: &[i64],
        geometry: &Geometry,
        given: &[i64],
        size: &[i64],
        operators: &Operators,
    ) -> Result<BackCall, OperatorError> {
        Ok(match self {
            WayBack::Transposed(weight) => {
                BackCall::Transposed(operators.transposed(weight, geometry, geometry.rest(size, shape))?)
            }
            WayBack::Turned(way) => {
                let moves = turned_geometry(shape, geometry, given)
                    .ok_or_else(|| OperatorError::Unsupported { operator: "a turned convolution".into() })?;
                BackCall::Turned(way.call(&Value::None, &moves, Activation::None, operators)?)
            }
            WayBack::Folded(folded) => BackCall::Folded(folded.call(geometry, size)),
            WayBack::Sparse(sparse) => BackCall::Sparse(sparse.call(geometry, size)),
        })
    }
}

/// How a convolution with turned weights moves over the gradient, where that gives the gradient to the input.
fn turned_geometry(weight: &[i64], geometry: &Geometry, given: &[i64]) -> Option<Geometry> {
    let padding = [0, 1].map(|axis| geometry.dilation[axis] * (weight[axis + 2] - 1) - geometry.padding[axis]);
    let suits = geometry.stride == [1, 1]
        && padding.iter().all(|&padding| padding >= 0)
        // As in the pass that makes such convolutions: there these operators are wrong.
        && given[1] > 1
        && !window_may_miss(&given[2..], &weight[2..], &padding, &geometry.dilation);
    suits.then_some(Geometry { padding, ..*geometry })
}

/// `[outputs, inputs / groups, h, w]` to `[inputs, outputs / groups, h, w]`, each kernel turned by 180°.
fn turned(weight: &Tensor, groups: i64) -> Result<Tensor, OperatorError> {
    let [outputs, inputs, height, width] = *weight.size().as_slice() else {
        return Err(OperatorError::Unsupported { operator: "a turned convolution".into() });
    };
    let exchanged = weight
        .f_reshape([groups, outputs / groups, inputs, height, width])?
        .f_transpose(1, 2)?
        .f_reshape([groups * inputs, outputs / groups, height, width])?;
    Ok(exchanged.f_flip([2i64, 3])?.f_contiguous()?)
}

/// A way with everything but the gradient.
#[derive(Debug)]
pub(super) enum BackCall {
    Transposed(Call),
    Turned(ThereCall),
    Folded(FoldedCall),
    Sparse(SparseBackCall),
}

impl BackCall {
    /// The gradient to the input, from one with its channels next to each other in memory.
    pub fn input_gradient(&self, given: &Tensor) -> Result<Tensor, OperatorError> {
        match self {
            BackCall::Transposed(call) => call.call([(INPUT, given)]),
            BackCall::Turned(call) => call.run(given),
            BackCall::Folded(call) => call.input_gradient(given),
            BackCall::Sparse(call) => call.input_gradient(given),
        }
    }
}
