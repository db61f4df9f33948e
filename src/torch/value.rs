//! The arguments and results of operators.

use tch::{Device, Tensor};

/// An argument or a result of an operator. ATen's dtypes, memory formats and layouts are [`Value::Int`]s with ATen's
/// own numbers.
#[derive(Debug)]
pub enum Value {
    None,
    Tensor(Tensor),
    /// A list of tensors; an element may be absent (`Tensor?[]`, or an output that was not computed).
    Tensors(Vec<Option<Tensor>>),
    Int(i64),
    Ints(Vec<i64>),
    Float(f64),
    Floats(Vec<f64>),
    Bool(bool),
    Bools(Vec<bool>),
    String(String),
    Device(Device),
}

impl Clone for Value {
    /// Tensors are shared, not copied.
    fn clone(&self) -> Self {
        match self {
            Value::None => Value::None,
            Value::Tensor(t) => Value::Tensor(t.shallow_clone()),
            Value::Tensors(list) => {
                Value::Tensors(list.iter().map(|t| t.as_ref().map(Tensor::shallow_clone)).collect())
            }
            Value::Int(v) => Value::Int(*v),
            Value::Ints(v) => Value::Ints(v.clone()),
            Value::Float(v) => Value::Float(*v),
            Value::Floats(v) => Value::Floats(v.clone()),
            Value::Bool(v) => Value::Bool(*v),
            Value::Bools(v) => Value::Bools(v.clone()),
            Value::String(v) => Value::String(v.clone()),
            Value::Device(v) => Value::Device(*v),
        }
    }
}

impl Value {
    /// The tensor, if this is one.
    pub fn tensor(&self) -> Option<&Tensor> {
        match self {
            Value::Tensor(t) => Some(t),
            _ => None,
        }
    }

    /// A list of values as one value: of tensors (some may be absent), or of numbers of one kind. None for a mixture.
    pub fn from_list(elements: Vec<Value>) -> Option<Value> {
        fn all<T>(elements: &[Value], one: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
            elements.iter().map(one).collect()
        }
        let ints = all(&elements, |v| if let Value::Int(i) = v { Some(*i) } else { None });
        if let Some(ints) = ints {
            return Some(Value::Ints(ints));
        }
        let bools = all(&elements, |v| if let Value::Bool(b) = v { Some(*b) } else { None });
        if let Some(bools) = bools {
            return Some(Value::Bools(bools));
        }
        let floats = all(&elements, |v| match v {
            Value::Float(f) => Some(*f),
            Value::Int(i) => Some(*i as f64),
            _ => None,
        });
        if let Some(floats) = floats {
            return Some(Value::Floats(floats));
        }
        all(&elements, |v| match v {
            Value::Tensor(t) => Some(Some(t.shallow_clone())),
            Value::None => Some(None),
            _ => None,
        })
        .map(Value::Tensors)
    }

    /// The kind of value, for an error message.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::None => "none",
            Value::Tensor(_) => "a tensor",
            Value::Tensors(_) => "a list of tensors",
            Value::Int(_) => "an integer",
            Value::Ints(_) => "a list of integers",
            Value::Float(_) => "a float",
            Value::Floats(_) => "a list of floats",
            Value::Bool(_) => "a boolean",
            Value::Bools(_) => "a list of booleans",
            Value::String(_) => "a string",
            Value::Device(_) => "a device",
        }
    }
}
