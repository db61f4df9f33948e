//! The frame of a hand-written rule: it covers what it can, the one-node tape covers the rest.

use tch::Tensor;

use crate::plan::rule::{Gradient, Ran, Rule, Slot};
use crate::torch::{OperatorError, Value};

use super::tape::TapeRule;

/// Runs a node for the wanted places, like [`Rule::forward`]. None: the rule does not cover these arguments.
pub(super) type Run = Box<dyn Fn(&[Value], &[Slot]) -> Result<Option<Ran>, OperatorError> + Send>;

/// Takes the gradient of the one result to that of the first argument.
pub(super) type Reverse = Box<dyn Fn(&Tensor) -> Result<Tensor, OperatorError> + Send>;

/// Runs an operator with one result and says how to come back to its first argument. None as in [`Run`].
pub(super) type Single = Box<dyn Fn(&[Value]) -> Result<Option<(Tensor, Reverse)>, OperatorError> + Send>;

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
pub(super) struct ByHand {
    run: Run,
    tape: TapeRule,
}

impl ByHand {
    pub(super) fn new(run: Run, tape: TapeRule) -> Self {
        ByHand { run, tape }
    }
}

impl Rule for ByHand {
    fn forward(&self, arguments: &[Value], wanted: &[Slot]) -> Result<Ran, OperatorError> {
        if !wanted.is_empty()
            && let Some(ran) = (self.run)(arguments, wanted)?
        {
            return Ok(ran);
        }
        self.tape.forward(arguments, wanted)
    }
}

/// A rule for when only the first argument's gradient is wanted.
pub(super) fn single(forward: Single, guide: Guide) -> Run {
    Box::new(move |arguments, wanted| {
        if wanted != [Slot { argument: 0, element: None }] {
            return Ok(None);
        }
        let Some((result, reverse)) = forward(arguments)? else { return Ok(None) };
        let saved = move |results: &[Option<Tensor>], gradient: Gradient| {
            let Some(Some(given)) = results.first() else { return Ok(vec![None]) };
            Ok(vec![Some(match (gradient, guide) {
                (Gradient::Plain, _) | (_, Guide::No) => reverse(given)?,
                (Gradient::Guided, Guide::Before) => reverse(&given.f_clamp_min(0)?)?,
                (Gradient::Guided, Guide::After) => reverse(given)?.f_relu_()?,
            })])
        };
        Ok(Some((vec![Value::Tensor(result)], Some(Box::new(saved)))))
    })
}

/// What a [`Single`] gives.
pub(super) fn ran(
    result: Tensor,
    reverse: impl Fn(&Tensor) -> Result<Tensor, OperatorError> + Send + 'static,
) -> Result<Option<(Tensor, Reverse)>, OperatorError> {
    Ok(Some((result, Box::new(reverse))))
}
