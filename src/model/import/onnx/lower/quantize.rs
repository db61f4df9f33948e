//! QuantizeLinear and DequantizeLinear: the numbers as they were before they were quantised.

use std::rc::Rc;

use tch::Kind;

use super::{Lowered, elementwise, one};
use crate::model::ModelError;
use crate::model::import::onnx::builder::Builder;
use crate::model::import::onnx::operands::{Operands, axis, ints};
use crate::model::import::onnx::value::{Known, Val};

const NOTICE: &str = "the model is quantised (QuantizeLinear, DequantizeLinear): camlens computes with the numbers \
                      before they are rounded, and only the cut at 0 that stands for a ReLU is kept";

pub fn quantize(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    operands.ignore(&["axis", "saturate", "output_dtype", "precision"]);
    if operands.int("block_size", 0) != 0 {
        return Err(builder.refused("block_size"));
    }
    let x = operands.tensor(builder, 0)?;
    builder.notices.insert(NOTICE.to_owned());
    let cuts = match operands.optional(builder, 2)? {
        Some(zero) => is_least(&zero),
        // Without a zero point, it is 0, of bytes without a sign.
        None => true,
    };
    let x = if cuts && !x.is_constant && !is_rectified(builder, &x) {
        builder.call("relu", vec![(&x).into()])?
    } else {
        x
    };
    Ok(vec![Val::Quantized(x)])
}

/// Whether a zero point is the least number of its dtype, so that whatever is below 0 is cut.
fn is_least(zero: &Known) -> bool {
    let least = match zero.kind() {
        Kind::Uint8 => 0,
        Kind::Int8 => -128,
        Kind::Int16 => -32768,
        Kind::Int => 0,
        _ => return false,
    };
    zero.is_constant && ints(&zero.runs[0]).is_some_and(|all| all.iter().all(|&number| number == least))
}

/// Whether no number is below 0 anyway.
fn is_rectified(builder: &Builder, x: &Known) -> bool {
    match builder.maker(&x.name) {
        Some(("relu" | "sigmoid" | "softmax" | "hardsigmoid" | "abs", _)) => true,
        Some(("max_pool2d" | "hardtanh" | "flatten" | "reshape", _)) => {
            x.runs.iter().all(|run| run.f_min().and_then(|least| least.f_double_value(&[])).is_ok_and(|v| v >= 0.0))
        }
        _ => false,
    }
}

pub fn dequantize(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let given = operands.int("axis", 1);
    operands.ignore(&["output_dtype"]);
    if operands.int("block_size", 0) != 0 {
        return Err(builder.refused("block_size"));
    }
    if let Val::Quantized(x) = operands.value(0) {
        return one(Rc::clone(x));
    }
    let x = operands.tensor(builder, 0)?;
    let scale = operands.tensor(builder, 1)?;
    let zero = operands.optional(builder, 2)?;
    if !x.is_constant || x.is_floating() {
        return Err(builder.refused("it reads quantised numbers that no QuantizeLinear made"));
    }
    builder.notices.insert(NOTICE.to_owned());
    let kind = scale.kind();
    let mut shape = vec![1i64; x.rank()];
    if scale.rank() == 1 && scale.runs[0].numel() > 1 {
        shape[axis(builder, given, x.rank())?] = -1;
    } else {
        shape = Vec::new();
    }
    let mut values = elementwise::cast_to(builder, &x, kind)?;
    if let Some(zero) = zero {
        let zero = elementwise::cast_to(builder, &zero, kind)?;
        let zero = spread(builder, &zero, &shape)?;
        values = builder.call("sub.Tensor", vec![(&values).into(), (&zero).into()])?;
    }
    let scale = spread(builder, &scale, &shape)?;
    one(builder.call("mul.Tensor", vec![(&values).into(), (&scale).into()])?)
}

/// Parameters of an axis, in the place of that axis.
fn spread(builder: &mut Builder, parameter: &Rc<Known>, shape: &[i64]) -> Result<Rc<Known>, ModelError> {
    builder.call("reshape", vec![parameter.into(), shape.to_vec().into()])
}
