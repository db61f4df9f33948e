//! How one node runs forward and takes a gradient back.

use tch::Tensor;

use crate::torch::{OperatorError, Value};

/// Which gradient a reverse run takes. Only rectifiers read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Gradient {
    /// The derivative.
    Plain,
    /// Guided backpropagation (Springenberg et al. 2015): a rectifier's derivative is applied to `max(gradient, 0)`.
    Guided,
}

/// A place in a node's arguments where a tensor is read: `element` counts inside a list argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    pub argument: usize,
    pub element: Option<usize>,
}

/// How one node runs forward. A rule holds what the node's literals fix; it keeps nothing of a run.
pub trait Rule: Send {
    /// Runs the node. `arguments` are in the operation's order. `wanted` are the places whose gradient a reverse run
    /// may ask for; when there are none, nothing is saved.
    ///
    /// Results are flat (a list of tensors counts one an element), without autograd history.
    fn forward(
        &self,
        arguments: &[Value],
        wanted: &[Slot],
    ) -> Result<(Vec<Value>, Option<Box<dyn Saved>>), OperatorError>;
}

/// What one node's forward run remembers for its reverse runs. It can be walked more than once.
pub trait Saved: Send {
    /// The gradients of the wanted places, in their order, given those of the flat results (absent: zero). An absent
    /// gradient in the answer is zero.
    fn reverse(&self, results: &[Option<Tensor>], gradient: Gradient) -> Result<Vec<Option<Tensor>>, OperatorError>;
}
