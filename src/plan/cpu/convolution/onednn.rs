//! oneDNN's operators, as ATen has them.

use tch::Tensor;

use crate::torch::{Call, Operator, OperatorError, Value};

use crate::plan::convolution::Activation;
use crate::plan::convolution::Geometry;

/// Position of the input among a [`Call`]'s arguments.
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

    /// The weight `[outputs, inputs / groups, h, w]`, packed for an input of shape `input`.
    pub fn pack(&self, weight: &Tensor, geometry: &Geometry, input: &[i64]) -> Result<Tensor, OperatorError> {
        let [padding, stride, dilation, groups] = geometry.values();
        let plain = Value::Tensor(weight.shallow_clone());
        self.reorder.call_tensor(&[plain, padding, stride, dilation, groups, Value::Ints(input.to_vec())])
    }

    /// A convolution whose input, at [`INPUT`], is given at each call.
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

    /// The weight packed for [`Operators::transposed`]; `output_padding` as [`Geometry::output_padding`] returns it,
    /// `grad_output` the gradient's shape.
    pub fn pack_transposed(
        &self,
        weight: &Tensor,
        geometry: &Geometry,
        output_padding: [i64; 2],
        grad_output: &[i64],
    ) -> Result<Tensor, OperatorError> {
        let [padding, stride, dilation, groups] = geometry.values();
        let plain = Value::Tensor(weight.shallow_clone());
        let (output_padding, grad_output) = (Value::Ints(output_padding.to_vec()), Value::Ints(grad_output.to_vec()));
        self.reorder_transposed.call_tensor(&[plain, padding, output_padding, stride, dilation, groups, grad_output])
    }

    /// The transposed convolution that computes the gradient to the input from the result's, which is given at each
    /// call at [`INPUT`].
    pub fn transposed(
        &self,
        weight: &Tensor,
        geometry: &Geometry,
        output_padding: [i64; 2],
    ) -> Result<Call, OperatorError> {
        let [padding, stride, dilation, groups] = geometry.values();
        let (grad_output, weight) = (Value::Tensor(Tensor::new()), Value::Tensor(weight.shallow_clone()));
        let output_padding = Value::Ints(output_padding.to_vec());
        let (name, scalars) = (Value::String("none".into()), Value::Floats(Vec::new()));
        Call::new(
            &self.transposed,
            &[
                grad_output,
                weight,
                Value::None,
                padding,
                output_padding,
                stride,
                dilation,
                groups,
                name,
                scalars,
                Value::None,
            ],
        )
    }
}
