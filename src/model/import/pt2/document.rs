//! The JSON of an exported program: the fields that camlens reads, under their names in the file.
//!
//! Other fields are skipped without being kept, so that a document takes at most about ten times its text in memory.
//! Nesting is bounded by serde_json (128 levels).

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use tch::Device;

use super::tagged::{One, Tagged};
use crate::model::program::{ProgramArgument, ProgramElement};
use crate::torch::Value;

/// The version of a document, which is read first.
#[derive(Debug, Deserialize)]
pub struct Edition {
    pub schema_version: SchemaVersion,
    #[serde(default)]
    pub verifiers: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub struct SchemaVersion {
    pub major: i64,
    #[serde(default)]
    pub minor: i64,
}

#[derive(Debug, Deserialize)]
pub struct Document {
    pub graph_module: GraphModule,
    /// By symbol.
    #[serde(default)]
    pub range_constraints: BTreeMap<String, Range>,
}

/// The bounds of a symbol; `None`: no bound.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub struct Range {
    #[serde(default, deserialize_with = "bound")]
    pub min_val: Option<i64>,
    #[serde(default, deserialize_with = "bound")]
    pub max_val: Option<i64>,
}

/// A number below PyTorch's infinity, which files write in several ways.
fn bound<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    const INFINITE: i64 = 1 << 62;
    let value = serde_json::Value::deserialize(deserializer)?;
    Ok(value.as_i64().filter(|value| value.unsigned_abs() < INFINITE.unsigned_abs()))
}

#[derive(Debug, Deserialize)]
pub struct GraphModule {
    pub graph: GraphJson,
    pub signature: Signature,
    pub module_call_graph: Vec<ModuleCall>,
}

#[derive(Debug, Deserialize)]
pub struct ModuleCall {
    pub fqn: Option<String>,
    pub signature: Option<CallSignature>,
}

#[derive(Debug, Deserialize)]
pub struct CallSignature {
    /// JSON within the JSON.
    pub out_spec: Option<String>,
}

#[derive(Debug, Deserialize)]
pub struct Signature {
    pub input_specs: Vec<One<InputSpec>>,
    pub output_specs: Vec<One<OutputSpec>>,
}

#[derive(Debug, Deserialize)]
pub struct GraphJson {
    pub nodes: Vec<NodeJson>,
    #[serde(default)]
    pub tensor_values: BTreeMap<String, TensorMeta>,
    #[serde(default)]
    pub inputs: Vec<ArgumentJson>,
    #[serde(default)]
    pub outputs: Vec<ArgumentJson>,
}

#[derive(Debug, Deserialize)]
pub struct NodeJson {
    pub target: String,
    /// Absent in files of PyTorch 2.9.
    pub name: Option<String>,
    pub inputs: Vec<InputJson>,
    pub outputs: Vec<One<OutputJson>>,
    #[serde(default)]
    pub metadata: NodeMetadata,
}

#[derive(Debug, Default, Deserialize)]
pub struct NodeMetadata {
    pub nn_module_stack: Option<String>,
}

#[derive(Debug, Deserialize)]
pub struct InputJson {
    /// Empty or absent when the argument is known by its position.
    pub name: Option<String>,
    pub arg: ArgumentJson,
}

/// The metadata of a tensor.
#[derive(Debug, Deserialize)]
pub struct TensorMeta {
    pub dtype: i64,
    pub sizes: Vec<SizeJson>,
}

/// A size: a number, or an expression with the number that it had at export.
#[derive(Debug, Clone, Deserialize)]
pub enum SizeJson {
    #[serde(rename = "as_int")]
    Int(i64),
    #[serde(rename = "as_expr")]
    Expression { expr_str: Option<String>, hint: Option<Hint> },
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Hint {
    pub as_int: Option<i64>,
}

/// `{"name": …}`.
#[derive(Debug, Deserialize)]
pub struct Named {
    pub name: String,
}

#[derive(Debug, Deserialize)]
struct OptionalTensor {
    as_tensor: Option<Named>,
}

#[derive(Debug, Deserialize)]
enum Symbol {
    #[serde(rename = "as_name")]
    Name(String),
    #[serde(rename = "as_int")]
    Int(i64),
    #[serde(rename = "as_float")]
    Float(Number),
    #[serde(rename = "as_bool")]
    Bool(bool),
}

impl From<Symbol> for ProgramElement {
    fn from(symbol: Symbol) -> Self {
        match symbol {
            Symbol::Name(name) => ProgramElement::Use(name),
            Symbol::Int(v) => ProgramElement::Int(v),
            Symbol::Float(Number(v)) => ProgramElement::Float(v),
            Symbol::Bool(v) => ProgramElement::Bool(v),
        }
    }
}

/// A float, which is written as a text when JSON has no number for it.
#[derive(Debug, Clone, Copy)]
struct Number(f64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberVisitor;
        impl Visitor<'_> for NumberVisitor {
            type Value = Number;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a float, \"Infinity\", \"-Infinity\" or \"NaN\"")
            }
            fn visit_f64<E: Error>(self, v: f64) -> Result<Number, E> {
                Ok(Number(v))
            }
            fn visit_i64<E: Error>(self, v: i64) -> Result<Number, E> {
                Ok(Number(v as f64))
            }
            fn visit_u64<E: Error>(self, v: u64) -> Result<Number, E> {
                Ok(Number(v as f64))
            }
            fn visit_str<E: Error>(self, v: &str) -> Result<Number, E> {
                Ok(Number(match v {
                    "Infinity" => f64::INFINITY,
                    "-Infinity" => f64::NEG_INFINITY,
                    "NaN" => f64::NAN,
                    _ => return Err(E::invalid_value(serde::de::Unexpected::Str(v), &self)),
                }))
            }
        }
        deserializer.deserialize_any(NumberVisitor)
    }
}

/// One argument of a node.
#[derive(Debug)]
pub enum ArgumentJson {
    /// A literal, or names of values.
    Raw(ProgramArgument),
    /// A dtype, layout or memory format, by its number in the file.
    ScalarType(i64),
    MemoryFormat(i64),
    Layout(i64),
    /// A graph within the graph.
    Graph(Box<GraphJson>),
    /// A kind that camlens does not know; it matters only where it is used.
    Unknown(String),
}

impl<'de> Deserialize<'de> for ArgumentJson {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(One::<ArgumentJson>::deserialize(deserializer)?.0)
    }
}

impl Tagged for ArgumentJson {
    const WHAT: &'static str = "an argument";

    fn read<'de, A: MapAccess<'de>>(key: &str, map: &mut A) -> Result<Self, A::Error> {
        let use_of =
            |name: Option<Named>| name.map_or(ProgramArgument::Literal(Value::None), |n| ProgramArgument::Use(n.name));
        let raw = match key {
            "as_none" => {
                map.next_value::<IgnoredAny>()?;
                ProgramArgument::Literal(Value::None)
            }
            "as_tensor" => ProgramArgument::Use(map.next_value::<Named>()?.name),
            "as_tensors" => ProgramArgument::List(
                map.next_value::<Vec<Named>>()?.into_iter().map(|tensor| ProgramElement::Use(tensor.name)).collect(),
            ),
            "as_optional_tensor" => use_of(map.next_value::<OptionalTensor>()?.as_tensor),
            "as_optional_tensors" => ProgramArgument::List(
                map.next_value::<Vec<OptionalTensor>>()?
                    .into_iter()
                    .map(|element| {
                        element.as_tensor.map_or(ProgramElement::None, |tensor| ProgramElement::Use(tensor.name))
                    })
                    .collect(),
            ),
            "as_int" => ProgramArgument::Literal(Value::Int(map.next_value()?)),
            "as_ints" => ProgramArgument::Literal(Value::Ints(map.next_value()?)),
            "as_float" => ProgramArgument::Literal(Value::Float(map.next_value::<Number>()?.0)),
            "as_floats" => ProgramArgument::Literal(Value::Floats(
                map.next_value::<Vec<Number>>()?.into_iter().map(|number| number.0).collect(),
            )),
            "as_bool" => ProgramArgument::Literal(Value::Bool(map.next_value()?)),
            "as_bools" => ProgramArgument::Literal(Value::Bools(map.next_value()?)),
            "as_string" => ProgramArgument::Literal(Value::String(map.next_value()?)),
            "as_sym_int" | "as_sym_float" | "as_sym_bool" => match map.next_value::<Symbol>()? {
                Symbol::Name(name) => ProgramArgument::Use(name),
                Symbol::Int(v) => ProgramArgument::Literal(Value::Int(v)),
                Symbol::Float(Number(v)) => ProgramArgument::Literal(Value::Float(v)),
                Symbol::Bool(v) => ProgramArgument::Literal(Value::Bool(v)),
            },
            "as_sym_ints" | "as_sym_floats" | "as_sym_bools" => {
                ProgramArgument::List(map.next_value::<Vec<Symbol>>()?.into_iter().map(ProgramElement::from).collect())
            }
            // The plan chooses the device, never the file.
            "as_device" => {
                map.next_value::<IgnoredAny>()?;
                ProgramArgument::Literal(Value::Device(Device::Cpu))
            }
            "as_scalar_type" => return Ok(ArgumentJson::ScalarType(map.next_value()?)),
            "as_memory_format" => return Ok(ArgumentJson::MemoryFormat(map.next_value()?)),
            "as_layout" => return Ok(ArgumentJson::Layout(map.next_value()?)),
            "as_graph" => {
                #[derive(Deserialize)]
                struct Inner {
                    graph: GraphJson,
                }
                return Ok(ArgumentJson::Graph(Box::new(map.next_value::<Inner>()?.graph)));
            }
            other => {
                map.next_value::<IgnoredAny>()?;
                return Ok(ArgumentJson::Unknown(other.to_owned()));
            }
        };
        Ok(ArgumentJson::Raw(raw))
    }
}

/// An output of a node.
#[derive(Debug)]
pub enum OutputJson {
    /// Flat; an element without a name is absent.
    Names(Vec<Option<String>>),
    Unknown(String),
}

impl Tagged for OutputJson {
    const WHAT: &'static str = "an output";

    fn read<'de, A: MapAccess<'de>>(key: &str, map: &mut A) -> Result<Self, A::Error> {
        #[derive(Deserialize)]
        struct SymbolName {
            as_name: String,
        }
        Ok(OutputJson::Names(match key {
            "as_tensor" => vec![Some(map.next_value::<Named>()?.name)],
            "as_tensors" => map.next_value::<Vec<Named>>()?.into_iter().map(|tensor| Some(tensor.name)).collect(),
            "as_sym_int" | "as_sym_float" | "as_sym_bool" => vec![Some(map.next_value::<SymbolName>()?.as_name)],
            "as_none" => {
                map.next_value::<IgnoredAny>()?;
                vec![None]
            }
            "as_optional_tensor" => vec![map.next_value::<OptionalTensor>()?.as_tensor.map(|tensor| tensor.name)],
            other => {
                map.next_value::<IgnoredAny>()?;
                return Ok(OutputJson::Unknown(other.to_owned()));
            }
        }))
    }
}

/// The meaning of a placeholder of the graph.
#[derive(Debug)]
pub enum InputSpec {
    Parameter {
        placeholder: String,
        name: String,
    },
    Buffer {
        placeholder: String,
        name: String,
        persistent: bool,
    },
    TensorConstant {
        placeholder: String,
        name: String,
    },
    /// The user's tensor; none for what is no tensor.
    User(Option<String>),
    /// A number or a text that was fixed at export.
    ConstantInput,
    Unknown(String),
}

impl Tagged for InputSpec {
    const WHAT: &'static str = "an input";

    fn read<'de, A: MapAccess<'de>>(key: &str, map: &mut A) -> Result<Self, A::Error> {
        #[derive(Deserialize)]
        struct Parameter {
            arg: Named,
            parameter_name: String,
        }
        #[derive(Deserialize)]
        struct Buffer {
            arg: Named,
            buffer_name: String,
            // Buffers that are no part of a state_dict are kept with the constants.
            #[serde(default = "yes")]
            persistent: bool,
        }
        #[derive(Deserialize)]
        struct TensorConstant {
            arg: Named,
            tensor_constant_name: String,
        }
        Ok(match key {
            "parameter" => {
                let Parameter { arg, parameter_name } = map.next_value()?;
                InputSpec::Parameter { placeholder: arg.name, name: parameter_name }
            }
            "buffer" => {
                let Buffer { arg, buffer_name, persistent } = map.next_value()?;
                InputSpec::Buffer { placeholder: arg.name, name: buffer_name, persistent }
            }
            "tensor_constant" => {
                let TensorConstant { arg, tensor_constant_name } = map.next_value()?;
                InputSpec::TensorConstant { placeholder: arg.name, name: tensor_constant_name }
            }
            "user_input" => InputSpec::User(map.next_value::<UserValue>()?.arg.0.0),
            "constant_input" => {
                map.next_value::<IgnoredAny>()?;
                InputSpec::ConstantInput
            }
            other => {
                map.next_value::<IgnoredAny>()?;
                InputSpec::Unknown(other.to_owned())
            }
        })
    }
}

fn yes() -> bool {
    true
}

/// The meaning of an output of the graph.
#[derive(Debug)]
pub enum OutputSpec {
    /// A value of the result; no name for what is no tensor.
    User(Option<String>),
    /// A buffer or an input that was written.
    Mutation,
    Unknown(String),
}

impl Tagged for OutputSpec {
    const WHAT: &'static str = "an output";

    fn read<'de, A: MapAccess<'de>>(key: &str, map: &mut A) -> Result<Self, A::Error> {
        Ok(match key {
            "user_output" => OutputSpec::User(map.next_value::<UserValue>()?.arg.0.0),
            "buffer_mutation" | "user_input_mutation" | "token" => {
                map.next_value::<IgnoredAny>()?;
                OutputSpec::Mutation
            }
            other => {
                map.next_value::<IgnoredAny>()?;
                OutputSpec::Unknown(other.to_owned())
            }
        })
    }
}

#[derive(Debug, Deserialize)]
struct UserValue {
    arg: One<TensorName>,
}

/// The name, when it is a tensor's.
#[derive(Debug)]
struct TensorName(Option<String>);

impl Tagged for TensorName {
    const WHAT: &'static str = "a value";

    fn read<'de, A: MapAccess<'de>>(key: &str, map: &mut A) -> Result<Self, A::Error> {
        if key == "as_tensor" {
            Ok(TensorName(Some(map.next_value::<Named>()?.name)))
        } else {
            map.next_value::<IgnoredAny>()?;
            Ok(TensorName(None))
        }
    }
}
