//! How one node runs forward and takes a gradient back.

use tch::Tensor;

use crate::torch::{OperatorError, Value, add};

/// What a forward run gives: flat results, and what its reverse runs need when there will be any.
pub type RuleOutput = (Vec<Value>, Option<Box<dyn Saved>>);

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

impl Slot {
    /// The tensor that is read there.
    pub fn tensor<'a>(&self, arguments: &'a [Value]) -> Result<&'a Tensor, OperatorError> {
        match (arguments.get(self.argument), self.element) {
            (Some(Value::Tensor(tensor)), None) => Some(tensor),
            (Some(Value::Tensors(list)), Some(element)) => list.get(element).and_then(Option::as_ref),
            _ => None,
        }
        .ok_or_else(|| self.missing())
    }

    /// Puts another tensor there.
    pub fn put(&self, arguments: &mut [Value], tensor: Tensor) -> Result<(), OperatorError> {
        match (arguments.get_mut(self.argument), self.element) {
            (Some(Value::Tensor(place)), None) => *place = tensor,
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
            problem: "holds no tensor although its gradient is wanted".into(),
        }
    }
}

/// How one node runs forward. A rule holds what the node's literals fix; it keeps nothing of a run.
pub trait Rule: Send {
    /// Runs the node. `arguments` are in the operation's order. `wanted` are the places whose gradient a reverse run
    /// may ask for; when there are none, nothing is saved.
    ///
    /// Results are flat (a list of tensors counts one an element), without autograd history.
    fn forward(&self, arguments: &[Value], wanted: &[Slot]) -> Result<RuleOutput, OperatorError>;
}

/// The gradient of one value as its readers send it back: what it is the sum of, in the order of arrival. None yet: zero.
#[derive(Debug, Default)]
pub struct Parts(Vec<Tensor>);

impl Parts {
    /// One more. At most two are kept apart, so that no more memory is held than a sum needs.
    pub fn push(&mut self, part: Tensor) -> Result<(), OperatorError> {
        if self.0.len() == 2 {
            self.unite()?;
        }
        self.0.push(part);
        Ok(())
    }

    /// The whole gradient, which stays here as the one part.
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

    /// The whole gradient, which nobody else holds unless one of its parts was held.
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

/// What one node's forward run remembers for its reverse runs. It can be walked more than once.
pub trait Saved: Send {
    /// The gradients of the wanted places, in their order, given those of the flat results (absent: zero). An absent
    /// gradient in the answer is zero.
    ///
    /// What comes back may share memory with what went in, with another answer, or with itself (an expanded tensor):
    /// it is to be read, never written, unless nobody else holds it.
    fn reverse(&self, results: &[Option<Tensor>], gradient: Gradient) -> Result<Vec<Option<Tensor>>, OperatorError>;

    /// As [`Saved::reverse`], for a node that does better with the parts than with their sum.
    fn reverse_parts(&self, results: Vec<Parts>, gradient: Gradient) -> Result<Vec<Option<Tensor>>, OperatorError> {
        let whole: Vec<Option<Tensor>> = results.into_iter().map(Parts::into_sum).collect::<Result<_, _>>()?;
        self.reverse(&whole, gradient)
    }

    /// As [`Saved::reverse_parts`] for each of several gradients of the same results, for a node that does better with all of them
    /// at once. An answer may be empty: all of it is zero.
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

/// A closure that owns what it needs is a [`Saved`].
impl<F> Saved for F
where
    F: Fn(&[Option<Tensor>], Gradient) -> Result<Vec<Option<Tensor>>, OperatorError> + Send,
{
    fn reverse(&self, results: &[Option<Tensor>], gradient: Gradient) -> Result<Vec<Option<Tensor>>, OperatorError> {
        self(results, gradient)
    }
}
