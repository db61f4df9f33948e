//! Reductions over axes.

use super::{Lowered, one};
use crate::model::import::onnx::builder::{Arg, Builder};
use crate::model::import::onnx::operands::{Operands, axis};

pub fn reduce(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let x = operands.tensor(builder, 0)?;
    let keeps = operands.flag("keepdims", true);
    let stays = operands.flag("noop_with_empty_axes", false);
    let given = operands.ints_by(builder, "axes", 1)?.unwrap_or_default();
    let operator = operands.operator.clone();
    let mut axes = Vec::new();
    for given in &given {
        axes.push(axis(builder, *given, x.rank())? as i64);
    }
    if axes.is_empty() {
        if stays {
            let x = match operator.as_str() {
                "ReduceSumSquare" => builder.call("square", vec![(&x).into()])?,
                "ReduceL1" | "ReduceL2" => builder.call("abs", vec![(&x).into()])?,
                "ReduceLogSum" => builder.call("log", vec![(&x).into()])?,
                _ => x,
            };
            return one(x);
        }
        axes = (0..x.rank() as i64).collect();
    }
    let over = |name: &str, builder: &mut Builder, x: &_, axes: &[i64]| {
        builder.call(name, vec![Arg::Tensor(std::rc::Rc::clone(x)), axes.into(), keeps.into()])
    };
    let result = match operator.as_str() {
        _ if x.rank() == 0 => x,
        "ReduceMean" => over("mean.dim", builder, &x, &axes)?,
        "ReduceSum" => {
            let kind = x.kind();
            builder.call("sum.dim_IntList", vec![(&x).into(), axes.into(), keeps.into(), kind.into()])?
        }
        "ReduceMax" => over("amax", builder, &x, &axes)?,
        "ReduceMin" => over("amin", builder, &x, &axes)?,
        "ReduceProd" => {
            let mut result = x;
            axes.sort_unstable();
            for axis in axes.into_iter().rev() {
                let kind = result.kind();
                let arguments = vec![(&result).into(), axis.into(), keeps.into(), kind.into()];
                result = builder.call("prod.dim_int", arguments)?;
            }
            result
        }
        "ReduceL1" => {
            let sizes = builder.call("abs", vec![(&x).into()])?;
            let kind = x.kind();
            builder.call("sum.dim_IntList", vec![(&sizes).into(), axes.into(), keeps.into(), kind.into()])?
        }
        "ReduceL2" if x.is_floating() => {
            let arguments = vec![(&x).into(), 2.0.into(), axes.into(), keeps.into()];
            builder.call("linalg_vector_norm", arguments)?
        }
        "ReduceSumSquare" => {
            let squares = builder.call("mul.Tensor", vec![(&x).into(), (&x).into()])?;
            let kind = x.kind();
            builder.call("sum.dim_IntList", vec![(&squares).into(), axes.into(), keeps.into(), kind.into()])?
        }
        "ReduceLogSum" => {
            let sum = over("sum.dim_IntList", builder, &x, &axes)?;
            builder.call("log", vec![(&sum).into()])?
        }
        "ReduceLogSumExp" => over("logsumexp", builder, &x, &axes)?,
        other => return Err(builder.refused(format!("{other} of {:?}", x.kind()))),
    };
    one(result)
}

/// ArgMax and ArgMin, of which the first one counts.
pub fn arg_extreme(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let x = operands.tensor(builder, 0)?;
    let axis = axis(builder, operands.int("axis", 0), x.rank())? as i64;
    let keeps = operands.flag("keepdims", true);
    if operands.flag("select_last_index", false) {
        return Err(builder.refused("select_last_index = 1"));
    }
    let name = if operands.operator == "ArgMax" { "argmax" } else { "argmin" };
    one(builder.call(name, vec![(&x).into(), axis.into(), keeps.into()])?)
}

pub fn cumulative_sum(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let x = operands.tensor(builder, 0)?;
    if operands.flag("exclusive", false) || operands.flag("reverse", false) {
        return Err(builder.refused("exclusive or reverse"));
    }
    let axes = operands.fixed_ints(builder, 1)?.unwrap_or_default();
    let &[given] = axes.as_slice() else { return Err(builder.refused("it has no axis")) };
    let axis = axis(builder, given, x.rank())? as i64;
    let kind = x.kind();
    one(builder.call("cumsum", vec![(&x).into(), axis.into(), kind.into()])?)
}
