//! The interface of a node's computation, forward and in reverse.

use tch::Tensor;

use crate::torch::{OperatorError, Value, add};

/// The flat results of a forward run, and the saved state, if a reverse run may follow.
pub type RuleOutput = (Vec<Value>, Option<Box<dyn Saved>>);

/// Which gradient a reverse run computes. Only rectifiers distinguish them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Gradient {
    /// The derivative.
    Plain,
    /// Guided backpropagation (Springenberg et al. 2015): a rectifier's derivative is applied to `max(gradient, 0)`.
    Guided,
}

/// A tensor among a node's arguments: `element` is the index within a list argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    pub argument: usize,
    pub element: Option<usize>,
}

impl Slot {
    /// The tensor in this slot.
    pub fn tensor<'a>(&self, arguments: &'a [Value]) -> Result<&'a Tensor, OperatorError> {
        match (arguments.get(self.argument), self.element) {
            (Some(Value::Tensor(tensor)), None) => Some(tensor),
            (Some(Value::Tensors(list)), Some(element)) => list.get(element).and_then(Option::as_ref),
            _ => None,
        }
        .ok_or_else(|| self.missing())
    }

    /// Replaces the tensor in this slot.
    pub fn put(&self, arguments: &mut [Value], tensor: Tensor) -> Result<(), OperatorError> {
        match (arguments.get_mut(self.argument), self.element) {
            (Some(Value::Tensor(old)), None) => *old = tensor,
            (Some(Value::Tensors(list)), Some(element)) if element < list.len() => list[element] = Some(tensor),
            _ => return Err(self.missing()),
        }
        Ok(())
    }

    fn missing(&self) -> OperatorError {
        OperatorError::Argument {
            operator: "a node of the plan".into(),
            argument: match self.element {
                None => format!("number {}", self.argument),
                Some(element) => format!("number {}, element {element}", self.argument),
            },
            problem: "is no tensor, and its gradient is wanted".into(),
        }
    }
}

/// Runs one node. A rule holds what the node's literals fix; it keeps nothing of a run.
pub trait Rule: Send {
    /// Runs the node. `arguments` are in the operator's order. `wanted` are the slots whose gradients a reverse run may
    /// ask for; if there are none, nothing is saved.
    ///
    /// Results are flat (each element of a list is one result) and have no autograd history.
    fn forward(&self, arguments: &[Value], wanted: &[Slot]) -> Result<RuleOutput, OperatorError>;
}

/// The gradient of one value as the terms that its readers contribute, in order of arrival. No term means zero.
#[derive(Debug, Default)]
pub struct Parts(Vec<Tensor>);

impl Parts {
    /// One term for each of several gradients, none where a gradient is absent.
    pub fn of_each(gradients: &[Option<Tensor>]) -> Vec<Self> {
        gradients.iter().map(|gradient| gradient.as_ref().map(Tensor::shallow_clone).into()).collect()
    }

    /// Adds a term. At most two terms are kept, so that no more memory is held than a sum needs.
    pub fn push(&mut self, part: Tensor) -> Result<(), OperatorError> {
        if self.0.len() == 2 {
            self.unite()?;
        }
        self.0.push(part);
        Ok(())
    }

    /// The sum of the terms, which replaces them.
    pub fn sum(&mut self) -> Result<Option<Tensor>, OperatorError> {
        self.unite()?;
        Ok(self.0.first().map(Tensor::shallow_clone))
    }

    fn unite(&mut self) -> Result<(), OperatorError> {
        let mut parts = std::mem::take(&mut self.0).into_iter();
        if let Some(first) = parts.next() {
            self.0.push(parts.try_fold(first, |sum, part| add(sum, &part))?);
        }
        Ok(())
    }

    /// The sum of the terms. No one else holds the tensor, unless someone holds one of the terms.
    pub fn into_sum(mut self) -> Result<Option<Tensor>, OperatorError> {
        self.unite()?;
        Ok(self.0.pop())
    }

    pub fn as_slice(&self) -> &[Tensor] {
        &self.0
    }
}

impl From<Option<Tensor>> for Parts {
    fn from(whole: Option<Tensor>) -> Self {
        Parts(whole.into_iter().collect())
    }
}

/// The saved state of one node's forward run. It can be reversed any number of times.
pub trait Saved: Send {
    /// The gradients of the wanted slots, in their order, given the gradients of the flat results. `None` is zero in
    /// both.
    ///
    /// A returned tensor may share memory with an argument, with another result, or with itself (expanded): it must not
    /// be written, unless nobody else holds it.
    fn reverse(&self, results: &[Option<Tensor>], gradient: Gradient) -> Result<Vec<Option<Tensor>>, OperatorError>;

    /// As [`Saved::reverse`], for a node that is faster on the terms of a gradient than on their sum.
    fn reverse_parts(&self, results: Vec<Parts>, gradient: Gradient) -> Result<Vec<Option<Tensor>>, OperatorError> {
        let whole: Vec<Option<Tensor>> = results.into_iter().map(Parts::into_sum).collect::<Result<_, _>>()?;
        self.reverse(&whole, gradient)
    }

    /// As [`Saved::reverse_parts`] for each of several gradients of the same results, for a node that is faster on all
    /// of them together. An empty answer means that all of its gradients are zero.
    fn reverse_each(
        &self,
        each: Vec<Vec<Parts>>,
        gradient: Gradient,
    ) -> Result<Vec<Vec<Option<Tensor>>>, OperatorError> {
        let one = |results: Vec<Parts>| {
            let is_zero = results.iter().all(|parts| parts.as_slice().is_empty());
            if is_zero { Ok(Vec::new()) } else { self.reverse_parts(results, gradient) }
        };
        each.into_iter().map(one).collect()
    }
}

/// A closure that owns its saved tensors is a [`Saved`].
impl<F> Saved for F
where
    F: Fn(&[Option<Tensor>], Gradient) -> Result<Vec<Option<Tensor>>, OperatorError> + Send,
{
    fn reverse(&self, results: &[Option<Tensor>], gradient: Gradient) -> Result<Vec<Option<Tensor>>, OperatorError> {
        self(results, gradient)
    }
}
