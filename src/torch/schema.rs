//! An operator's signature, as ATen's dispatcher has it.

use std::ffi::c_int;

use super::Value;

/// An argument's type, as far as passing a value depends on it. Optional arguments take [`Value::None`] too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArgumentType {
    Tensor,
    Tensors,
    OptionalTensors,
    Int,
    Ints,
    Float,
    Floats,
    Bool,
    Bools,
    /// A number of any kind.
    Scalar,
    /// A list of numbers whose elements may be absent.
    OptionalScalars,
    String,
    Device,
    /// A type that no exported vision model passes (a generator, a dimension name, a class).
    Other,
}

impl ArgumentType {
    /// From ATen's own notation, without the `?` of an optional: `Tensor`, `int[]`, `Tensor?[]`, …
    pub(super) fn parse(text: &str) -> Self {
        match text {
            "Tensor" => Self::Tensor,
            "Tensor[]" => Self::Tensors,
            "Tensor?[]" => Self::OptionalTensors,
            "int" | "SymInt" => Self::Int,
            "int[]" | "SymInt[]" => Self::Ints,
            "float" => Self::Float,
            "float[]" => Self::Floats,
            "bool" => Self::Bool,
            "bool[]" => Self::Bools,
            "Scalar" | "number" => Self::Scalar,
            "Scalar?[]" | "number?[]" => Self::OptionalScalars,
            "str" => Self::String,
            "Device" => Self::Device,
            _ => Self::Other,
        }
    }
}

/// What an operator does to the memory of an argument, or whose memory a result uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alias {
    /// The argument is only read; the result has memory of its own.
    None,
    /// The result may be a view of the argument.
    Shared,
    /// The argument is written.
    Written,
}

impl Alias {
    pub(super) fn from_code(code: c_int) -> Self {
        match code {
            0 => Self::None,
            1 => Self::Shared,
            _ => Self::Written,
        }
    }
}

/// One argument of an operator.
#[derive(Debug, Clone)]
pub struct Argument {
    pub name: String,
    pub kind: ArgumentType,
    pub optional: bool,
    pub alias: Alias,
    /// The value if the caller passes none.
    pub default: Option<Value>,
}

/// An operator's signature.
#[derive(Debug, Clone)]
pub struct Schema {
    pub arguments: Vec<Argument>,
    pub returns: Vec<Alias>,
}

impl Schema {
    /// The position of an argument.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.arguments.iter().position(|a| a.name == name)
    }

    /// The argument that the operator writes, if it works in place.
    pub fn written(&self) -> Option<&Argument> {
        self.arguments.iter().find(|a| a.alias == Alias::Written)
    }
}
