//! Operators of ATen's dispatcher, found by name and called with boxed values.

use std::ffi::{CStr, CString, c_char, c_int};
use std::fmt;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use tch::Tensor;

use super::convolution::with_written_padding;
use super::stack::Stack;
use super::{Value, ffi};

/// Why an operator could not be found or run.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OperatorError {
    #[error("operator {operator} is not in this libtorch")]
    Unknown { operator: String },
    #[error("operator {operator}: argument {argument}: {problem}")]
    Argument { operator: String, argument: String, problem: String },
    #[error("operator {operator}: {message}")]
    Failed { operator: String, message: String },
    #[error("operator {operator}: out of memory: {message}")]
    OutOfMemory { operator: String, message: String },
    #[error("operator {operator} gave a value of a kind that camlens does not carry")]
    Unsupported { operator: String },
}

impl From<tch::TchError> for OperatorError {
    /// An error of one of tch's own `f_…` functions.
    fn from(error: tch::TchError) -> Self {
        let message = error.to_string();
        let first = message.lines().next().unwrap_or_default().to_owned();
        if message.contains("can't allocate memory") || message.contains("out of memory") {
            OperatorError::OutOfMemory { operator: "tch".into(), message: first }
        } else {
            OperatorError::Failed { operator: "tch".into(), message: first }
        }
    }
}

/// What an argument's type is, as far as passing a value needs to know. `optional` types take [`Value::None`] too.
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
    /// A list of numbers, elements of which may be absent.
    OptionalScalars,
    String,
    Device,
    /// A type that no exported vision model passes (a generator, a dimension name, a class).
    Other,
}

impl ArgumentType {
    /// From ATen's own notation, without the `?` of an optional: `Tensor`, `int[]`, `Tensor?[]`, …
    fn parse(text: &str) -> Self {
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
    /// New memory, or only read.
    None,
    /// May be a view.
    Shared,
    /// Is written.
    Written,
}

impl Alias {
    fn from_code(code: c_int) -> Self {
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
    /// The value when the caller gives none.
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

    /// The argument that is written, when the operator works in place.
    pub fn written(&self) -> Option<&Argument> {
        self.arguments.iter().find(|a| a.alias == Alias::Written)
    }
}

/// An operator of ATen's dispatcher. Cloning it is cheap.
#[derive(Clone)]
pub struct Operator(Arc<Entry>);

struct Entry {
    /// `aten::relu`.
    name: String,
    /// `default` is written as the empty string, as in ATen.
    overload: String,
    schema: Schema,
    handle: NonNull<ffi::OperatorHandle>,
}

// SAFETY: the handle points to an immutable entry of the dispatcher's table, which lives as long as the process and may
// be called from any thread; the schema is only read, and `read_schema` keeps no tensor in it.
unsafe impl Send for Entry {}
// SAFETY: as above.
unsafe impl Sync for Entry {}

impl fmt::Debug for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_string())
    }
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let overload = if self.0.overload.is_empty() { "default" } else { &self.0.overload };
        write!(f, "{}.{overload}", self.0.name.replace("::", "."))
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // SAFETY: the handle came from `camlens_operator_find` and is freed once.
        unsafe { ffi::camlens_operator_free(self.handle.as_ptr()) }
    }
}

impl Operator {
    /// Finds an operator: `find("aten::add", "Tensor")`. The overload `default` is the empty string.
    pub fn find(name: &str, overload: &str) -> Result<Self, OperatorError> {
        let shown = format!("{}.{}", name.replace("::", "."), if overload.is_empty() { "default" } else { overload });
        let unknown = || OperatorError::Unknown { operator: shown.clone() };
        let c_name = CString::new(name).map_err(|_| unknown())?;
        let c_overload = CString::new(overload).map_err(|_| unknown())?;
        let mut found = ptr::null_mut();
        // SAFETY: both texts are NUL-terminated and outlive the call.
        checked(&shown, |error| unsafe {
            ffi::camlens_operator_find(c_name.as_ptr(), c_overload.as_ptr(), &raw mut found, error)
        })?;
        let handle = NonNull::new(found).ok_or_else(unknown)?;
        let mut entry = Entry {
            name: name.to_owned(),
            overload: overload.to_owned(),
            schema: Schema { arguments: Vec::new(), returns: Vec::new() },
            handle,
        };
        entry.schema = entry.read_schema()?;
        Ok(Operator(Arc::new(entry)))
    }

    /// The name with its namespace, `aten::relu`.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The overload; empty for `default`.
    pub fn overload(&self) -> &str {
        &self.0.overload
    }

    pub fn schema(&self) -> &Schema {
        &self.0.schema
    }

    /// Calls the operator without recording a gradient. `arguments` are by position, one for each of the schema's; a
    /// number is converted to the argument's own kind where that loses nothing.
    pub fn call(&self, arguments: &[Value]) -> Result<Vec<Value>, OperatorError> {
        self.run(arguments, false)
    }

    /// As [`Operator::call`], recording what autograd needs; for use inside [`super::Tape::record`].
    pub fn call_recording(&self, arguments: &[Value]) -> Result<Vec<Value>, OperatorError> {
        self.run(arguments, true)
    }

    /// As [`Operator::call`], for the usual operator that returns one tensor.
    pub fn call_tensor(&self, arguments: &[Value]) -> Result<Tensor, OperatorError> {
        match self.call(arguments)?.into_iter().next() {
            Some(Value::Tensor(tensor)) => Ok(tensor),
            _ => Err(OperatorError::Unsupported { operator: self.to_string() }),
        }
    }

    /// Puts named arguments in the schema's order and fills in its defaults.
    pub fn arrange(&self, named: Vec<(String, Value)>) -> Result<Vec<Value>, OperatorError> {
        let mut slots: Vec<Option<Value>> = self.0.schema.arguments.iter().map(|a| a.default.clone()).collect();
        for (name, value) in named {
            let position = self.0.schema.position(&name).ok_or_else(|| OperatorError::Argument {
                operator: self.to_string(),
                argument: name.clone(),
                problem: "the operator has no such argument".into(),
            })?;
            slots[position] = Some(value);
        }
        slots
            .into_iter()
            .zip(&self.0.schema.arguments)
            .map(|(slot, argument)| {
                slot.ok_or_else(|| OperatorError::Argument {
                    operator: self.to_string(),
                    argument: argument.name.clone(),
                    problem: "is missing and has no default".into(),
                })
            })
            .collect()
    }

    fn run(&self, arguments: &[Value], record: bool) -> Result<Vec<Value>, OperatorError> {
        let shown = || self.to_string();
        self.check_count(arguments)?;
        let guarded = with_written_padding(self, arguments, record)?;
        let arguments = guarded.as_deref().unwrap_or(arguments);
        let stack = self.stack_of(arguments)?;
        let mut error = ptr::null_mut();
        // SAFETY: handle and stack are alive and owned by us; the stack holds one value an argument.
        let status =
            unsafe { ffi::camlens_operator_call(self.0.handle.as_ptr(), stack.as_ptr(), record, &raw mut error) };
        if status != ffi::OK {
            return Err(error_of(&shown(), status, error));
        }
        (0..stack.len()).map(|i| stack.get(i).ok_or_else(|| OperatorError::Unsupported { operator: shown() })).collect()
    }

    fn check_count(&self, arguments: &[Value]) -> Result<(), OperatorError> {
        let (takes, got) = (self.0.schema.arguments.len(), arguments.len());
        if takes == got {
            return Ok(());
        }
        let message = format!("takes {takes} arguments, got {got}");
        Err(OperatorError::Failed { operator: self.to_string(), message })
    }

    /// The arguments, each as the kind that the schema wants.
    pub(super) fn stack_of(&self, arguments: &[Value]) -> Result<Stack, OperatorError> {
        self.check_count(arguments)?;
        let stack = Stack::new();
        for (value, argument) in arguments.iter().zip(&self.0.schema.arguments) {
            stack.push(value, argument).map_err(|problem| OperatorError::Argument {
                operator: self.to_string(),
                argument: argument.name.clone(),
                problem,
            })?;
        }
        Ok(stack)
    }

    /// For the bridge's functions; alive as long as `self`.
    pub(super) fn handle(&self) -> *const ffi::OperatorHandle {
        self.0.handle.as_ptr()
    }
}

impl Entry {
    fn read_schema(&self) -> Result<Schema, OperatorError> {
        let handle = self.handle.as_ptr();
        let mut arguments = Vec::new();
        // SAFETY: the handle is alive; indices stay below the counts; texts are NUL-terminated, and those that are ours
        // to free are freed by `take_text`.
        unsafe {
            for i in 0..ffi::camlens_operator_argument_count(handle) {
                let name =
                    CStr::from_ptr(ffi::camlens_operator_argument_name(handle, i)).to_string_lossy().into_owned();
                let text = take_text(ffi::camlens_operator_argument_type(handle, i));
                let (kind, optional) = match text.strip_suffix('?') {
                    Some(inner) => (inner, true),
                    None => (text.as_str(), false),
                };
                let alias = Alias::from_code(ffi::camlens_operator_argument_alias(handle, i));
                let stack = Stack::new();
                let mut has = false;
                checked(&self.name, |error| {
                    ffi::camlens_operator_push_default(handle, i, stack.as_ptr(), &raw mut has, error)
                })?;
                let default = if has { stack.get(0) } else { None };
                // A tensor is not to be shared between threads; no operator of ATen has one as a default.
                let default = default.filter(|value| !matches!(value, Value::Tensor(_) | Value::Tensors(_)));
                arguments.push(Argument { name, kind: ArgumentType::parse(kind), optional, alias, default });
            }
            let returns = (0..ffi::camlens_operator_return_count(handle))
                .map(|i| Alias::from_code(ffi::camlens_operator_return_alias(handle, i)))
                .collect();
            Ok(Schema { arguments, returns })
        }
    }
}

/// Takes ownership of a text that the bridge allocated.
///
/// # Safety
/// `text` is null or a NUL-terminated text from the bridge that nobody else frees.
pub(super) unsafe fn take_text(text: *mut c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: by the contract above.
    unsafe {
        let copy = CStr::from_ptr(text).to_string_lossy().into_owned();
        ffi::camlens_text_free(text);
        copy
    }
}

/// The typed error for a bridge function's status and text.
pub(super) fn error_of(operator: &str, status: c_int, text: *mut c_char) -> OperatorError {
    // SAFETY: a failing bridge function sets `text` to one that is ours to free.
    let full = unsafe { take_text(text) };
    let message = full.lines().next().unwrap_or_default().trim().to_owned();
    let operator = operator.to_owned();
    if status == ffi::OUT_OF_MEMORY {
        OperatorError::OutOfMemory { operator, message }
    } else {
        OperatorError::Failed { operator, message }
    }
}

fn checked(operator: &str, call: impl FnOnce(*mut *mut c_char) -> c_int) -> Result<(), OperatorError> {
    let mut error = ptr::null_mut();
    match call(&raw mut error) {
        ffi::OK => Ok(()),
        status => Err(error_of(operator, status, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn an_operator_is_found_by_name_and_overload() {
        let add = Operator::find("aten::add", "Tensor").unwrap();
        assert_eq!(add.to_string(), "aten.add.Tensor");
        let names: Vec<_> = add.schema().arguments.iter().map(|a| a.name.as_str()).collect();
        assert_eq!(names, ["self", "other", "alpha"]);
        assert!(matches!(add.schema().arguments[2].default, Some(Value::Int(1))));
    }

    #[test]
    fn an_unknown_operator_is_named_in_the_error() {
        let error = Operator::find("aten::no_such_thing", "").unwrap_err();
        assert_eq!(error.to_string(), "operator aten.no_such_thing.default is not in this libtorch");
    }

    #[test]
    fn a_call_gives_the_operators_result() {
        let relu = Operator::find("aten::relu", "").unwrap();
        let x = Tensor::from_slice(&[-1.0f32, 2.0]);
        let y = relu.call_tensor(&[Value::Tensor(x)]).unwrap();
        assert_eq!(Vec::<f32>::try_from(y).unwrap(), [0.0, 2.0]);
    }

    #[test]
    fn an_exception_in_the_operator_becomes_an_error() {
        let mm = Operator::find("aten::mm", "").unwrap();
        let x = Tensor::zeros([2, 3], (Kind::Float, Device::Cpu));
        let error = mm.call(&[Value::Tensor(x.shallow_clone()), Value::Tensor(x)]).unwrap_err();
        assert!(error.to_string().contains("cannot be multiplied"), "{error}");
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_refused_by_name() {
        let relu = Operator::find("aten::relu", "").unwrap();
        let error = relu.call(&[Value::String("x".into())]).unwrap_err();
        assert_eq!(error.to_string(), "operator aten.relu.default: argument self: takes Tensor, got a string");
    }

    #[test]
    fn a_number_in_place_of_a_tensor_does_not_widen_the_result() {
        let mul = Operator::find("aten::mul", "Tensor").unwrap();
        let x = Tensor::from_slice(&[1.5f32]).to_kind(Kind::Half);
        let y = mul.call_tensor(&[Value::Tensor(x), Value::Float(2.0)]).unwrap();
        assert_eq!(y.kind(), Kind::Half);
        assert_eq!(y.double_value(&[0]), 3.0);
    }

    #[test]
    fn lists_optional_lists_and_numbers_are_carried() {
        let cat = Operator::find("aten::cat", "").unwrap();
        let x = Tensor::from_slice(&[1i64, 2, 3]);
        let list = Value::Tensors(vec![Some(x.shallow_clone()), Some(x.shallow_clone())]);
        let y = cat.call_tensor(&[list, Value::Int(0)]).unwrap();
        assert_eq!(y.size(), [6]);
        let index = Operator::find("aten::index", "Tensor").unwrap();
        let picked = index
            .call_tensor(&[
                Value::Tensor(y.view([2, 3])),
                Value::Tensors(vec![None, Some(Tensor::from_slice(&[2i64]))]),
            ])
            .unwrap();
        assert_eq!(Vec::<i64>::try_from(picked.view(-1)).unwrap(), [3, 3]);
        let pad = Operator::find("aten::constant_pad_nd", "").unwrap();
        let padded = pad.call_tensor(&[Value::Tensor(x), Value::Ints(vec![1, 0]), Value::Int(9)]).unwrap();
        assert_eq!(Vec::<i64>::try_from(padded).unwrap(), [9, 1, 2, 3]);
    }

    #[test]
    fn a_list_of_optional_numbers_is_carried() {
        let convolution = Operator::find("mkldnn::_convolution_pointwise", "").unwrap();
        let x = Tensor::from_slice(&[-5.0f32, 3.0, 30.0]).view([1, 1, 1, 3]);
        let w = Tensor::from_slice(&[1.0f32]).view([1, 1, 1, 1]);
        let one = || Value::Ints(vec![1, 1]);
        let clamped = convolution
            .call_tensor(&[
                Value::Tensor(x),
                Value::Tensor(w),
                Value::None,
                Value::Ints(vec![0, 0]),
                one(),
                one(),
                Value::Int(1),
                Value::String("hardtanh".into()),
                Value::Floats(vec![0.0, 6.0]),
                Value::None,
            ])
            .unwrap();
        assert_eq!(Vec::<f32>::try_from(clamped.view(-1)).unwrap(), [0.0, 3.0, 6.0]);
    }

    #[test]
    fn several_results_come_back_in_order() {
        let topk = Operator::find("aten::topk", "").unwrap();
        let x = Tensor::from_slice(&[1.0f32, 5.0, 3.0]);
        let out = topk
            .call(&topk.arrange(vec![("self".into(), Value::Tensor(x)), ("k".into(), Value::Int(2))]).unwrap())
            .unwrap();
        assert_eq!(Vec::<i64>::try_from(out[1].tensor().unwrap()).unwrap(), [1, 2]);
        let chunk = Operator::find("aten::chunk", "").unwrap();
        let x = Tensor::zeros([4, 2], (Kind::Float, Device::Cpu));
        let out = chunk.call(&[Value::Tensor(x), Value::Int(2), Value::Int(0)]).unwrap();
        assert!(matches!(&out[0], Value::Tensors(parts) if parts.len() == 2));
    }

    #[test]
    fn a_schema_tells_what_is_written_and_what_may_be_a_view() {
        let relu_ = Operator::find("aten::relu_", "").unwrap();
        assert_eq!(relu_.schema().written().unwrap().name, "self");
        let view = Operator::find("aten::view", "").unwrap();
        assert_eq!(view.schema().returns, [Alias::Shared]);
    }
}
