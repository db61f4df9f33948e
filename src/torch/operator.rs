//! Operators of ATen's dispatcher, found by name and called with boxed values.

use std::ffi::{CStr, CString};
use std::fmt;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use tch::Tensor;

use super::error::{OperatorError, checked, error_of, take_text};
use super::padding_guard::with_written_padding;
use super::schema::{Alias, Argument, ArgumentType, Schema};
use super::stack::Stack;
use super::{Value, ffi};

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
// be called from any thread. The schema is only read, and `read_schema` keeps no tensor in it.
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

    /// Calls the operator without recording a gradient. `arguments` has one value per argument of the schema, in its
    /// order. A number is converted to the argument's own kind if that is exact.
    pub fn call(&self, arguments: &[Value]) -> Result<Vec<Value>, OperatorError> {
        self.run(arguments, false)
    }

    /// As [`Operator::call`], recording what autograd needs; to be used inside [`super::Tape::record`].
    pub fn call_recording(&self, arguments: &[Value]) -> Result<Vec<Value>, OperatorError> {
        self.run(arguments, true)
    }

    /// As [`Operator::call`], for an operator that returns one tensor.
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
        let guarded = with_written_padding(self.name(), arguments, record)?;
        let arguments = guarded.as_deref().unwrap_or(arguments);
        let stack = self.stack_of(arguments)?;
        let mut error = ptr::null_mut();
        // SAFETY: handle and stack are live, and the stack holds one value per argument.
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

    /// The arguments, each converted to its kind in the schema.
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

    /// For the bridge's functions; valid while `self` lives.
    pub(super) fn handle(&self) -> *const ffi::OperatorHandle {
        self.0.handle.as_ptr()
    }
}

impl Entry {
    fn read_schema(&self) -> Result<Schema, OperatorError> {
        let handle = self.handle.as_ptr();
        let mut arguments = Vec::new();
        // SAFETY: the handle is live, indices are below the counts, texts are NUL-terminated, and `take_text` frees the
        // text that the caller owns.
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
                // Tensors must not be shared between threads; no operator of ATen has one as a default.
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
    fn lists_optional_lists_and_numbers_are_passed() {
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
    fn a_list_of_optional_numbers_is_passed() {
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
    fn several_results_are_returned_in_order() {
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
    fn a_schema_has_what_is_written_and_what_may_be_a_view() {
        let relu_ = Operator::find("aten::relu_", "").unwrap();
        assert_eq!(relu_.schema().written().unwrap().name, "self");
        let view = Operator::find("aten::view", "").unwrap();
        assert_eq!(view.schema().returns, [Alias::Shared]);
    }
}
