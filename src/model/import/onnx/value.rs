//! What the names of a file stand for while it is lowered.

use std::rc::Rc;

use tch::{Kind, Tensor};

use crate::torch::Value;

/// A tensor of the program.
#[derive(Debug)]
pub struct Known {
    /// Its name in the program.
    pub name: String,
    /// What it is with each example input; a constant has one.
    pub runs: Vec<Tensor>,
    pub is_constant: bool,
}

impl Known {
    /// What it is with one of the example inputs.
    pub fn run(&self, run: usize) -> &Tensor {
        &self.runs[run.min(self.runs.len() - 1)]
    }

    /// Its size with the first example input.
    pub fn size(&self) -> Vec<i64> {
        self.runs[0].size()
    }

    pub fn rank(&self) -> usize {
        self.runs[0].dim()
    }

    /// The dtype. One that tch has no name for counts as a complex one, which no operator of a network takes.
    pub fn kind(&self) -> Kind {
        self.runs[0].f_kind().unwrap_or(Kind::ComplexHalf)
    }

    /// The size of an axis that is the same for every input.
    pub fn fixed_size(&self, axis: usize) -> Option<i64> {
        let size = *self.runs[0].size().get(axis)?;
        self.runs.iter().all(|run| run.size().get(axis) == Some(&size)).then_some(size)
    }

    pub fn is_floating(&self) -> bool {
        crate::model::dtype::is_floating_point(self.kind())
    }
}

/// A number: the size of an axis, and what is computed from such.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scalar {
    Int(i64),
    Float(f64),
}

impl Scalar {
    pub fn value(self) -> Value {
        match self {
            Scalar::Int(number) => Value::Int(number),
            Scalar::Float(number) => Value::Float(number),
        }
    }

    pub fn float(self) -> f64 {
        match self {
            Scalar::Int(number) => number as f64,
            Scalar::Float(number) => number,
        }
    }
}

/// A number that is the same for every input, or one that the program computes.
#[derive(Debug, Clone)]
pub struct Number {
    /// What it is with each example input; one that is the same for every input has one.
    pub runs: Vec<Scalar>,
    /// Its name in the program; none when it is the same for every input.
    pub name: Option<String>,
}

impl Number {
    pub fn int(number: i64) -> Self {
        Number { runs: vec![Scalar::Int(number)], name: None }
    }

    pub fn float(number: f64) -> Self {
        Number { runs: vec![Scalar::Float(number)], name: None }
    }

    pub fn run(&self, run: usize) -> Scalar {
        self.runs[run.min(self.runs.len() - 1)]
    }

    /// The number, if it is the same for every input.
    pub fn fixed(&self) -> Option<Scalar> {
        self.name.is_none().then(|| self.runs[0])
    }

    pub fn fixed_int(&self) -> Option<i64> {
        match self.fixed()? {
            Scalar::Int(number) => Some(number),
            Scalar::Float(_) => None,
        }
    }
}

/// A list of numbers that the program computes from sizes, or one of them.
#[derive(Debug, Clone)]
pub struct Numbers {
    pub items: Vec<Number>,
    /// Whether it is a list, a tensor of one axis; else it is a tensor of none.
    pub is_list: bool,
    pub kind: Kind,
}

/// What a name stands for.
#[derive(Debug, Clone)]
pub enum Val {
    Tensor(Rc<Known>),
    Numbers(Rc<Numbers>),
    /// A result of QuantizeLinear: the tensor that it was made of.
    Quantized(Rc<Known>),
    /// An optional input that is not given.
    Absent,
}

impl From<Known> for Val {
    fn from(known: Known) -> Self {
        Val::Tensor(Rc::new(known))
    }
}

impl Val {
    pub fn numbers(items: Vec<Number>, is_list: bool, kind: Kind) -> Self {
        Val::Numbers(Rc::new(Numbers { items, is_list, kind }))
    }
}
