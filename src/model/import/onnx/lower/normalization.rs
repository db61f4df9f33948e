//! Normalisations.

use std::rc::Rc;

use super::{Lowered, one};
use crate::model::ModelError;
use crate::model::import::onnx::builder::{Builder, NONE};
use crate::model::import::onnx::operands::{Operands, axis};
use crate::model::import::onnx::value::Known;

pub fn batch_norm(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let is_training = operands.flag("training_mode", false);
    operands.ignore(&["momentum", "is_test", "consumed_inputs"]);
    let is_spatial = operands.flag("spatial", true);
    let epsilon = operands.float("epsilon", 1e-5);
    if is_training || operands.outputs.iter().skip(1).any(|&is_named| is_named) {
        return Err(builder.refused("it is in training mode: export the model after model.eval()"));
    }
    let x = operands.tensor(builder, 0)?;
    let mut parameters = Vec::new();
    for index in 1..5 {
        parameters.push(operands.tensor(builder, index)?);
    }
    if !is_spatial && x.rank() > 2 {
        return Err(builder.refused("spatial = 0, with statistics of its own for each pixel"));
    }
    let arguments = [&x].into_iter().chain(&parameters).map(Into::into);
    let rest = [false.into(), 0.1.into(), epsilon.into(), true.into()];
    one(builder.call("batch_norm", arguments.chain(rest).collect())?)
}

pub fn instance_norm(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let (x, weight) = (operands.tensor(builder, 0)?, operands.tensor(builder, 1)?);
    let bias = operands.tensor(builder, 2)?;
    let epsilon = operands.float("epsilon", 1e-5);
    let arguments = vec![(&x).into(), (&weight).into(), (&bias).into(), NONE, NONE];
    let rest = [true.into(), 0.1.into(), epsilon.into(), true.into()];
    one(builder.call("instance_norm", arguments.into_iter().chain(rest).collect())?)
}

pub fn layer_norm(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    if operands.outputs.iter().skip(1).any(|&is_named| is_named) {
        return Err(builder.refused("its mean or deviation is used"));
    }
    operands.ignore(&["stash_type"]);
    let epsilon = operands.float("epsilon", 1e-5);
    let x = operands.tensor(builder, 0)?;
    let (weight, bias) = (operands.optional(builder, 1)?, operands.optional(builder, 2)?);
    let first = axis(builder, operands.int("axis", -1), x.rank())?;
    one(layer_norm_of(builder, &x, first, weight.as_ref(), bias.as_ref(), epsilon)?)
}

/// Over the axes from `first` on.
fn layer_norm_of(
    builder: &mut Builder,
    x: &Rc<Known>,
    first: usize,
    weight: Option<&Rc<Known>>,
    bias: Option<&Rc<Known>>,
    epsilon: f64,
) -> Result<Rc<Known>, ModelError> {
    let sizes: Option<Vec<i64>> = (first..x.rank()).map(|axis| x.fixed_size(axis)).collect();
    let Some(sizes) = sizes else {
        return Err(builder.refused("it normalises over an axis whose size depends on the picture's"));
    };
    // ATen takes parameters of exactly the normalised size.
    let mut shaped = |parameter: Option<&Rc<Known>>| -> Result<Option<Rc<Known>>, ModelError> {
        match parameter {
            Some(parameter) if parameter.size() != sizes => {
                let whole = builder.call("expand", vec![parameter.into(), sizes.clone().into()])?;
                Ok(Some(builder.call("contiguous", vec![(&whole).into()])?))
            }
            other => Ok(other.cloned()),
        }
    };
    let (weight, bias) = (shaped(weight)?, shaped(bias)?);
    let arguments = vec![x.into(), sizes.into(), weight.as_ref().into(), bias.as_ref().into(), epsilon.into()];
    builder.call("layer_norm", arguments)
}

pub fn group_norm(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    operands.ignore(&["stash_type"]);
    let groups = operands.int("num_groups", 1);
    let epsilon = operands.float("epsilon", 1e-5);
    let x = operands.tensor(builder, 0)?;
    let Some(channels) = x.fixed_size(1).filter(|&channels| groups > 0 && channels % groups == 0) else {
        return Err(builder.refused(format!("{groups} groups of a tensor of {:?}", x.size())));
    };
    let mut parameter = |index: usize| -> Result<Rc<Known>, ModelError> {
        let given = operands.tensor(builder, index)?;
        // Before operator set 21, one for each group.
        if operands.version < 21 && given.size() == [groups] && groups != channels {
            return builder.call("repeat_interleave.self_int", vec![(&given).into(), (channels / groups).into()]);
        }
        Ok(given)
    };
    let (weight, bias) = (parameter(1)?, parameter(2)?);
    let arguments = vec![(&x).into(), groups.into(), (&weight).into(), (&bias).into(), epsilon.into()];
    one(builder.call("group_norm", arguments)?)
}

pub fn lp_norm(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let x = operands.tensor(builder, 0)?;
    let p = operands.int("p", 2) as f64;
    let axis = axis(builder, operands.int("axis", -1), x.rank())? as i64;
    let norm = builder.call("linalg_vector_norm", vec![(&x).into(), p.into(), vec![axis].into(), true.into()])?;
    // What is 0 everywhere stays so.
    let is_zero = builder.call("eq.Scalar", vec![(&norm).into(), 0.into()])?;
    let one_instead = builder.call("ones_like", vec![(&norm).into()])?;
    let norm = builder.call("where.self", vec![(&is_zero).into(), (&one_instead).into(), (&norm).into()])?;
    one(builder.call("div.Tensor", vec![(&x).into(), (&norm).into()])?)
}

pub fn rms_norm(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    operands.ignore(&["stash_type"]);
    let epsilon = operands.float("epsilon", 1e-5);
    let (x, weight) = (operands.tensor(builder, 0)?, operands.tensor(builder, 1)?);
    let first = axis(builder, operands.int("axis", -1), x.rank())?;
    let sizes: Option<Vec<i64>> = (first..x.rank()).map(|axis| x.fixed_size(axis)).collect();
    let Some(sizes) = sizes else {
        return Err(builder.refused("it normalises over an axis whose size depends on the picture's"));
    };
    one(builder.call("rms_norm", vec![(&x).into(), sizes.into(), (&weight).into(), epsilon.into()])?)
}

/// `(x − mean) / (deviation + 1e-9)`.
pub fn mean_variance_norm(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let x = operands.tensor(builder, 0)?;
    let axes = operands.ints("axes").unwrap_or_else(|| vec![0, 2, 3]);
    let mean = builder.call("mean.dim", vec![(&x).into(), axes.clone().into(), true.into()])?;
    let centred = builder.call("sub.Tensor", vec![(&x).into(), (&mean).into()])?;
    let squares = builder.call("mul.Tensor", vec![(&centred).into(), (&centred).into()])?;
    let variance = builder.call("mean.dim", vec![(&squares).into(), axes.into(), true.into()])?;
    let deviation = builder.call("sqrt", vec![(&variance).into()])?;
    let above = builder.call("add.Scalar", vec![(&deviation).into(), 1e-9.into()])?;
    one(builder.call("div.Tensor", vec![(&centred).into(), (&above).into()])?)
}
