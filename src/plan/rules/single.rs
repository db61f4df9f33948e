//! Rules for operators with one result of which only the first argument's gradient is written by hand.

use tch::Tensor;

use crate::plan::rule::{Gradient, Ran, Rule, Slot};
use crate::torch::{OperatorError, Value};

use super::tape::TapeRule;

/// Takes the gradient of the result to that of the first argument.
pub(super) type Reverse = Box<dyn Fn(&Tensor) -> Result<Tensor, OperatorError> + Send>;

/// Runs the operator and says how to come back.
pub(super) type Forward = Box<dyn Fn(&[Value]) -> Result<(Tensor, Reverse), OperatorError> + Send>;

/// How a guided reverse differs from a plain one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Guide {
    /// Not at all: no rectifier.
    No,
    /// `max(·, 0)` of the incoming gradient: the definition.
    Before,
    /// `max(·, 0)` of the outgoing gradient, in place. Equal where the derivative is nowhere negative, and cheaper.
    /// The reverse must give memory of its own.
    After,
}

/// A hand-written rule, with the tape for whatever it does not cover.
pub(super) struct Single {
    forward: Forward,
    guide: Guide,
    tape: TapeRule,
}

impl Single {
    pub(super) fn new(forward: Forward, guide: Guide, tape: TapeRule) -> Self {
        Single { forward, guide, tape }
    }
}

impl Rule for Single {
    fn forward(&self, arguments: &[Value], wanted: &[Slot]) -> Result<Ran, OperatorError> {
        if wanted != [Slot { argument: 0, element: None }] {
            return self.tape.forward(arguments, wanted);
        }
        let (result, reverse) = (self.forward)(arguments)?;
        let guide = self.guide;
        let saved = move |results: &[Option<Tensor>], gradient: Gradient| {
            let Some(Some(given)) = results.first() else { return Ok(vec![None]) };
            Ok(vec![Some(match (gradient, guide) {
                (Gradient::Plain, _) | (_, Guide::No) => reverse(given)?,
                (Gradient::Guided, Guide::Before) => reverse(&given.f_clamp_min(0)?)?,
                (Gradient::Guided, Guide::After) => reverse(given)?.f_relu_()?,
            })])
        };
        Ok((vec![Value::Tensor(result)], Some(Box::new(saved))))
    }
}
