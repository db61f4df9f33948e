//! Arithmetic, comparisons, casts and activations.

use std::rc::Rc;

use tch::Kind;

use super::{Lowered, one};
use crate::model::ModelError;
use crate::model::import::onnx::builder::{Arg, Builder, NONE};
use crate::model::import::onnx::operands::{Operands, only};
use crate::model::import::onnx::patterns;
use crate::model::import::onnx::tensors;
use crate::model::import::onnx::value::{Known, Scalar, Val};

/// An operator of one tensor without attributes, by its name in ATen.
pub fn unary(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let name = match operands.operator.as_str() {
        "Abs" => "abs",
        "Acos" => "acos",
        "Acosh" => "acosh",
        "Asin" => "asin",
        "Asinh" => "asinh",
        "Atan" => "atan",
        "Atanh" => "atanh",
        "Ceil" => "ceil",
        "Cos" => "cos",
        "Cosh" => "cosh",
        "Erf" => "erf",
        "Exp" => "exp",
        "Floor" => "floor",
        "HardSwish" => "hardswish",
        "IsNaN" => "isnan",
        "Log" => "log",
        "Mish" => "mish",
        "Neg" => "neg",
        "Not" => "logical_not",
        "Reciprocal" => "reciprocal",
        "Relu" => "relu",
        "Round" => "round",
        "Sigmoid" => "sigmoid",
        "Sign" => "sign",
        "Sin" => "sin",
        "Sinh" => "sinh",
        "Softplus" => "softplus",
        "Sqrt" => "sqrt",
        "Tan" => "tan",
        "Tanh" => "tanh",
        other => return Err(builder.refused(format!("{other} is no operator of one tensor"))),
    };
    let x = operands.tensor(builder, 0)?;
    one(builder.call(name, vec![(&x).into()])?)
}

/// `x` with the only element of a constant, if that leaves the size of `x` as it is.
fn scalar_for(x: &Known, constant: &Known) -> Option<Arg> {
    let scalar = only(constant).filter(|_| constant.rank() <= x.rank() && !x.is_constant)?;
    Some(Arg::Literal(scalar.value()))
}

/// Add, Sub, Mul, Div.
pub fn arithmetic(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    operands.ignore(&["axis", "broadcast"]);
    let [x, y] = pair(builder, operands)?;
    let operator = operands.operator.clone();
    one(compute(builder, &operator, &x, &y)?)
}

/// One of Add, Sub, Mul and Div.
pub fn compute(builder: &mut Builder, operator: &str, x: &Rc<Known>, y: &Rc<Known>) -> Result<Rc<Known>, ModelError> {
    let scalars = (scalar_for(x, y), scalar_for(y, x));
    let result = match (operator, scalars) {
        ("Div", _) if !x.is_floating() => builder.call("div.Tensor_mode", vec![x.into(), y.into(), "trunc".into()])?,
        ("Add", (Some(number), _)) => builder.call("add.Scalar", vec![x.into(), number])?,
        ("Add", (_, Some(number))) => builder.call("add.Scalar", vec![y.into(), number])?,
        ("Sub", (Some(number), _)) => builder.call("sub.Scalar", vec![x.into(), number])?,
        ("Sub", (_, Some(number))) => builder.call("rsub.Scalar", vec![y.into(), number])?,
        ("Mul", (Some(number), _)) => builder.call("mul.Scalar", vec![x.into(), number])?,
        ("Mul", (_, Some(number))) => builder.call("mul.Scalar", vec![y.into(), number])?,
        ("Div", (Some(number), _)) => builder.call("div.Scalar", vec![x.into(), number])?,
        ("Add", _) => builder.call("add.Tensor", vec![x.into(), y.into()])?,
        ("Sub", _) => builder.call("sub.Tensor", vec![x.into(), y.into()])?,
        ("Mul", _) => builder.call("mul.Tensor", vec![x.into(), y.into()])?,
        _ => builder.call("div.Tensor", vec![x.into(), y.into()])?,
    };
    patterns::activation(builder, result)
}

fn pair(builder: &mut Builder, operands: &Operands) -> Result<[Rc<Known>; 2], ModelError> {
    Ok([operands.tensor(builder, 0)?, operands.tensor(builder, 1)?])
}

pub fn power(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let [x, y] = pair(builder, operands)?;
    let kind = x.kind();
    let powered = match scalar_for(&x, &y) {
        Some(exponent) => builder.call("pow.Tensor_Scalar", vec![(&x).into(), exponent])?,
        None => builder.call("pow.Tensor_Tensor", vec![(&x).into(), (&y).into()])?,
    };
    one(cast_to(builder, &powered, kind)?)
}

pub fn modulo(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let [x, y] = pair(builder, operands)?;
    let name = if operands.flag("fmod", false) { "fmod.Tensor" } else { "remainder.Tensor" };
    one(builder.call(name, vec![(&x).into(), (&y).into()])?)
}

/// Equal, Greater, And, …
pub fn comparison(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let [x, y] = pair(builder, operands)?;
    let name = match operands.operator.as_str() {
        "Equal" => "eq",
        "Greater" => "gt",
        "GreaterOrEqual" => "ge",
        "Less" => "lt",
        "LessOrEqual" => "le",
        "And" => "logical_and",
        "Or" => "logical_or",
        _ => "logical_xor",
    };
    if name.starts_with("logical") {
        return one(builder.call(name, vec![(&x).into(), (&y).into()])?);
    }
    match scalar_for(&x, &y) {
        Some(number) => one(builder.call(&format!("{name}.Scalar"), vec![(&x).into(), number])?),
        None => one(builder.call(&format!("{name}.Tensor"), vec![(&x).into(), (&y).into()])?),
    }
}

pub fn choice(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let condition = operands.tensor(builder, 0)?;
    let (x, y) = (operands.tensor(builder, 1)?, operands.tensor(builder, 2)?);
    one(builder.call("where.self", vec![(&condition).into(), (&x).into(), (&y).into()])?)
}

/// Min, Max, Sum and Mean of any number of tensors.
pub fn variadic(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let operator = operands.operator.clone();
    let mut result = operands.tensor(builder, 0)?;
    for index in 1..operands.inputs.len() {
        let next = operands.tensor(builder, index)?;
        result = match operator.as_str() {
            "Max" | "Min" => extreme(builder, &operator, &result, &next)?,
            _ => builder.call("add.Tensor", vec![(&result).into(), (&next).into()])?,
        };
    }
    if operator == "Mean" && operands.inputs.len() > 1 {
        let count = operands.inputs.len() as f64;
        result = builder.call("div.Scalar", vec![(&result).into(), count.into()])?;
    }
    one(result)
}

fn extreme(builder: &mut Builder, operator: &str, x: &Rc<Known>, y: &Rc<Known>) -> Result<Rc<Known>, ModelError> {
    let (x, bound) = match (only(y), only(x)) {
        (Some(bound), _) if y.rank() <= x.rank() && !x.is_constant => (x, Some(bound)),
        (_, Some(bound)) if x.rank() <= y.rank() && !y.is_constant => (y, Some(bound)),
        _ => (x, None),
    };
    match (operator, bound) {
        ("Max", Some(bound)) => clamped(builder, x, Some(bound), None),
        ("Min", Some(bound)) => clamped(builder, x, None, Some(bound)),
        ("Max", None) => builder.call("maximum", vec![x.into(), y.into()]),
        _ => builder.call("minimum", vec![x.into(), y.into()]),
    }
}

/// Between two numbers: a rectifier where the lower one is 0.
pub fn clamped(
    builder: &mut Builder,
    x: &Rc<Known>,
    low: Option<Scalar>,
    high: Option<Scalar>,
) -> Result<Rc<Known>, ModelError> {
    // Exporters write the largest finite number for no bound.
    let is_bound = |bound: &Scalar| bound.float().is_finite() && bound.float().abs() < f64::from(f32::MAX);
    let (low, high) = (low.filter(is_bound), high.filter(is_bound));
    let clamped = match (low, high) {
        (None, None) => return Ok(Rc::clone(x)),
        (Some(low), None) if low.float() == 0.0 => builder.call("relu", vec![x.into()])?,
        (Some(low), None) => builder.call("clamp_min", vec![x.into(), Arg::Literal(low.value())])?,
        (None, Some(high)) => builder.call("clamp_max", vec![x.into(), Arg::Literal(high.value())])?,
        (Some(low), Some(high)) if x.is_floating() && low.float() <= high.float() => {
            let bounds = [low, high].map(|bound| Arg::Literal(Scalar::Float(bound.float()).value()));
            let [low, high] = bounds;
            builder.call("hardtanh", vec![x.into(), low, high])?
        }
        (Some(low), Some(high)) => {
            builder.call("clamp", vec![x.into(), Arg::Literal(low.value()), Arg::Literal(high.value())])?
        }
    };
    Ok(clamped)
}

pub fn clip(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let x = operands.tensor(builder, 0)?;
    let mut bound = |builder: &mut Builder, name: &str, index: usize| -> Result<Option<Scalar>, ModelError> {
        if let Some(attribute) = operands.take(name) {
            return Ok(Some(Scalar::Float(f64::from(attribute.f()))));
        }
        let Some(given) = operands.optional(builder, index)? else { return Ok(None) };
        only(&given).map(Some).ok_or_else(|| builder.refused(format!("its {name} depends on the picture")))
    };
    let low = bound(builder, "min", 1)?;
    let high = bound(builder, "max", 2)?;
    let result = clamped(builder, &x, low, high)?;
    one(result)
}

pub fn leaky_relu(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let x = operands.tensor(builder, 0)?;
    let slope = operands.float("alpha", 0.01);
    one(builder.call("leaky_relu", vec![(&x).into(), slope.into()])?)
}

pub fn prelu(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let [x, slope] = pair(builder, operands)?;
    // ONNX broadcasts the slopes, [C, 1, 1]; ATen takes one, or one for each channel.
    let size = slope.size();
    let channels = x.size().get(1).copied().unwrap_or(1);
    let trailing = x.rank().saturating_sub(2);
    let is_per_channel = size.len() == trailing + 1 || (size.len() == trailing + 2 && size[0] == 1);
    let count = slope.runs[0].numel() as i64;
    if count == 1 || (count == channels && is_per_channel && size[size.len() - trailing..].iter().all(|&s| s == 1)) {
        let flat = builder.call("reshape", vec![(&slope).into(), vec![-1i64].into()])?;
        return one(builder.call("prelu", vec![(&x).into(), (&flat).into()])?);
    }
    let negative = builder.call("mul.Tensor", vec![(&x).into(), (&slope).into()])?;
    let sign = builder.call("gt.Scalar", vec![(&x).into(), 0.into()])?;
    one(builder.call("where.self", vec![(&sign).into(), (&x).into(), (&negative).into()])?)
}

pub fn hard_sigmoid(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let x = operands.tensor(builder, 0)?;
    let (alpha, beta) = (operands.float("alpha", 0.2), operands.float("beta", 0.5));
    // ATen's is `clamp(y / 6 + 0.5, 0, 1)`. A clamp would pass for a rectifier.
    let (scale, shift) = (6.0 * alpha, 6.0 * beta - 3.0);
    let mut y = x;
    if (scale - 1.0).abs() > 1e-6 {
        y = builder.call("mul.Scalar", vec![(&y).into(), scale.into()])?;
    }
    if shift.abs() > 1e-6 {
        y = builder.call("add.Scalar", vec![(&y).into(), shift.into()])?;
    }
    one(builder.call("hardsigmoid", vec![(&y).into()])?)
}

pub fn gelu(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let x = operands.tensor(builder, 0)?;
    let approximate = operands.text("approximate", "none");
    one(builder.call("gelu", vec![(&x).into(), approximate.as_str().into()])?)
}

pub fn elu(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let x = operands.tensor(builder, 0)?;
    let alpha = operands.float("alpha", 1.0);
    one(builder.call("elu", vec![(&x).into(), alpha.into()])?)
}

pub fn celu(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let x = operands.tensor(builder, 0)?;
    let alpha = operands.float("alpha", 1.0);
    one(builder.call("celu", vec![(&x).into(), alpha.into()])?)
}

pub fn selu(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let x = operands.tensor(builder, 0)?;
    let (alpha, gamma) = (operands.float("alpha", 1.673_263_2), operands.float("gamma", 1.050_701));
    // `elu(self, alpha, scale, input_scale)`.
    one(builder.call("elu", vec![(&x).into(), alpha.into(), gamma.into(), 1.0.into()])?)
}

pub fn thresholded_relu(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let x = operands.tensor(builder, 0)?;
    let alpha = operands.float("alpha", 1.0);
    one(builder.call("threshold", vec![(&x).into(), alpha.into(), 0.0.into()])?)
}

pub fn softsign(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let x = operands.tensor(builder, 0)?;
    let size = builder.call("abs", vec![(&x).into()])?;
    let below = builder.call("add.Scalar", vec![(&size).into(), 1.into()])?;
    one(builder.call("div.Tensor", vec![(&x).into(), (&below).into()])?)
}

/// SoftmaxFamily: before operator set 13, over all axes from the given one on.
pub fn softmax(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let name = if operands.operator == "Softmax" { "softmax.int" } else { "log_softmax.int" };
    let x = operands.tensor(builder, 0)?;
    let rank = x.rank();
    let is_old = operands.version < 13;
    let axis = operands.int("axis", if is_old { 1 } else { -1 });
    if is_old && axis == rank as i64 {
        return Err(builder.refused("a softmax over no axis"));
    }
    let axis = crate::model::import::onnx::operands::axis(builder, axis, rank)?;
    let is_flat = !is_old || (axis + 1..rank).all(|after| x.fixed_size(after) == Some(1));
    if is_flat {
        return one(builder.call(name, vec![(&x).into(), (axis as i64).into(), NONE])?);
    }
    let sizes = builder.sizes(&x)?;
    let flat = builder.call("flatten.using_ints", vec![(&x).into(), (axis as i64).into(), (-1).into()])?;
    let soft = builder.call(name, vec![(&flat).into(), (-1).into(), NONE])?;
    one(builder.call("reshape", vec![(&soft).into(), sizes.into()])?)
}

pub fn cast(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    operands.ignore(&["saturate", "round_mode"]);
    let x = operands.tensor(builder, 0)?;
    let kind = if operands.operator == "CastLike" {
        operands.tensor(builder, 1)?.kind()
    } else {
        tensors::dtype(i32::try_from(operands.int("to", 0)).unwrap_or(-1))?.kind
    };
    one(cast_to(builder, &x, kind)?)
}

/// A tensor in another dtype.
pub fn cast_to(builder: &mut Builder, x: &Rc<Known>, kind: Kind) -> Result<Rc<Known>, ModelError> {
    if x.kind() == kind {
        return Ok(Rc::clone(x));
    }
    builder.call("to.dtype", vec![x.into(), kind.into()])
}

pub fn is_inf(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let (negative, positive) = (operands.flag("detect_negative", true), operands.flag("detect_positive", true));
    let x = operands.tensor(builder, 0)?;
    let name = match (negative, positive) {
        (true, true) => "isinf",
        (true, false) => "isneginf",
        (false, true) => "isposinf",
        (false, false) => return Err(builder.refused("it detects nothing")),
    };
    one(builder.call(name, vec![(&x).into()])?)
}

pub fn identity(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    if !operands.is_given(0) {
        return Err(builder.refused("an input is missing"));
    }
    Ok(vec![operands.value(0).clone()])
}

/// Dropout in evaluation mode. Its mask lets everything through.
pub fn dropout(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    operands.ignore(&["ratio", "seed", "is_test"]);
    if operands.is_given(2) {
        let training = operands.tensor(builder, 2)?;
        if !matches!(only(&training), Some(Scalar::Int(0))) {
            return Err(builder.refused("it is in training mode: export the model after model.eval()"));
        }
    }
    let mut results = vec![operands.value(0).clone()];
    if operands.outputs.len() > 1 {
        let x = operands.tensor(builder, 0)?;
        let mask = builder.call("ones_like", vec![(&x).into(), Kind::Bool.into()])?;
        results.push(Val::Tensor(mask));
    }
    Ok(results)
}
