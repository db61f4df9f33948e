//! How the gradient of a convolution's result goes back to its input.
//!
//! There are several ways, and which is the fastest depends on the shapes and on the processor. They are tried on the first gradient
//! that comes, and what won is kept.

use tch::{Kind, Tensor};

use crate::torch::{Call, OperatorError, PendingMask, Value, channels_last, window_may_miss};

use super::col2im::{Folded, FoldedCall};
use super::epilogue::Activation;
use super::forward::{ThereCall, WayThere};
use super::geometry::Geometry;
use super::onednn::{INPUT, Operators};
use super::sparse::{OF_GRADIENTS, SparseBack, SparseBackCall, like_others};
use crate::plan::cpu::autotune::{Candidate, bytes, fastest};

/// Weights laid out for a way.
#[derive(Debug)]
pub(in crate::plan) enum WayBack {
    /// A transposed convolution.
    Transposed(Tensor),
    /// The same in float32 of a gradient in another dtype: of groups in bfloat16, oneDNN's takes up to ten times as long where the stride is 2.
    Wide(Tensor),
    /// A convolution with the kernel turned by 180° and inputs and outputs exchanged. Where the stride is 1.
    Turned(WayThere),
    Folded(Folded),
    Sparse(SparseBack),
}

impl WayBack {
    /// The fastest way for a convolution of `weight`, tried on the gradient `given` of the result for an input of `size`. `there` are
    /// [the weights for the way there](WayThere::panels), which take no memory again.
    pub fn choose(
        weight: &Tensor,
        there: Option<&Tensor>,
        geometry: &Geometry,
        given: &Tensor,
        size: &[i64],
        operators: &Operators,
    ) -> Result<Self, OperatorError> {
        let (shape, of_given) = (weight.size(), given.size());
        let turned = turned(weight, geometry, &of_given)?;
        let ways = Self::candidates(weight, there, turned.as_ref(), geometry, &of_given, size, operators);
        let given = &channels_last(&like_others(given, OF_GRADIENTS)?)?;
        fastest(ways, Self::size, |way| {
            let call = way.call(&shape, geometry, &given.size(), size, operators)?;
            Ok(move || call.input_gradient(given))
        })
    }

    /// How many bytes weights take that are there for it alone.
    fn size(&self) -> usize {
        match self {
            WayBack::Transposed(weight) | WayBack::Wide(weight) => bytes(weight),
            WayBack::Turned(way) => way.size(),
            WayBack::Folded(folded) => folded.size(),
            WayBack::Sparse(sparse) => sparse.size(),
        }
    }

    /// Every way that there may be; `there` is as for [`WayBack::choose`], `turned` is what [`turned`] gives.
    pub(in crate::plan) fn candidates<'a>(
        weight: &'a Tensor,
        there: Option<&'a Tensor>,
        turned: Option<&'a (Tensor, Geometry)>,
        geometry: &'a Geometry,
        given: &'a [i64],
        size: &[i64],
        operators: &'a Operators,
    ) -> Vec<Candidate<'a, Self>> {
        let rest = geometry.rest(size, &weight.size());
        let transposed =
            move || Ok(Some(WayBack::Transposed(operators.lay_out_transposed(weight, geometry, rest, given)?)));
        let mut ways = vec![Candidate::new(transposed)];
        if geometry.groups > 1 && weight.f_kind().is_ok_and(|kind| kind != Kind::Float) {
            ways.push(Candidate::new(move || {
                let wide = weight.f_to_kind(Kind::Float)?;
                Ok(Some(WayBack::Wide(operators.lay_out_transposed(&wide, geometry, rest, given)?)))
            }));
        }
        if let Some((turned, moves)) = turned {
            let dense = WayThere::dense(turned, moves, given, operators);
            ways.extend(dense.into_iter().map(|way| way.map(WayBack::Turned)));
        }
        ways.push(Candidate::new(move || Ok(Folded::new(weight, geometry)?.map(WayBack::Folded))));
        ways.push(Candidate::new(move || Ok(SparseBack::new(weight, geometry)?.map(WayBack::Sparse))));
        if let Some(there) = there {
            let of_there = move || Ok(SparseBack::of_there(there, weight, geometry)?.map(WayBack::Sparse));
            ways.push(Candidate::new(of_there));
        }
        ways
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
            WayBack::Wide(weight) => {
                BackCall::Wide(operators.transposed(weight, geometry, geometry.rest(size, shape))?)
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

/// The weight `[outputs, inputs / groups, h, w]` as `[inputs, outputs / groups, h, w]`, each kernel turned by 180°, and how a convolution
/// with it moves over the gradient `given`. None where that does not give the gradient to the input.
pub(in crate::plan) fn turned(
    weight: &Tensor,
    geometry: &Geometry,
    given: &[i64],
) -> Result<Option<(Tensor, Geometry)>, OperatorError> {
    let [outputs, inputs, height, width] = *weight.size().as_slice() else { return Ok(None) };
    let Some(moves) = turned_geometry(&weight.size(), geometry, given) else { return Ok(None) };
    let groups = geometry.groups;
    let exchanged = weight
        .f_reshape([groups, outputs / groups, inputs, height, width])?
        .f_transpose(1, 2)?
        .f_reshape([groups * inputs, outputs / groups, height, width])?;
    Ok(Some((exchanged.f_flip([2i64, 3])?.f_contiguous()?, moves)))
}

/// A way with everything but the gradient.
#[derive(Debug)]
pub(in crate::plan) enum BackCall {
    Transposed(Call),
    Wide(Call),
    Turned(ThereCall),
    Folded(FoldedCall),
    Sparse(SparseBackCall),
}

impl BackCall {
    /// The gradient to the input, from one with its channels next to each other in memory.
    pub fn input_gradient(&self, given: &Tensor) -> Result<Tensor, OperatorError> {
        match self {
            BackCall::Transposed(call) => call.call([(INPUT, given)]),
            BackCall::Wide(call) => {
                let wide = call.call([(INPUT, &given.f_to_kind(Kind::Float)?)])?;
                Ok(wide.f_to_kind(given.f_kind()?)?)
            }
            BackCall::Turned(call) => call.run(given),
            BackCall::Folded(call) => call.input_gradient(given, None),
            BackCall::Sparse(call) => call.input_gradient(given, None),
        }
    }

    /// The same from one with gates ahead. None where it must have come through them.
    pub fn input_gradient_ahead(
        &self,
        given: &Tensor,
        ahead: PendingMask<'_>,
    ) -> Result<Option<Tensor>, OperatorError> {
        match self {
            BackCall::Folded(call) => call.input_gradient(given, Some(ahead)).map(Some),
            BackCall::Sparse(call) => call.input_gradient(given, Some(ahead)).map(Some),
            BackCall::Transposed(_) | BackCall::Wide(_) | BackCall::Turned(_) => Ok(None),
        }
    }
}
