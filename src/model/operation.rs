//! The operations of nodes, and how they run.

use tch::{Kind, Tensor};

use crate::torch::{Operator, OperatorError, Value};

/// Arithmetic on sizes: what PyTorch writes as `_operator.mul`, `torch.sym_float`, …
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Symbolic {
    Add,
    Sub,
    Mul,
    FloorDiv,
    TrueDiv,
    Mod,
    Pow,
    Neg,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    And,
    Or,
    Not,
    Max,
    Min,
    ToFloat,
    ToInt,
    Truncate,
    Sqrt,
    /// `condition ? a : b`.
    IfElse,
}

impl Symbolic {
    /// From the last part of `_operator.mul`, `torch.sym_max`, `math.trunc`, ….
    pub fn find(name: &str) -> Option<Self> {
        Some(match name {
            "add" => Self::Add,
            "sub" => Self::Sub,
            "mul" => Self::Mul,
            "floordiv" => Self::FloorDiv,
            "truediv" => Self::TrueDiv,
            "mod" => Self::Mod,
            "pow" => Self::Pow,
            "neg" => Self::Neg,
            "eq" => Self::Eq,
            "ne" => Self::Ne,
            "lt" => Self::Lt,
            "le" => Self::Le,
            "gt" => Self::Gt,
            "ge" => Self::Ge,
            "and_" => Self::And,
            "or_" => Self::Or,
            "sym_not" => Self::Not,
            "sym_max" => Self::Max,
            "sym_min" => Self::Min,
            "sym_float" => Self::ToFloat,
            "sym_int" => Self::ToInt,
            "trunc" => Self::Truncate,
            "sym_sqrt" | "_sym_sqrt" => Self::Sqrt,
            "sym_ite" => Self::IfElse,
            _ => return None,
        })
    }

    fn evaluate(self, arguments: &[Value]) -> Result<Value, OperatorError> {
        let fail =
            |problem: &str| OperatorError::Failed { operator: format!("{self:?} of sizes"), message: problem.into() };
        let number = |i: usize| -> Result<Value, OperatorError> {
            match arguments.get(i) {
                Some(Value::Bool(b)) => Ok(Value::Int(i64::from(*b))),
                Some(v @ (Value::Int(_) | Value::Float(_))) => Ok(v.clone()),
                _ => Err(fail("takes numbers")),
            }
        };
        let real = |i: usize| -> Result<f64, OperatorError> {
            Ok(match number(i)? {
                Value::Float(v) => v,
                Value::Int(v) => v as f64,
                _ => 0.0,
            })
        };
        let integers = || -> Result<Option<(i64, i64)>, OperatorError> {
            Ok(match (number(0)?, number(1)?) {
                (Value::Int(a), Value::Int(b)) => Some((a, b)),
                _ => None,
            })
        };
        let overflow = || fail("overflows");
        let arithmetic = |whole: fn(i64, i64) -> Option<i64>, float: fn(f64, f64) -> f64| {
            Ok(match integers()? {
                Some((a, b)) => Value::Int(whole(a, b).ok_or_else(overflow)?),
                None => Value::Float(float(real(0)?, real(1)?)),
            })
        };
        let truth = |i: usize| Ok::<bool, OperatorError>(real(i)? != 0.0);
        match self {
            Self::Add => arithmetic(i64::checked_add, |a, b| a + b),
            Self::Sub => arithmetic(i64::checked_sub, |a, b| a - b),
            Self::Mul => arithmetic(i64::checked_mul, |a, b| a * b),
            Self::FloorDiv => arithmetic(floor_div, |a, b| (a / b).floor()),
            Self::Mod => arithmetic(|a, b| floor_div(a, b).map(|q| a - q * b), |a, b| a - (a / b).floor() * b),
            Self::Pow => arithmetic(|a, b| a.checked_pow(u32::try_from(b).ok()?), f64::powf),
            Self::TrueDiv if real(1)? == 0.0 => Err(fail("divides by zero")),
            Self::TrueDiv => Ok(Value::Float(real(0)? / real(1)?)),
            Self::Neg => match number(0)? {
                Value::Int(v) => Ok(Value::Int(v.checked_neg().ok_or_else(overflow)?)),
                _ => Ok(Value::Float(-real(0)?)),
            },
            Self::Eq => Ok(Value::Bool(real(0)? == real(1)?)),
            Self::Ne => Ok(Value::Bool(real(0)? != real(1)?)),
            Self::Lt => Ok(Value::Bool(real(0)? < real(1)?)),
            Self::Le => Ok(Value::Bool(real(0)? <= real(1)?)),
            Self::Gt => Ok(Value::Bool(real(0)? > real(1)?)),
            Self::Ge => Ok(Value::Bool(real(0)? >= real(1)?)),
            Self::And => Ok(Value::Bool(truth(0)? && truth(1)?)),
            Self::Or => Ok(Value::Bool(truth(0)? || truth(1)?)),
            Self::Not => Ok(Value::Bool(!truth(0)?)),
            Self::Max => Ok(if real(0)? >= real(1)? { number(0)? } else { number(1)? }),
            Self::Min => Ok(if real(0)? <= real(1)? { number(0)? } else { number(1)? }),
            Self::ToFloat => Ok(Value::Float(real(0)?)),
            Self::ToInt | Self::Truncate => Ok(Value::Int(real(0)?.trunc() as i64)),
            Self::Sqrt => Ok(Value::Float(real(0)?.sqrt())),
            Self::IfElse => number(if truth(0)? { 1 } else { 2 }),
        }
    }
}

/// Python's `//`.
fn floor_div(a: i64, b: i64) -> Option<i64> {
    let quotient = a.checked_div(b)?;
    Some(if a % b != 0 && (a < 0) != (b < 0) { quotient - 1 } else { quotient })
}

/// An argument of a view in a chain.
#[derive(Debug, Clone)]
pub enum ViewArgument {
    /// The viewed tensor: the base, or the view before this one.
    Base,
    Literal(Value),
    /// An argument of the [`WriteBack`] node, by position.
    Argument(usize),
    /// A list of integers, some of them arguments of the node.
    Sizes(Vec<Size>),
}

/// An element of [`ViewArgument::Sizes`].
#[derive(Debug, Clone, Copy)]
pub enum Size {
    Int(i64),
    Argument(usize),
}

/// One view operator of a chain.
#[derive(Debug, Clone)]
pub struct View {
    pub operator: Operator,
    pub arguments: Vec<ViewArgument>,
    /// Index of the flat result that the next view reads.
    pub result: usize,
}

/// The chain of views through which an in-place write reached its base, outermost first.
#[derive(Debug, Clone)]
pub struct WriteBack {
    pub views: Vec<View>,
}

impl WriteBack {
    /// `base` with the elements that the chain selects replaced by `new`: the chain is applied to the base's own
    /// element numbers, and `new` is scattered there.
    fn apply(&self, arguments: &[Value]) -> Result<Tensor, OperatorError> {
        let missing =
            || OperatorError::Failed { operator: "write back".into(), message: "takes a base and a value".into() };
        let base = arguments.first().and_then(Value::tensor).ok_or_else(missing)?;
        let new = arguments.get(1).and_then(Value::tensor).ok_or_else(missing)?;
        let shape = base.size();
        let count = base.numel() as i64;
        let mut index = Tensor::f_arange(count, (Kind::Int64, base.device()))?.f_view(shape.as_slice())?;
        for view in &self.views {
            index = view.apply(index, arguments)?;
        }
        let new = new.f_to_kind(base.f_kind()?)?.f_expand(index.size(), false)?.f_reshape([-1])?;
        Ok(base.f_reshape([-1])?.f_scatter(0, &index.f_reshape([-1])?, &new)?.f_view(shape.as_slice())?)
    }
}

impl View {
    fn apply(&self, base: Tensor, arguments: &[Value]) -> Result<Tensor, OperatorError> {
        let fail =
            |message: &str| OperatorError::Failed { operator: self.operator.to_string(), message: message.into() };
        let argument = |i: usize| arguments.get(i).cloned().ok_or_else(|| fail("an argument is missing"));
        let values = self
            .arguments
            .iter()
            .map(|a| match a {
                ViewArgument::Base => Ok(Value::Tensor(base.shallow_clone())),
                ViewArgument::Literal(value) => Ok(value.clone()),
                ViewArgument::Argument(i) => argument(*i),
                ViewArgument::Sizes(sizes) => sizes
                    .iter()
                    .map(|size| match size {
                        Size::Int(v) => Ok(*v),
                        Size::Argument(i) => match argument(*i)? {
                            Value::Int(v) => Ok(v),
                            _ => Err(fail("a size is no integer")),
                        },
                    })
                    .collect::<Result<_, _>>()
                    .map(Value::Ints),
            })
            .collect::<Result<Vec<_>, OperatorError>>()?;
        match flat(self.operator.call(&values)?).into_iter().nth(self.result) {
            Some(Value::Tensor(tensor)) => Ok(tensor),
            _ => Err(fail("gave no tensor")),
        }
    }
}

/// Flattens results: each element of a list of tensors becomes a result.
pub fn flat(results: Vec<Value>) -> Vec<Value> {
    let mut out = Vec::with_capacity(results.len());
    for value in results {
        match value {
            Value::Tensors(list) => out.extend(list.into_iter().map(|t| t.map_or(Value::None, Value::Tensor))),
            other => out.push(other),
        }
    }
    out
}

pub(super) fn run(operation: &Operation, arguments: &[Value], record: bool) -> Result<Vec<Value>, OperatorError> {
    let call = |operator: &Operator, arguments: &[Value]| {
        if record { operator.call_recording(arguments) } else { operator.call(arguments) }
    };
    match operation {
        Operation::Aten(operator) => Ok(flat(call(operator, arguments)?)),
        Operation::ClonedInPlace { operator, written } => {
            let mut arguments = arguments.to_vec();
            let Some(Value::Tensor(target)) = arguments.get(*written) else {
                return Err(OperatorError::Failed {
                    operator: operator.to_string(),
                    message: "writes no tensor".into(),
                });
            };
            // `aten::clone` keeps strides and, while recording, the gradient.
            let clone =
                call(&Operator::find("aten::clone", "")?, &[Value::Tensor(target.shallow_clone()), Value::None])?;
            let Some(clone) = clone.into_iter().next() else {
                return Err(OperatorError::Unsupported { operator: operator.to_string() });
            };
            arguments[*written] = clone;
            Ok(flat(call(operator, &arguments)?))
        }
        Operation::Symbolic(symbolic) => Ok(vec![symbolic.evaluate(arguments)?]),
        Operation::WriteBack(write_back) => {
            let apply = || write_back.apply(arguments);
            let written = if record { tch::with_grad(apply) } else { tch::no_grad(apply) };
            Ok(vec![Value::Tensor(written?)])
        }
    }
}

/// The operation of a node.
#[derive(Debug, Clone)]
pub enum Operation {
    /// An operator of ATen that neither writes memory nor is random.
    Aten(Operator),
    /// An in-place operator without a functional twin: its argument `written` is cloned first.
    ClonedInPlace { operator: Operator, written: usize },
    /// Arithmetic on sizes.
    Symbolic(Symbolic),
    /// `base` with the elements that a chain of views selects replaced by `new`. Arguments: `base`, `new`, then the
    /// arguments of the views.
    WriteBack(WriteBack),
}

impl Operation {
    /// The ATen operator, if the operation is exactly one.
    pub fn aten(&self) -> Option<&Operator> {
        match self {
            Operation::Aten(operator) => Some(operator),
            _ => None,
        }
    }

    /// Runs the operation on arguments in its order. Results are flat: each element of a list of tensors is
    /// a result.
    /// `record` keeps what autograd needs (see [`crate::torch::Tape::record`]).
    pub fn run(&self, arguments: &[Value], record: bool) -> Result<Vec<Value>, OperatorError> {
        run(self, arguments, record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn division_of_sizes_rounds_down_as_in_python() {
        let divide = |a, b| Symbolic::FloorDiv.evaluate(&[Value::Int(a), Value::Int(b)]).unwrap();
        assert!(matches!(divide(7, 2), Value::Int(3)));
        assert!(matches!(divide(-7, 2), Value::Int(-4)));
        assert!(matches!(Symbolic::Mod.evaluate(&[Value::Int(-7), Value::Int(2)]).unwrap(), Value::Int(1)));
        assert!(Symbolic::FloorDiv.evaluate(&[Value::Int(1), Value::Int(0)]).is_err());
    }

    #[test]
    fn a_write_through_a_view_changes_only_what_the_view_selects() {
        let write_back = WriteBack {
            views: vec![View {
                operator: Operator::find("aten::select", "int").unwrap(),
                arguments: vec![
                    ViewArgument::Base,
                    ViewArgument::Literal(Value::Int(1)),
                    ViewArgument::Literal(Value::Int(0)),
                ],
                result: 0,
            }],
        };
        let base = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0]).view([2, 2]);
        let new = Tensor::from_slice(&[10.0f32, 30.0]);
        let written = write_back.apply(&[Value::Tensor(base), Value::Tensor(new)]).unwrap();
        assert_eq!(Vec::<f32>::try_from(written.view(-1)).unwrap(), [10.0, 2.0, 30.0, 4.0]);
    }
}
