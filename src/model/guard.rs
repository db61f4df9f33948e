//! What a run at load may ask of ATen.
//!
//! A file is untrusted, and an operator trusts its arguments more than it should: a size beyond all memory is allocated
//! before it is refused, a dtype by number is not looked up but cast, an overflowing division of integers ends the process.
//! So every call at load is checked here first. What is checked: numbers that stand for sizes, axes and kinds
//! ([`Guard::before`]); how large the results can be ([`footprint`]); that the results are dense ([`Guard::after`]); and
//! that all values of one run stay within [`LoadLimits::max_value_bytes`]. Scratch memory that an operator takes while
//! it runs is not counted, and neither is time.
//!
//! [`LoadLimits::max_value_bytes`]: super::archive::LoadLimits::max_value_bytes

use tch::{Device, Kind, Tensor};

use super::footprint;
use crate::torch::{ArgumentType, Operator, OperatorError, Value};

/// Sizes, axes, strides and steps lie within this; `i64::MAX` means "to the end".
const MAX_NUMBER: i64 = 1 << 31;
/// ATen's numbers of memory formats go up to this.
const MAX_MEMORY_FORMAT: i64 = 3;

/// The memory that one run may still take.
#[derive(Debug, Clone)]
pub struct Guard {
    bytes_left: f64,
    limit: u64,
}

impl Guard {
    pub fn new(max_value_bytes: u64) -> Self {
        Guard { bytes_left: max_value_bytes as f64, limit: max_value_bytes }
    }

    /// Checks a call that is about to be made.
    pub fn before(&self, operator: &Operator, arguments: &[Value]) -> Result<(), OperatorError> {
        for (argument, value) in operator.schema().arguments.iter().zip(arguments) {
            check_numbers(&argument.name, argument.kind, value).map_err(|problem| OperatorError::Argument {
                operator: operator.to_string(),
                argument: argument.name.clone(),
                problem,
            })?;
        }
        check_division(operator, arguments)?;
        let elements = footprint::elements(operator, arguments);
        let width = arguments.iter().filter_map(Value::tensor).map(width).fold(4, usize::max);
        let bytes = elements * width as f64;
        // A sum or product that is no number says nothing, so it is refused too.
        if bytes <= self.bytes_left { Ok(()) } else { Err(self.too_large(&operator.to_string(), bytes)) }
    }

    /// Counts what a call gave, and checks that it is memory that other operators can read.
    pub fn after(&mut self, node: &str, results: &[Value]) -> Result<(), OperatorError> {
        for tensor in results.iter().filter_map(Value::tensor) {
            let dense = !tensor.is_sparse() && !tensor.is_mkldnn() && tensor.f_kind().is_ok();
            if !dense || tensor.device() != Device::Cpu {
                return Err(OperatorError::Unsupported { operator: format!("of node {node}") });
            }
            let bytes = tensor.numel() as f64 * width(tensor) as f64;
            self.bytes_left -= bytes;
            if self.bytes_left < 0.0 {
                return Err(self.too_large(&format!("of node {node}"), bytes));
            }
        }
        Ok(())
    }

    fn too_large(&self, operator: &str, bytes: f64) -> OperatorError {
        OperatorError::Failed {
            operator: operator.to_owned(),
            message: format!(
                "its results take up to {bytes:.0} bytes, and the values of one run may take {} together (max_value_bytes)",
                self.limit
            ),
        }
    }
}

fn width(tensor: &Tensor) -> usize {
    tensor.f_kind().map_or(16, Kind::elt_size_in_bytes)
}

fn check_numbers(name: &str, kind: ArgumentType, value: &Value) -> Result<(), String> {
    let one = |v: i64| match name {
        "dtype" | "out_dtype" if !super::dtype::is_scalar_type(v) => Err(format!("there is no dtype {v}")),
        "layout" if v != 0 => Err(format!("layout {v}: only dense tensors are run")),
        "memory_format" if !(0..=MAX_MEMORY_FORMAT).contains(&v) => Err(format!("there is no memory format {v}")),
        _ if v != i64::MAX && v.checked_abs().is_none_or(|v| v > MAX_NUMBER) => {
            Err(format!("{v}: up to {MAX_NUMBER} is allowed"))
        }
        _ => Ok(()),
    };
    match (kind, value) {
        (ArgumentType::Int, Value::Int(v)) => one(*v),
        (ArgumentType::Ints, Value::Ints(list)) => list.iter().try_for_each(|&v| one(v)),
        _ => Ok(()),
    }
}

/// The smallest integer divided by −1 is a fault of the processor. Nobody divides whole numbers by −1.
fn check_division(operator: &Operator, arguments: &[Value]) -> Result<(), OperatorError> {
    let name = operator.name().trim_start_matches("aten::").trim_end_matches('_');
    if !matches!(name, "floor_divide" | "div" | "divide" | "remainder" | "fmod" | "__rshift__" | "gcd" | "lcm") {
        return Ok(());
    }
    let whole = |tensor: &Tensor| {
        matches!(tensor.f_kind(), Ok(Kind::Int8 | Kind::Int16 | Kind::Int | Kind::Int64)) && tensor.numel() > 0
    };
    let minus_one = match (arguments.first(), arguments.get(1)) {
        (Some(Value::Tensor(dividend)), Some(Value::Int(divisor))) => whole(dividend) && *divisor == -1,
        (Some(_), Some(Value::Tensor(divisor))) if whole(divisor) => {
            divisor.f_eq(-1)?.f_any()?.f_int64_value(&[])? != 0
        }
        _ => false,
    };
    if minus_one {
        return Err(OperatorError::Failed {
            operator: operator.to_string(),
            message: "divides whole numbers by -1, which can overflow".into(),
        });
    }
    Ok(())
}
