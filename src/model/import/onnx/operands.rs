//! One node of a file, as its lowering sees it: inputs, attributes, version.

use std::collections::BTreeMap;
use std::rc::Rc;

use tch::{Kind, Tensor};

use super::builder::Builder;
use super::message::AttributeProto;
use super::tensors;
use super::value::{Known, Number, Scalar, Val};
use crate::model::ModelError;

/// Most numbers in a list of sizes, axes or indices.
const MAX_NUMBERS: usize = 64;

/// A node's inputs and attributes. An attribute that nothing takes is refused in the end.
pub struct Operands {
    pub operator: String,
    /// Of the operator set that the file names.
    pub version: i64,
    pub inputs: Vec<Val>,
    /// For each output, whether it has a name.
    pub outputs: Vec<bool>,
    attributes: BTreeMap<String, AttributeProto>,
}

impl Operands {
    pub fn new(
        operator: &str,
        version: i64,
        inputs: Vec<Val>,
        outputs: Vec<bool>,
        attributes: impl Iterator<Item = AttributeProto>,
    ) -> Self {
        let attributes = attributes.map(|attribute| (attribute.name().to_owned(), attribute)).collect();
        Operands { operator: operator.to_owned(), version, inputs, outputs, attributes }
    }

    pub fn take(&mut self, name: &str) -> Option<AttributeProto> {
        self.attributes.remove(name)
    }

    /// Takes an attribute that changes nothing.
    pub fn ignore(&mut self, names: &[&str]) {
        names.iter().for_each(|name| drop(self.attributes.remove(*name)));
    }

    pub fn int(&mut self, name: &str, default: i64) -> i64 {
        self.take(name).map_or(default, |attribute| attribute.i())
    }

    pub fn flag(&mut self, name: &str, default: bool) -> bool {
        self.int(name, i64::from(default)) != 0
    }

    pub fn ints(&mut self, name: &str) -> Option<Vec<i64>> {
        self.take(name).map(|attribute| attribute.ints)
    }

    pub fn float(&mut self, name: &str, default: f32) -> f64 {
        f64::from(self.take(name).map_or(default, |attribute| attribute.f()))
    }

    pub fn text(&mut self, name: &str, default: &str) -> String {
        match self.take(name) {
            Some(attribute) => String::from_utf8_lossy(attribute.s()).into_owned(),
            None => default.to_owned(),
        }
    }

    /// The attributes that nothing took.
    pub fn left(&self) -> Vec<&str> {
        self.attributes.keys().map(String::as_str).collect()
    }

    pub fn is_given(&self, index: usize) -> bool {
        !matches!(self.inputs.get(index), None | Some(Val::Absent))
    }

    pub fn value(&self, index: usize) -> &Val {
        self.inputs.get(index).unwrap_or(&Val::Absent)
    }

    /// An input as a tensor.
    ///
    /// # Errors
    /// It is not given.
    pub fn tensor(&self, builder: &mut Builder, index: usize) -> Result<Rc<Known>, ModelError> {
        match self.inputs.get(index) {
            None | Some(Val::Absent) => Err(builder.refused(format!("input {index} is missing"))),
            Some(value) => builder.tensor(value),
        }
    }

    /// An optional input.
    pub fn optional(&self, builder: &mut Builder, index: usize) -> Result<Option<Rc<Known>>, ModelError> {
        if self.is_given(index) { self.tensor(builder, index).map(Some) } else { Ok(None) }
    }

    /// An input that is a short list of numbers, each of them fixed or computed from sizes.
    ///
    /// # Errors
    /// It depends on the input's content.
    pub fn numbers(&self, builder: &Builder, index: usize) -> Result<Option<Vec<Number>>, ModelError> {
        if !self.is_given(index) {
            return Ok(None);
        }
        match numbers_of(self.value(index)) {
            Some((items, ..)) => Ok(Some(items)),
            None => Err(builder.refused(format!(
                "input {index} is no short list of numbers that is known before the picture: sizes and axes must be"
            ))),
        }
    }

    /// An input that is a short list of integers, the same for every input of the model.
    pub fn fixed_ints(&self, builder: &Builder, index: usize) -> Result<Option<Vec<i64>>, ModelError> {
        let Some(numbers) = self.numbers(builder, index)? else { return Ok(None) };
        let fixed: Option<Vec<i64>> = numbers.iter().map(Number::fixed_int).collect();
        match fixed {
            Some(fixed) => Ok(Some(fixed)),
            None => Err(builder.refused(format!("input {index} depends on the size of the picture"))),
        }
    }

    /// Integers that are an attribute in old versions and an input in new ones.
    pub fn ints_by(&mut self, builder: &Builder, name: &str, index: usize) -> Result<Option<Vec<i64>>, ModelError> {
        match self.ints(name) {
            Some(ints) => Ok(Some(ints)),
            None => self.fixed_ints(builder, index),
        }
    }
}

/// A value as a list of numbers, with whether it is one or a single number, and its dtype. None for what depends on the
/// picture's content, or is no short list.
pub fn numbers_of(value: &Val) -> Option<(Vec<Number>, bool, Kind)> {
    match value {
        Val::Numbers(numbers) => Some((numbers.items.clone(), numbers.is_list, numbers.kind)),
        Val::Tensor(known) if known.is_constant && known.rank() <= 1 && known.runs[0].numel() <= MAX_NUMBERS => {
            let tensor = &known.runs[0];
            let kind = known.kind();
            let items = if known.is_floating() {
                floats(tensor)?.into_iter().map(Number::float).collect()
            } else {
                ints(tensor)?.into_iter().map(Number::int).collect()
            };
            Some((items, known.rank() == 1, kind))
        }
        _ => None,
    }
}

/// The elements of a tensor of integers or booleans.
pub fn ints(tensor: &Tensor) -> Option<Vec<i64>> {
    Vec::<i64>::try_from(tensor.f_to_kind(Kind::Int64).ok()?.f_reshape([-1]).ok()?).ok()
}

/// The elements of a tensor of floating-point numbers.
pub fn floats(tensor: &Tensor) -> Option<Vec<f64>> {
    Vec::<f64>::try_from(tensor.f_to_kind(Kind::Double).ok()?.f_reshape([-1]).ok()?).ok()
}

/// The only element of a constant.
pub fn only(known: &Known) -> Option<Scalar> {
    if !known.is_constant || known.runs[0].numel() != 1 {
        return None;
    }
    if known.is_floating() {
        floats(&known.runs[0])?.first().copied().map(Scalar::Float)
    } else {
        ints(&known.runs[0])?.first().copied().map(Scalar::Int)
    }
}

/// A non-negative axis.
pub fn axis(builder: &Builder, axis: i64, rank: usize) -> Result<usize, ModelError> {
    let positive = if axis < 0 { axis.checked_add(rank as i64) } else { Some(axis) };
    positive
        .and_then(|axis| usize::try_from(axis).ok())
        .filter(|&axis| axis < rank)
        .ok_or_else(|| builder.refused(format!("there is no axis {axis} in a tensor of {rank}")))
}

/// The tensor of an attribute.
pub fn attribute_tensor(attribute: &AttributeProto) -> Result<Option<Tensor>, ModelError> {
    attribute.t.as_ref().map(tensors::inline).transpose()
}
