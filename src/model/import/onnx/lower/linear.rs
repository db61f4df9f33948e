//! Matrix products.

use super::{Lowered, elementwise, one};
use crate::model::import::onnx::attention;
use crate::model::import::onnx::builder::{Arg, Builder, NONE};
use crate::model::import::onnx::operands::Operands;

pub fn matmul(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let (x, y) = (operands.tensor(builder, 0)?, operands.tensor(builder, 1)?);
    if y.is_constant && y.rank() == 2 && x.rank() >= 2 && !x.is_constant {
        let weight = builder.call("t", vec![(&y).into()])?;
        return one(builder.call("linear", vec![(&x).into(), (&weight).into(), NONE])?);
    }
    let product = builder.call("matmul", vec![(&x).into(), (&y).into()])?;
    one(attention::fused(builder, product)?)
}

/// `alpha · A · B + beta · C`.
pub fn gemm(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    operands.ignore(&["broadcast"]);
    let (mut a, mut b) = (operands.tensor(builder, 0)?, operands.tensor(builder, 1)?);
    let c = operands.optional(builder, 2)?;
    let (alpha, beta) = (operands.float("alpha", 1.0), operands.float("beta", 1.0));
    let (turns_a, turns_b) = (operands.flag("transA", false), operands.flag("transB", false));
    if turns_a {
        a = builder.call("t", vec![(&a).into()])?;
    }
    let c = match c {
        Some(c) if beta != 1.0 => Some(builder.call("mul.Scalar", vec![(&c).into(), beta.into()])?),
        c => c,
    };
    if b.is_constant {
        let mut weight = if turns_b { b } else { builder.call("t", vec![(&b).into()])? };
        if alpha != 1.0 {
            weight = builder.call("mul.Scalar", vec![(&weight).into(), alpha.into()])?;
        }
        let outputs = weight.size().first().copied().unwrap_or(0);
        let is_bias = c.as_ref().is_none_or(|c| c.is_constant && c.runs[0].numel() as i64 == outputs && c.rank() <= 2);
        if is_bias {
            let bias = c.map(|c| builder.call("reshape", vec![(&c).into(), vec![outputs].into()])).transpose()?;
            return one(builder.call("linear", vec![(&a).into(), (&weight).into(), bias.as_ref().into()])?);
        }
        let product = builder.call("linear", vec![(&a).into(), (&weight).into(), NONE])?;
        return match c {
            Some(c) => one(elementwise::compute(builder, "Add", &product, &c)?),
            None => one(product),
        };
    }
    if turns_b {
        b = builder.call("t", vec![(&b).into()])?;
    }
    let mut product = builder.call("matmul", vec![(&a).into(), (&b).into()])?;
    if alpha != 1.0 {
        product = builder.call("mul.Scalar", vec![(&product).into(), alpha.into()])?;
    }
    match c {
        Some(c) => one(elementwise::compute(builder, "Add", &product, &c)?),
        None => one(product),
    }
}

pub fn einsum(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let equation: String = operands.text("equation", "").chars().filter(|c| !c.is_whitespace()).collect();
    let mut tensors = Vec::new();
    for index in 0..operands.inputs.len() {
        tensors.push(operands.tensor(builder, index)?);
    }
    one(builder.call("einsum", vec![equation.as_str().into(), Arg::Tensors(tensors)])?)
}
