//! Checks every operator call of the runs that loading a model makes.
//!
//! A model file is untrusted, and ATen's operators validate their arguments too little: they allocate any size, cast
//! integers to dtypes without a range check, and end the process when an integer division overflows.
//!
//! [`Guard::before`] checks a call before ATen runs it: its integer arguments, arguments that are known to crash ATen,
//! and an upper bound on the size of its results ([`footprint`]). [`Guard::after`] checks that the results are dense
//! CPU tensors, and charges their true size. All values of one run together may take [`LoadLimits::max_value_bytes`].
//! Neither an operator's scratch memory nor its running time is bounded.
//!
//! [`LoadLimits::max_value_bytes`]: crate::model::LoadLimits::max_value_bytes

mod footprint;

use tch::{Device, Kind, Tensor};

use crate::torch::{ArgumentType, Operator, OperatorError, Value};

/// The largest absolute value of an integer argument: a size, an axis, a stride or a step. `i64::MAX` is allowed, too:
/// slices use it for "to the end".
const MAX_MAGNITUDE: i64 = 1 << 31;
/// The largest value of ATen's `MemoryFormat` (`ChannelsLast3d`).
const MAX_MEMORY_FORMAT: i64 = 3;

/// Checks the calls of one run, and keeps its budget of memory.
#[derive(Debug, Clone)]
pub struct Guard {
    /// What the results charged so far leave of `limit`.
    bytes_left: f64,
    /// The bytes that all values of the run may take together.
    limit: u64,
}

impl Guard {
    pub fn new(max_value_bytes: u64) -> Self {
        Guard { bytes_left: max_value_bytes as f64, limit: max_value_bytes }
    }

    /// Checks a call before it is made. `arguments` are in the order of the operator's schema.
    ///
    /// # Errors
    /// An argument that is out of range or known to crash ATen; results that may not fit into the bytes left.
    pub fn before(&self, operator: &Operator, arguments: &[Value]) -> Result<(), OperatorError> {
        for (argument, value) in operator.schema().arguments.iter().zip(arguments) {
            check_integers(&argument.name, argument.kind, value).map_err(|problem| OperatorError::Argument {
                operator: operator.to_string(),
                argument: argument.name.clone(),
                problem,
            })?;
        }
        check_division(operator, arguments)?;
        check_what_aten_skips(operator, arguments)?;
        let elements = footprint::elements(operator, arguments);
        // The results are assumed to be as wide as the widest argument, and at least as wide as float32.
        let widest = arguments.iter().filter_map(Value::tensor).map(element_bytes).fold(4, usize::max);
        let bytes = elements * widest as f64;
        // A bound that is NaN proves nothing, so the call is refused.
        if bytes <= self.bytes_left { Ok(()) } else { Err(self.too_large(&operator.to_string(), bytes)) }
    }

    /// Checks that the results of a call are dense CPU tensors, and charges their bytes. `names` is the number of
    /// results to which the model file gives a name.
    ///
    /// # Errors
    /// Fewer results than names, a result that is not dense or not on the CPU, more bytes than are left.
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
            let bytes = tensor.numel() as f64 * element_bytes(tensor) as f64;
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

/// Bytes per element; of a dtype that tch does not know, those of the widest one, complex128.
fn element_bytes(tensor: &Tensor) -> usize {
    tensor.f_kind().map_or(16, Kind::elt_size_in_bytes)
}

/// Checks an integer argument, or each integer of a list, by the argument's name.
fn check_integers(name: &str, kind: ArgumentType, value: &Value) -> Result<(), String> {
    let check = |v: i64| match name {
        "dtype" | "out_dtype" if !super::dtype::is_scalar_type(v) => Err(format!("there is no dtype {v}")),
        "layout" if v != 0 => Err(format!("layout {v}: only dense tensors are run")),
        "memory_format" if !(0..=MAX_MEMORY_FORMAT).contains(&v) => Err(format!("there is no memory format {v}")),
        _ if v != i64::MAX && v.checked_abs().is_none_or(|v| v > MAX_MAGNITUDE) => {
            Err(format!("{v}: up to {MAX_MAGNITUDE} is allowed"))
        }
        _ => Ok(()),
    };
    match (kind, value) {
        (ArgumentType::Int, Value::Int(v)) => check(*v),
        (ArgumentType::Ints, Value::Ints(list)) => list.iter().try_for_each(|&v| check(v)),
        _ => Ok(()),
    }
}

/// Refuses integer divisions by −1: the smallest integer divided by −1 traps on x86-64. `gcd` and `lcm` divide inside,
/// and C++ does not define a shift by −1.
fn check_division(operator: &Operator, arguments: &[Value]) -> Result<(), OperatorError> {
    let name = operator.name().trim_start_matches("aten::").trim_end_matches('_');
    if !matches!(name, "floor_divide" | "div" | "divide" | "remainder" | "fmod" | "__rshift__" | "gcd" | "lcm") {
        return Ok(());
    }
    let has_integers = |tensor: &Tensor| {
        matches!(tensor.f_kind(), Ok(Kind::Int8 | Kind::Int16 | Kind::Int | Kind::Int64)) && tensor.numel() > 0
    };
    let minus_one = match (arguments.first(), arguments.get(1)) {
        (Some(Value::Tensor(dividend)), Some(Value::Int(divisor))) => has_integers(dividend) && *divisor == -1,
        (Some(_), Some(Value::Tensor(divisor))) if has_integers(divisor) => {
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

/// Makes the checks that libtorch 2.11 lacks. Without them `arange` divides by a step that it has truncated to 0, and
/// the recurrent, padding and weight-norm operators read past the end of lists and tensors that are too short.
fn check_what_aten_skips(operator: &Operator, arguments: &[Value]) -> Result<(), OperatorError> {
    let value = |name: &str| operator.schema().position(name).and_then(|at| arguments.get(at));
    let refuse = |problem: String| Err(OperatorError::Failed { operator: operator.to_string(), message: problem });
    match operator.name().trim_start_matches("aten::") {
        // The dtypes 0 to 4 are those of integers, 11 is bool.
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
            // Each layer and direction has a weight for its input and one for its state, and with biases one bias each.
            let wanted = layers * (2 + 2 * flag("has_biases")) * (1 + flag("bidirectional"));
            let rank = |tensor: &Option<Tensor>| tensor.as_ref().map_or(0, Tensor::dim);
            let weight_ranks = match value("params") {
                Some(Value::Tensors(list)) => list.iter().map(rank).collect(),
                _ => Vec::new(),
            };
            let state_ranks = match value("hx") {
                Some(Value::Tensors(list)) => list.iter().map(rank).collect(),
                Some(Value::Tensor(state)) => vec![state.dim()],
                _ => Vec::new(),
            };
            let states_wanted = if operator.name() == "aten::lstm" { 2 } else { 1 };
            let weights_fit = weight_ranks.len() == wanted && weight_ranks.iter().all(|rank| matches!(rank, 1 | 2));
            let states_fit = state_ranks.len() == states_wanted && state_ranks.iter().all(|rank| *rank == 3);
            if weights_fit && states_fit {
                Ok(())
            } else {
                refuse(format!("takes {wanted} weights and {states_wanted} states, [layers, batch, features]"))
            }
        }
        name @ ("reflection_pad1d" | "reflection_pad2d" | "reflection_pad3d" | "replication_pad1d"
        | "replication_pad2d" | "replication_pad3d") => {
            // Two numbers, before and after, for each axis that is padded.
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
            // `g` holds one norm for each index of axis `dim` of `v`; for `dim` −1, one norm for all of `v`.
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
