//! From operators of ONNX to operators of ATen: the table, and a file for each family.

mod convolution;
mod elementwise;
mod linear;
mod normalization;
mod quantize;
mod reduce;
mod resize;
mod shape;

use std::rc::Rc;

use tch::Tensor;

use super::builder::Builder;
use super::operands::{self, Operands};
use super::value::{Known, Scalar, Val};
use crate::model::ModelError;

/// The values of a node's outputs.
pub type Lowered = Result<Vec<Val>, ModelError>;

/// How one operator is lowered.
pub type Lower = fn(&mut Builder, &mut Operands) -> Lowered;

/// Oldest and newest operator set that is read.
pub const VERSIONS: [i64; 2] = [7, 23];

fn one(known: Rc<Known>) -> Lowered {
    Ok(vec![Val::Tensor(known)])
}

/// The operators that are read: name, the operator set in which it appeared (at least 7), the last one in which it
/// exists, and how it is lowered. `If`, and functions of the file, are read besides.
pub const OPERATORS: [(&str, i64, i64, Lower); 126] = [
    ("Abs", 7, 23, elementwise::unary),
    ("Acos", 7, 23, elementwise::unary),
    ("Acosh", 9, 23, elementwise::unary),
    ("Add", 7, 23, elementwise::arithmetic),
    ("And", 7, 23, elementwise::comparison),
    ("ArgMax", 7, 23, reduce::arg_extreme),
    ("ArgMin", 7, 23, reduce::arg_extreme),
    ("Asin", 7, 23, elementwise::unary),
    ("Asinh", 9, 23, elementwise::unary),
    ("Atan", 7, 23, elementwise::unary),
    ("Atanh", 9, 23, elementwise::unary),
    ("AveragePool", 7, 23, convolution::average_pool),
    ("BatchNormalization", 7, 23, normalization::batch_norm),
    ("Cast", 7, 23, elementwise::cast),
    ("CastLike", 15, 23, elementwise::cast),
    ("Ceil", 7, 23, elementwise::unary),
    ("Celu", 12, 23, elementwise::celu),
    ("Clip", 7, 23, elementwise::clip),
    ("Concat", 7, 23, shape::concat),
    ("Constant", 7, 23, constant),
    ("ConstantOfShape", 9, 23, shape::constant_of_shape),
    ("Conv", 7, 23, convolution::conv),
    ("ConvTranspose", 7, 23, convolution::conv_transpose),
    ("Cos", 7, 23, elementwise::unary),
    ("Cosh", 9, 23, elementwise::unary),
    ("CumSum", 11, 23, reduce::cumulative_sum),
    ("DepthToSpace", 7, 23, shape::depth_to_space),
    ("DequantizeLinear", 10, 23, quantize::dequantize),
    ("Div", 7, 23, elementwise::arithmetic),
    ("Dropout", 7, 23, elementwise::dropout),
    ("Einsum", 12, 23, linear::einsum),
    ("Elu", 7, 23, elementwise::elu),
    ("Equal", 7, 23, elementwise::comparison),
    ("Erf", 9, 23, elementwise::unary),
    ("Exp", 7, 23, elementwise::unary),
    ("Expand", 8, 23, shape::expand),
    ("EyeLike", 9, 23, shape::eye_like),
    ("Flatten", 7, 23, shape::flatten),
    ("Floor", 7, 23, elementwise::unary),
    ("Gather", 7, 23, shape::gather),
    ("GatherElements", 11, 23, shape::gather_elements),
    ("GatherND", 11, 23, shape::gather_nd),
    ("Gelu", 20, 23, elementwise::gelu),
    ("Gemm", 7, 23, linear::gemm),
    ("GlobalAveragePool", 7, 23, convolution::global_pool),
    ("GlobalLpPool", 7, 23, convolution::global_pool),
    ("GlobalMaxPool", 7, 23, convolution::global_pool),
    ("Greater", 7, 23, elementwise::comparison),
    ("GreaterOrEqual", 12, 23, elementwise::comparison),
    ("GroupNormalization", 18, 23, normalization::group_norm),
    ("HardSigmoid", 7, 23, elementwise::hard_sigmoid),
    ("HardSwish", 14, 23, elementwise::unary),
    ("Identity", 7, 23, elementwise::identity),
    ("InstanceNormalization", 7, 23, normalization::instance_norm),
    ("IsInf", 10, 23, elementwise::is_inf),
    ("IsNaN", 9, 23, elementwise::unary),
    ("LRN", 7, 23, convolution::lrn),
    ("LayerNormalization", 17, 23, normalization::layer_norm),
    ("LeakyRelu", 7, 23, elementwise::leaky_relu),
    ("Less", 7, 23, elementwise::comparison),
    ("LessOrEqual", 12, 23, elementwise::comparison),
    ("Log", 7, 23, elementwise::unary),
    ("LogSoftmax", 7, 23, elementwise::softmax),
    ("LpNormalization", 7, 23, normalization::lp_norm),
    ("MatMul", 7, 23, linear::matmul),
    ("Max", 7, 23, elementwise::variadic),
    ("MaxPool", 7, 23, convolution::max_pool),
    ("Mean", 7, 23, elementwise::variadic),
    ("MeanVarianceNormalization", 9, 23, normalization::mean_variance_norm),
    ("Min", 7, 23, elementwise::variadic),
    ("Mish", 18, 23, elementwise::unary),
    ("Mod", 10, 23, elementwise::modulo),
    ("Mul", 7, 23, elementwise::arithmetic),
    ("Neg", 7, 23, elementwise::unary),
    ("Not", 7, 23, elementwise::unary),
    ("Or", 7, 23, elementwise::comparison),
    ("PRelu", 7, 23, elementwise::prelu),
    ("Pad", 7, 23, shape::pad),
    ("Pow", 7, 23, elementwise::power),
    ("QuantizeLinear", 10, 23, quantize::quantize),
    ("RMSNormalization", 23, 23, normalization::rms_norm),
    ("Range", 11, 23, shape::range),
    ("Reciprocal", 7, 23, elementwise::unary),
    ("ReduceL1", 7, 23, reduce::reduce),
    ("ReduceL2", 7, 23, reduce::reduce),
    ("ReduceLogSum", 7, 23, reduce::reduce),
    ("ReduceLogSumExp", 7, 23, reduce::reduce),
    ("ReduceMax", 7, 23, reduce::reduce),
    ("ReduceMean", 7, 23, reduce::reduce),
    ("ReduceMin", 7, 23, reduce::reduce),
    ("ReduceProd", 7, 23, reduce::reduce),
    ("ReduceSum", 7, 23, reduce::reduce),
    ("ReduceSumSquare", 7, 23, reduce::reduce),
    ("Relu", 7, 23, elementwise::unary),
    ("Reshape", 7, 23, shape::reshape),
    ("Resize", 10, 23, resize::resize),
    ("Round", 11, 23, elementwise::unary),
    ("ScatterElements", 11, 23, shape::scatter_elements),
    ("ScatterND", 11, 23, shape::scatter_nd),
    ("Selu", 7, 23, elementwise::selu),
    ("Shape", 7, 23, shape::shape),
    ("Sigmoid", 7, 23, elementwise::unary),
    ("Sign", 9, 23, elementwise::unary),
    ("Sin", 7, 23, elementwise::unary),
    ("Sinh", 9, 23, elementwise::unary),
    ("Size", 7, 23, shape::size),
    ("Slice", 7, 23, shape::slice),
    ("Softmax", 7, 23, elementwise::softmax),
    ("Softplus", 7, 23, elementwise::unary),
    ("Softsign", 7, 23, elementwise::softsign),
    ("SpaceToDepth", 7, 23, shape::space_to_depth),
    ("Split", 7, 23, shape::split),
    ("Sqrt", 7, 23, elementwise::unary),
    ("Squeeze", 7, 23, shape::squeeze),
    ("Sub", 7, 23, elementwise::arithmetic),
    ("Sum", 7, 23, elementwise::variadic),
    ("Tan", 7, 23, elementwise::unary),
    ("Tanh", 7, 23, elementwise::unary),
    ("ThresholdedRelu", 10, 23, elementwise::thresholded_relu),
    ("Tile", 7, 23, shape::tile),
    ("Transpose", 7, 23, shape::transpose),
    ("Trilu", 14, 23, shape::trilu),
    ("Unsqueeze", 7, 23, shape::unsqueeze),
    ("Upsample", 7, 9, resize::resize),
    ("Where", 9, 23, elementwise::choice),
    ("Xor", 7, 23, elementwise::comparison),
];

/// How an operator is lowered.
pub fn find(name: &str) -> Option<(i64, i64, Lower)> {
    let at = OPERATORS.binary_search_by(|(known, ..)| (*known).cmp(name)).ok()?;
    let (_, since, until, lower) = OPERATORS[at];
    Some((since, until, lower))
}

/// The number that ConstantOfShape fills with, and its dtype.
pub fn fill_of(operands: &mut Operands) -> Result<(Scalar, tch::Kind), ModelError> {
    let Some(attribute) = operands.take("value") else { return Ok((Scalar::Float(0.0), tch::Kind::Float)) };
    let tensor = operands::attribute_tensor(&attribute)?.filter(|tensor| tensor.numel() == 1);
    let Some(tensor) = tensor else {
        return Err(ModelError::malformed("ConstantOfShape", "its value is no tensor of one element"));
    };
    let kind = tensor.f_kind()?;
    let known = Known { name: String::new(), runs: vec![tensor], is_constant: true };
    Ok((operands::only(&known).unwrap_or(Scalar::Int(0)), kind))
}

/// The value of a Constant.
fn constant(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let tensor = if let Some(attribute) = operands.take("value") {
        operands::attribute_tensor(&attribute)?
    } else if let Some(attribute) = operands.take("value_float") {
        Some(Tensor::f_from_slice(&[attribute.f()])?.f_reshape(Vec::<i64>::new())?)
    } else if let Some(attribute) = operands.take("value_floats") {
        Some(Tensor::f_from_slice(&attribute.floats)?)
    } else if let Some(attribute) = operands.take("value_int") {
        Some(Tensor::f_from_slice(&[attribute.i()])?.f_reshape(Vec::<i64>::new())?)
    } else if let Some(attribute) = operands.take("value_ints") {
        Some(Tensor::f_from_slice(&attribute.ints)?)
    } else {
        None
    };
    match tensor {
        Some(tensor) => one(builder.constant(tensor, None)),
        None => Err(builder.refused("its value is no dense tensor of numbers")),
    }
}
