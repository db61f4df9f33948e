//! Checks every call of a run at load before ATen runs it.
//!
//! A file is untrusted, and operators of ATen check their arguments too little: they allocate any size, cast dtype
//! numbers without a look-up, and end the process when a division of integers overflows. Checked are: numbers that
//! stand for sizes, axes and kinds ([`Guard::before`]); how large the results can be ([`footprint`]); that the results
//! are dense ([`Guard::after`]); and that all values of one run stay within [`LoadLimits::max_value_bytes`]. Scratch
//! memory that an operator takes while it runs is not counted, and neither is time.
//!
//! [`LoadLimits::max_value_bytes`]: crate::model::LoadLimits::max_value_bytes

use tch::{Device, Kind, Tensor};

use crate::torch::{ArgumentType, Operator, OperatorError, Value};

/// Bound of sizes, axes, strides and steps; `i64::MAX` means "to the end".
const MAX_NUMBER: i64 = 1 << 31;
/// ATen's largest number of a memory format.
const MAX_MEMORY_FORMAT: i64 = 3;

/// The memory that is left for one run.
#[derive(Debug, Clone)]
pub struct Guard {
    bytes_left: f64,
    limit: u64,
}

impl Guard {
    pub fn new(max_value_bytes: u64) -> Self {
        Guard { bytes_left: max_value_bytes as f64, limit: max_value_bytes }
    }

    /// Checks a call before it is made.
    pub fn before(&self, operator: &Operator, arguments: &[Value]) -> Result<(), OperatorError> {
        for (argument, value) in operator.schema().arguments.iter().zip(arguments) {
            check_numbers(&argument.name, argument.kind, value).map_err(|problem| OperatorError::Argument {
                operator: operator.to_string(),
                argument: argument.name.clone(),
                problem,
            })?;
        }
        check_division(operator, arguments)?;
        check_unchecked(operator, arguments)?;
        let elements = footprint::elements(operator, arguments);
        let width = arguments.iter().filter_map(Value::tensor).map(width).fold(4, usize::max);
        let bytes = elements * width as f64;
        // A bound that is NaN proves nothing, so the call is refused.
        if bytes <= self.bytes_left { Ok(()) } else { Err(self.too_large(&operator.to_string(), bytes)) }
    }

    /// Charges the results of a call, and checks that they are dense.
    pub fn after(&mut self, node: &str, names: usize, results: &[Value]) -> Result<(), OperatorError> {
        if names > results.len() {
            return Err(OperatorError::Failed {
                operator: format!("of node {node}"),
                message: format!("its {names} names stand for {} result(s)", results.len()),
            });
        }
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
                "its results take up to {bytes:.0} bytes, and the values of one run may take {} together \
                 (max_value_bytes)",
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

/// Refuses divisions of integers by −1: the smallest integer divided by −1 traps on x86-64.
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

/// Checks that these operators of libtorch 2.11 lack: they divide by a step that was truncated to 0, and read past the
/// end of lists and tensors that are too short.
fn check_unchecked(operator: &Operator, arguments: &[Value]) -> Result<(), OperatorError> {
    let value = |name: &str| operator.schema().position(name).and_then(|at| arguments.get(at));
    let refuse = |problem: String| Err(OperatorError::Failed { operator: operator.to_string(), message: problem });
    match operator.name().trim_start_matches("aten::") {
        "arange" => match (value("dtype"), value("step")) {
            (Some(Value::Int(0..=4 | 11)), Some(Value::Float(step))) if step.abs() < 1.0 => {
                refuse(format!("a step of {step} is cut to 0"))
            }
            _ => Ok(()),
        },
        "lstm" | "gru" | "rnn_tanh" | "rnn_relu" if operator.overload() == "data" => {
            refuse("packed sequences are not run".into())
        }
        "lstm" | "gru" | "rnn_tanh" | "rnn_relu" => {
            let flag = |name: &str| usize::from(matches!(value(name), Some(Value::Bool(true))));
            let layers = match value("num_layers") {
                Some(Value::Int(layers @ 1..=1024)) => *layers as usize,
                _ => return refuse("num_layers: 1 to 1024 are allowed".into()),
            };
            let wanted = layers * (2 + 2 * flag("has_biases")) * (1 + flag("bidirectional"));
            let axes = |tensor: &Option<Tensor>| tensor.as_ref().map_or(0, Tensor::dim);
            let weights = match value("params") {
                Some(Value::Tensors(list)) => list.iter().map(axes).collect(),
                _ => Vec::new(),
            };
            let states = match value("hx") {
                Some(Value::Tensors(list)) => list.iter().map(axes).collect(),
                Some(Value::Tensor(state)) => vec![state.dim()],
                _ => Vec::new(),
            };
            let states_wanted = if operator.name() == "aten::lstm" { 2 } else { 1 };
            let whole = weights.len() == wanted && weights.iter().all(|axes| matches!(axes, 1 | 2));
            if whole && states.len() == states_wanted && states.iter().all(|axes| *axes == 3) {
                Ok(())
            } else {
                refuse(format!("takes {wanted} weights and {states_wanted} states, [layers, batch, features]"))
            }
        }
        name @ ("reflection_pad1d" | "reflection_pad2d" | "reflection_pad3d" | "replication_pad1d"
        | "replication_pad2d" | "replication_pad3d") => {
            let wanted = if name.ends_with("1d") {
                2
            } else if name.ends_with("2d") {
                4
            } else {
                6
            };
            match value("padding") {
                Some(Value::Ints(padding)) if padding.len() == wanted => Ok(()),
                _ => refuse(format!("padding takes {wanted} numbers")),
            }
        }
        "_weight_norm" => {
            let (Some(Value::Tensor(v)), Some(Value::Tensor(g)), Some(Value::Int(dim))) =
                (value("v"), value("g"), value("dim"))
            else {
                return refuse("takes two tensors and an axis".into());
            };
            let sizes = v.size();
            let size = usize::try_from(*dim).ok().and_then(|dim| sizes.get(dim));
            let wanted = if *dim == -1 { Some(1) } else { size.map(|&size| size as usize) };
            if v.numel() > 0 && wanted == Some(g.numel()) && v.f_kind()? == g.f_kind()? {
                Ok(())
            } else {
                refuse(format!("g of shape {:?} does not scale axis {dim} of v, {sizes:?}", g.size()))
            }
        }
        _ => Ok(()),
    }
}
mod footprint;
