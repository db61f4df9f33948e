//! oneDNN's operators, as ATen carries them.

use tch::Tensor;

use crate::torch::{Call, Operator, OperatorError, Value};

use super::epilogue::Activation;
use super::geometry::Geometry;

/// The place of a call's input.
pub(in crate::plan) const INPUT: usize = 0;

#[derive(Debug, Clone)]
pub(in crate::plan) struct Operators {
    convolution: Operator,
    transposed: Operator,
    reorder: Operator,
    reorder_transposed: Operator,
}

impl Operators {
    pub fn find() -> Result<Self, OperatorError> {
        let find = |name| Operator::find(name, "");
        Ok(Operators {
            convolution: find("mkldnn::_convolution_pointwise")?,
            transposed: find("mkldnn::_convolution_transpose_pointwise")?,
            reorder: find("mkldnn::_reorder_convolution_weight")?,
            reorder_transposed: find("mkldnn::_reorder_convolution_transpose_weight")?,
        })
    }

    /// Weights `[outputs, inputs / groups, height, width]` laid out for a convolution of an `input` of that shape.
    pub fn lay_out(&self, weight: &Tensor, geometry: &Geometry, input: &[i64]) -> Result<Tensor, OperatorError> {
        let [padding, stride, dilation, groups] = geometry.values();
        let plain = Value::Tensor(weight.shallow_clone());
        self.reorder.call_tensor(&[plain, padding, stride, dilation, groups, Value::Ints(input.to_vec())])
    }

    /// A convolution whose input comes with each call, at [`INPUT`].
    pub fn convolution(
        &self,
        weight: &Tensor,
        bias: &Value,
        geometry: &Geometry,
        activation: Activation,
    ) -> Result<Call, OperatorError> {
        let (name, scalars) = match activation {
            Activation::None => ("none", Vec::new()),
            Activation::Relu => ("relu", Vec::new()),
            Activation::Clamp { low, high } => ("hardtanh", vec![low, high]),
        };
        let [padding, stride, dilation, groups] = geometry.values();
        let input = Value::Tensor(Tensor::new());
        let weight = Value::Tensor(weight.shallow_clone());
        let (name, scalars) = (Value::String(name.into()), Value::Floats(scalars));
        Call::new(
            &self.convolution,
            &[input, weight, bias.clone(), padding, stride, dilation, groups, name, scalars, Value::None],
        )
    }

    /// Weights laid out for [`Operators::transposed`]; `rest` as [`Geometry::rest`] gives it, `given` the gradient's shape.
    pub fn lay_out_transposed(
        &self,
        weight: &Tensor,
        geometry: &Geometry,
        rest: [i64; 2],
        given: &[i64],
    ) -> Result<Tensor, OperatorError> {
        let [padding, stride, dilation, groups] = geometry.values();
        let plain = Value::Tensor(weight.shallow_clone());
        let (rest, given) = (Value::Ints(rest.to_vec()), Value::Ints(given.to_vec()));
        self.reorder_transposed.call_tensor(&[plain, padding, rest, stride, dilation, groups, given])
    }

    /// The transposed convolution that takes a gradient, at [`INPUT`], back through a convolution of that geometry.
    pub fn transposed(&self, weight: &Tensor, geometry: &Geometry, rest: [i64; 2]) -> Result<Call, OperatorError> {
        let [padding, stride, dilation, groups] = geometry.values();
        let (given, weight) = (Value::Tensor(Tensor::new()), Value::Tensor(weight.shallow_clone()));
        let rest = Value::Ints(rest.to_vec());
        let (name, scalars) = (Value::String("none".into()), Value::Floats(Vec::new()));
        Call::new(
            &self.transposed,
            &[given, weight, Value::None, padding, rest, stride, dilation, groups, name, scalars, Value::None],
        )
    }
}
