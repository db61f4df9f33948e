//! The inputs, constants and outputs of a program.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::document::{InputSpec, ModuleCall, OutputSpec, Range, Signature, TensorMeta};
use super::names::{Definitions, MAX_NAME_BYTES, check_name};
use super::sizes;
use super::tagged::One;
use super::weights::Constant;
use crate::model::program::ProgramInput;
use crate::model::{ModelError, dtype};

/// Most outputs of a program.
const MAX_OUTPUTS: usize = 1024;

const ONE_IMAGE: &str = "export a wrapper whose forward takes the image alone";

/// Reads the constants and the user's inputs, and defines their names.
pub fn inputs(
    signature: &Signature,
    metas: &BTreeMap<String, TensorMeta>,
    ranges: &BTreeMap<String, Range>,
    definitions: &mut Definitions,
) -> Result<(BTreeMap<String, Constant>, Vec<ProgramInput>), ModelError> {
    let mut constants = BTreeMap::new();
    let mut inputs = Vec::new();
    for One(spec) in &signature.input_specs {
        let (placeholder, constant) = match spec {
            InputSpec::Parameter { placeholder, name } => (placeholder, Constant::Weight(name.clone())),
            InputSpec::Buffer { placeholder, name, persistent: true } => (placeholder, Constant::Weight(name.clone())),
            InputSpec::Buffer { placeholder, name, persistent: false }
            | InputSpec::TensorConstant { placeholder, name } => (placeholder, Constant::Constant(name.clone())),
            InputSpec::User(Some(name)) => {
                let input = user_input(name, metas, ranges)?;
                check_name(name)?;
                definitions.define(name, "the signature")?;
                inputs.push(input);
                continue;
            }
            InputSpec::User(None) => {
                return Err(ModelError::refused("the model takes an input that is no tensor", ONE_IMAGE));
            }
            InputSpec::ConstantInput => continue,
            InputSpec::Unknown(kind) => {
                return Err(ModelError::refused(format!("the model takes an input of kind {kind}"), ONE_IMAGE));
            }
        };
        check_name(placeholder)?;
        definitions.define(placeholder, "the signature")?;
        constants.insert(placeholder.clone(), constant);
    }
    Ok((constants, inputs))
}

fn user_input(
    name: &str,
    metas: &BTreeMap<String, TensorMeta>,
    ranges: &BTreeMap<String, Range>,
) -> Result<ProgramInput, ModelError> {
    let meta = metas.get(name).ok_or_else(|| ModelError::malformed("graph", format!("no shape for input {name}")))?;
    let shape = sizes::dimensions(name, &meta.sizes, ranges)?;
    Ok(ProgramInput { name: name.to_owned(), kind: dtype::kind(meta.dtype)?, shape, channels_last: false })
}

/// The outputs in order, with their names in the model's result.
pub fn outputs(signature: &Signature, calls: &[ModuleCall]) -> Result<Vec<(String, Option<String>)>, ModelError> {
    let mut values = Vec::new();
    for One(spec) in &signature.output_specs {
        match spec {
            OutputSpec::User(name) => values.push(name.clone()),
            OutputSpec::Mutation => {}
            OutputSpec::Unknown(kind) => {
                return Err(ModelError::refused(
                    format!("the model has an output of kind {kind}"),
                    "export it without it",
                ));
            }
        }
    }
    if values.len() > MAX_OUTPUTS {
        return Err(ModelError::refused(
            format!("the model has {} outputs, and {MAX_OUTPUTS} are allowed", values.len()),
            "export a wrapper whose forward returns the logits alone",
        ));
    }
    let spec = calls
        .iter()
        .find(|call| call.fqn.as_deref() == Some(""))
        .and_then(|root| root.signature.as_ref()?.out_spec.as_deref())
        .and_then(|text| serde_json::from_str::<Json>(text).ok());
    let names = spec.as_ref().and_then(|spec| {
        let mut leaves = Leaves { at: Vec::new(), names: Vec::new(), wanted: values.len() };
        leaves.collect(spec.get(1)?)?;
        (leaves.names.len() == values.len()).then_some(leaves.names)
    });
    let names = names.unwrap_or_else(|| (0..values.len()).map(|i| i.to_string()).collect());
    Ok(names
        .into_iter()
        .zip(values)
        .map(|(name, value)| (if name.is_empty() { "0".into() } else { name }, value))
        .collect())
}

/// The paths of a result's leaves: keys of dictionaries, positions in lists and tuples.
struct Leaves {
    at: Vec<String>,
    names: Vec<String>,
    wanted: usize,
}

impl Leaves {
    /// None when the tree has more leaves than the program has outputs, or names that are too long: it is not the
    /// result's.
    fn collect(&mut self, tree: &Json) -> Option<()> {
        let Some(kind) = tree.get("type").and_then(Json::as_str) else {
            let length: usize = self.at.iter().map(|part| part.len() + 1).sum();
            if self.names.len() == self.wanted || length > MAX_NAME_BYTES {
                return None;
            }
            self.names.push(self.at.join("."));
            return Some(());
        };
        let children = tree.get("children_spec").and_then(Json::as_array).map_or(&[][..], Vec::as_slice);
        let keys = if kind.to_lowercase().ends_with("dict") { dictionary_keys(kind, tree) } else { None };
        let keys = keys.filter(|keys| keys.len() == children.len());
        for (index, child) in children.iter().enumerate() {
            self.at.push(keys.as_ref().map_or_else(|| index.to_string(), |keys| keys[index].clone()));
            self.collect(child)?;
            self.at.pop();
        }
        Some(())
    }
}

fn dictionary_keys(kind: &str, tree: &Json) -> Option<Vec<String>> {
    let context = match tree.get("context")? {
        Json::String(text) => serde_json::from_str(text).ok()?,
        other => other.clone(),
    };
    // A defaultdict's context is [factory, keys], the others' the keys.
    let list = if kind.ends_with("defaultdict") { context.get(1)? } else { &context };
    let keys = list.as_array()?;
    Some(keys.iter().map(|key| key.as_str().map_or_else(|| key.to_string(), str::to_owned)).collect())
}
