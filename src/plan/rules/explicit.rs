//! Explicit rules: each covers the arguments that it can, and the one-node tape covers the rest.

use tch::Tensor;

use crate::plan::rule::{Gradient, Rule, RuleOutput, Slot};
use crate::torch::{OperatorError, Value};

use super::tape::TapeRule;

/// Runs a node for the wanted slots, as [`Rule::forward`]. `None`: the rule does not cover these arguments.
pub(super) type Run = Box<dyn Fn(&[Value], &[Slot]) -> Result<Option<RuleOutput>, OperatorError> + Send>;

/// Computes the gradient of the first argument from that of the only result.
pub(super) type Reverse = Box<dyn Fn(&Tensor) -> Result<Tensor, OperatorError> + Send>;

/// Runs an operator with one result, and returns it with the reverse to the first argument. `None` as in [`Run`].
pub(super) type Single = Box<dyn Fn(&[Value]) -> Result<Option<(Tensor, Reverse)>, OperatorError> + Send>;

/// How a guided reverse differs from a plain one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Guide {
    /// Not at all: the node is no rectifier.
    No,
    /// `max(·, 0)` of the incoming gradient: the definition (Springenberg et al., 2015).
    Before,
    /// `max(·, 0)` of the outgoing gradient, in place. Equal where the derivative is nowhere negative, and cheaper. The
    /// reverse must return memory that nobody else holds.
    After,
}

/// An explicit rule, with the tape for arguments that it does not cover.
pub(super) struct ExplicitRule {
    run: Run,
    tape: TapeRule,
}

impl ExplicitRule {
    pub(super) fn new(run: Run, tape: TapeRule) -> Self {
        ExplicitRule { run, tape }
    }
}

impl Rule for ExplicitRule {
    fn forward(&self, arguments: &[Value], wanted: &[Slot]) -> Result<RuleOutput, OperatorError> {
        if !wanted.is_empty()
            && let Some(ran) = (self.run)(arguments, wanted)?
        {
            return Ok(ran);
        }
        self.tape.forward(arguments, wanted)
    }
}

/// A rule for nodes of which only the first argument's gradient is wanted.
pub(super) fn single(forward: Single, guide: Guide) -> Run {
    Box::new(move |arguments, wanted| {
        if wanted != [Slot { argument: 0, element: None }] {
            return Ok(None);
        }
        let Some((result, reverse)) = forward(arguments)? else { return Ok(None) };
        let saved = move |results: &[Option<Tensor>], gradient: Gradient| {
            let Some(Some(grad_output)) = results.first() else { return Ok(vec![None]) };
            Ok(vec![Some(match (gradient, guide) {
                (Gradient::Plain, _) | (_, Guide::No) => reverse(grad_output)?,
                (Gradient::Guided, Guide::Before) => reverse(&grad_output.f_clamp_min(0)?)?,
                (Gradient::Guided, Guide::After) => reverse(grad_output)?.f_relu_()?,
            })])
        };
        Ok(Some((vec![Value::Tensor(result)], Some(Box::new(saved)))))
    })
}

/// The return value of a [`Single`].
pub(super) fn with_reverse(
    result: Tensor,
    reverse: impl Fn(&Tensor) -> Result<Tensor, OperatorError> + Send + 'static,
) -> Result<Option<(Tensor, Reverse)>, OperatorError> {
    Ok(Some((result, Box::new(reverse))))
}
