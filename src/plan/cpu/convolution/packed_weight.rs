//! A convolution's weights as the processor likes them.

use tch::Tensor;

use crate::plan::constant::{Constant, Identity};
use crate::torch::OperatorError;

use super::backward::WayBack;
use super::epilogue::After;
use super::forward::WayThere;
use super::geometry::Geometry;
use super::onednn::Operators;
use crate::plan::cpu::autotune::sparingly;

/// A convolution's weights, laid out at their first use. Plans of one model share them.
///
/// The layouts suit the input size that came first. They stay right for any other. A weight that is made of others (that of a folded
/// normalisation) is there only while it is laid out, and the model's own leaves memory then, unless a plan reads it as it is.
pub(in crate::plan) struct LaidOut {
    /// As the model has them, `[outputs, inputs / groups, height, width]`.
    weight: Constant,
    geometry: Geometry,
    there: Option<WayThere>,
    back: Option<WayBack>,
}

impl LaidOut {
    pub fn new(weight: Constant, geometry: Geometry) -> Self {
        LaidOut { weight, geometry, there: None, back: None }
    }

    /// Whether these are that constant's.
    pub fn are_of(&self, weight: &Identity, geometry: &Geometry) -> bool {
        self.geometry == *geometry && self.weight.identity() == *weight
    }

    /// The weight's shape.
    pub(in crate::plan) fn size(&self) -> Vec<i64> {
        self.weight.size()
    }

    /// For `input`, and any other, with what follows there.
    pub(in crate::plan) fn there(
        &mut self,
        input: &Tensor,
        after: &After<'_>,
        operators: &Operators,
    ) -> Result<&WayThere, OperatorError> {
        let way = match self.there.take() {
            Some(way) => way,
            None => sparingly(|| WayThere::choose(&self.weight.tensor()?, &self.geometry, input, after, operators))?,
        };
        self.weight.leave();
        Ok(self.there.insert(way))
    }

    /// For `given`, the gradient of the result for an input of `size`.
    pub(in crate::plan) fn back(
        &mut self,
        given: &Tensor,
        size: &[i64],
        operators: &Operators,
    ) -> Result<&WayBack, OperatorError> {
        let suits = |way: &WayBack| way.suits(&self.weight.size(), &self.geometry, &given.size());
        let way = match self.back.take().filter(suits) {
            Some(way) => way,
            None => sparingly(|| {
                let there = self.there.as_ref().map_or(Ok(None), WayThere::panels)?;
                WayBack::choose(&self.weight.tensor()?, there.as_ref(), &self.geometry, given, size, operators)
            })?,
        };
        self.weight.leave();
        Ok(self.back.insert(way))
    }
}
