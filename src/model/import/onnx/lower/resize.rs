//! Resize and Upsample.
//!
//! ONNX has many ways to place the new pixels on the old ones. The weights of each are computed here as its
//! specification says, one matrix for each axis. Where one of ATen's interpolations gives the same for the example
//! inputs, it is taken; otherwise the matrices themselves are multiplied, which needs fixed sizes.

use std::rc::Rc;

use tch::{Kind, Tensor};

use super::{Lowered, one};
use crate::model::ModelError;
use crate::model::import::onnx::builder::{Arg, Builder, NONE};
use crate::model::import::onnx::operands::{Operands, axis};
use crate::model::import::onnx::value::{Known, Number, Scalar};
use crate::model::operation::Symbolic;
use crate::torch::{Operator, Value};

/// Largest side of a resized axis.
const MAX_SIDE: i64 = 1 << 14;
/// Most weights of an axis, and most pixels of a picture that is resized for comparison.
const MAX_WEIGHTS: i64 = 1 << 24;

/// How new pixels are placed and weighted.
#[derive(Debug)]
struct Rule {
    mode: String,
    place: String,
    nearest: String,
    cubic: f64,
    excludes_outside: bool,
}

/// One axis: its new size, and the scale if that is what the file gives.
#[derive(Debug, Clone)]
struct Target {
    size: Number,
    scale: Option<f64>,
}

pub fn resize(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let x = operands.tensor(builder, 0)?;
    let is_old = operands.operator == "Upsample" || operands.version < 11;
    let mode = operands.text("mode", "nearest");
    let default_place = if is_old { "asymmetric" } else { "half_pixel" };
    let default_nearest = if is_old { "floor" } else { "round_prefer_floor" };
    let rule = Rule {
        mode: if mode == "bilinear" { "linear".to_owned() } else { mode },
        place: operands.text("coordinate_transformation_mode", default_place),
        nearest: operands.text("nearest_mode", default_nearest),
        cubic: operands.float("cubic_coeff_a", -0.75),
        excludes_outside: operands.flag("exclude_outside", false),
    };
    operands.ignore(&["extrapolation_value"]);
    if operands.flag("antialias", false) && rule.mode != "nearest" {
        return Err(builder.refused("antialias = 1"));
    }
    let policy = operands.text("keep_aspect_ratio_policy", "stretch");
    if policy != "stretch" {
        return Err(builder.refused(format!("keep_aspect_ratio_policy = {policy:?}")));
    }
    let known_places = ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"];
    if !known_places.contains(&rule.place.as_str()) && rule.place != "tf_half_pixel_for_nn" {
        return Err(builder.refused(format!("coordinate_transformation_mode = {:?}", rule.place)));
    }
    let axes = match operands.ints("axes") {
        Some(axes) => axes,
        None => (0..x.rank() as i64).collect(),
    };
    let (scales, sizes) = match operands.take("scales") {
        Some(attribute) => {
            (Some(attribute.floats.iter().map(|&scale| Number::float(f64::from(scale))).collect()), None)
        }
        None if is_old => (operands.numbers(builder, 1)?, None),
        None => {
            let scales = operands.numbers(builder, 2)?.filter(|scales: &Vec<Number>| !scales.is_empty());
            (scales, operands.numbers(builder, 3)?)
        }
    };
    let targets = targets(builder, &x, &axes, scales, sizes)?;
    one(resized(builder, x, &targets, &rule)?)
}

/// What each axis becomes; none for one that stays.
fn targets(
    builder: &mut Builder,
    x: &Rc<Known>,
    axes: &[i64],
    scales: Option<Vec<Number>>,
    sizes: Option<Vec<Number>>,
) -> Result<Vec<Option<Target>>, ModelError> {
    let given = scales.as_ref().or(sizes.as_ref()).map_or(0, Vec::len);
    if given != axes.len() {
        return Err(builder.refused(format!("{given} scales or sizes for {} axes", axes.len())));
    }
    let mut targets = vec![None; x.rank()];
    for (index, &given) in axes.iter().enumerate() {
        let at = axis(builder, given, x.rank())?;
        let own = builder.size(x, at)?;
        let target = match (&scales, &sizes) {
            (Some(scales), _) => {
                let Some(scale) = scales[index].fixed().map(Scalar::float) else {
                    return Err(builder.refused("its scales depend on the size of the picture"));
                };
                if scale == 1.0 {
                    continue;
                }
                let scaled = builder.compute(Symbolic::Mul, &[own, Number::float(scale)])?;
                let down = builder.compute(Symbolic::FloorDiv, &[scaled, Number::float(1.0)])?;
                Target { size: builder.compute(Symbolic::ToInt, &[down])?, scale: Some(scale) }
            }
            (None, Some(sizes)) => Target { size: sizes[index].clone(), scale: None },
            (None, None) => return Err(builder.refused("it has neither scales nor sizes")),
        };
        for run in 0..builder.runs() {
            match target.size.run(run) {
                Scalar::Int(1..=MAX_SIDE) => {}
                other => return Err(builder.refused(format!("a new size of {other:?}: up to {MAX_SIDE} is allowed"))),
            }
        }
        let stays = (0..x.runs.len()).all(|run| target.size.run(run) == Scalar::Int(x.run(run).size()[at]));
        if !stays || target.scale.is_some() {
            targets[at] = Some(target);
        }
    }
    Ok(targets)
}

fn resized(
    builder: &mut Builder,
    mut x: Rc<Known>,
    targets: &[Option<Target>],
    rule: &Rule,
) -> Result<Rc<Known>, ModelError> {
    if targets.iter().all(Option::is_none) {
        return Ok(x);
    }
    if let [None, None, height, width] = targets
        && let Some(native) = native(builder, &x, [height.as_ref(), width.as_ref()], rule)?
    {
        return Ok(native);
    }
    for (at, target) in targets.iter().enumerate() {
        let Some(target) = target else { continue };
        let (Some(from), Some(to)) = (x.fixed_size(at), target.size.fixed_int()) else {
            return Err(builder.refused(format!(
                "mode {} with {} is none of ATen's interpolations, and the size depends on the picture's",
                rule.mode, rule.place
            )));
        };
        let weights = weights(builder, rule, from, to, target.scale)?;
        x = if rule.mode == "nearest" {
            let indices = builder.constant(weights.f_argmax(1, false)?, None);
            builder.call("index_select", vec![(&x).into(), (at as i64).into(), (&indices).into()])?
        } else {
            let weights = builder.constant(weights.f_to_kind(x.kind())?, None);
            let (at, last) = (at as i64, x.rank() as i64 - 1);
            let turned = builder.call("transpose.int", vec![(&x).into(), at.into(), last.into()])?;
            let mixed = builder.call("linear", vec![(&turned).into(), (&weights).into(), NONE])?;
            builder.call("transpose.int", vec![(&mixed).into(), at.into(), last.into()])?
        };
    }
    Ok(x)
}

/// The weights of `from` old pixels in each of `to` new ones, `[to, from]` in double precision.
fn weights(builder: &Builder, rule: &Rule, from: i64, to: i64, scale: Option<f64>) -> Result<Tensor, ModelError> {
    if !(1..=MAX_SIDE).contains(&from) || !(1..=MAX_SIDE).contains(&to) || from * to > MAX_WEIGHTS {
        return Err(builder.refused(format!("from {from} to {to} pixels")));
    }
    let (old, new) = (from as f64, to as f64);
    let scale = scale.unwrap_or(new / old);
    let place = |x: f64| match rule.place.as_str() {
        "half_pixel" => (x + 0.5) / scale - 0.5,
        "tf_half_pixel_for_nn" => (x + 0.5) / scale,
        "pytorch_half_pixel" if to > 1 => (x + 0.5) / scale - 0.5,
        "pytorch_half_pixel" => 0.0,
        "align_corners" if to > 1 => x * (old - 1.0) / (new - 1.0),
        "align_corners" => 0.0,
        "half_pixel_symmetric" => {
            let adjustment = new / (scale * old);
            old / 2.0 * (1.0 - adjustment) + (x + 0.5) / scale - 0.5
        }
        _ => x / scale,
    };
    let mut all = vec![0.0; (from * to) as usize];
    for x in 0..to {
        let at = place(x as f64);
        let row = &mut all[(x * from) as usize..((x + 1) * from) as usize];
        let inside = |index: f64| index.clamp(0.0, old - 1.0) as usize;
        match rule.mode.as_str() {
            "nearest" => {
                let chosen = match rule.nearest.as_str() {
                    "round_prefer_floor" => (at - 0.5).ceil(),
                    "round_prefer_ceil" => (at + 0.5).floor(),
                    "floor" => at.floor(),
                    "ceil" => at.ceil(),
                    other => return Err(builder.refused(format!("nearest_mode = {other:?}"))),
                };
                row[inside(chosen)] = 1.0;
            }
            "linear" => {
                let at = at.clamp(0.0, old - 1.0);
                let low = at.floor();
                row[inside(low)] += 1.0 - (at - low);
                row[inside(low + 1.0)] += at - low;
            }
            "cubic" => {
                let low = at.floor();
                let parts: Vec<(f64, f64)> = (-1..=2)
                    .map(|step| low + f64::from(step))
                    .map(|pixel| (pixel, cubic(rule.cubic, (at - pixel).abs())))
                    .filter(|(pixel, _)| !rule.excludes_outside || (0.0..old).contains(pixel))
                    .collect();
                let sum: f64 = if rule.excludes_outside { parts.iter().map(|(_, weight)| weight).sum() } else { 1.0 };
                parts.into_iter().for_each(|(pixel, weight)| row[inside(pixel)] += weight / sum);
            }
            other => return Err(builder.refused(format!("mode = {other:?}"))),
        }
    }
    Ok(Tensor::f_from_slice(&all)?.f_view([to, from])?)
}

fn cubic(a: f64, distance: f64) -> f64 {
    let x = distance;
    if x <= 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a
    } else {
        0.0
    }
}

/// ATen's interpolation of the last two axes, if one equals this Resize for every example input.
fn native(
    builder: &mut Builder,
    x: &Rc<Known>,
    targets: [Option<&Target>; 2],
    rule: &Rule,
) -> Result<Option<Rc<Known>>, ModelError> {
    let candidates: &[(&str, Option<bool>)] = match rule.mode.as_str() {
        "nearest" => &[("upsample_nearest2d", None), ("_upsample_nearest_exact2d", None)],
        "linear" => &[("upsample_bilinear2d", Some(false)), ("upsample_bilinear2d", Some(true))],
        "cubic" => &[("upsample_bicubic2d", Some(false)), ("upsample_bicubic2d", Some(true))],
        _ => return Ok(None),
    };
    let mut sizes = Vec::new();
    for (index, target) in targets.into_iter().enumerate() {
        sizes.push(match target {
            Some(target) => target.size.clone(),
            None => builder.size(x, index + 2)?,
        });
    }
    let scales: Vec<Value> = targets
        .iter()
        .map(|target| match target {
            Some(Target { scale: Some(scale), .. }) => Value::Float(*scale),
            _ => Value::None,
        })
        .collect();
    let without = vec![Value::None, Value::None];
    let mut ways = vec![without.clone()];
    if scales.iter().any(|scale| matches!(scale, Value::Float(_))) {
        // An axis without a scale has one of 1.
        let all = scales.iter().map(|scale| match scale {
            Value::Float(scale) => Value::Float(*scale),
            _ => Value::Float(1.0),
        });
        ways.push(all.collect());
    }
    for &(name, corners) in candidates {
        for way in &ways {
            if corners == Some(true) && way.iter().any(|scale| matches!(scale, Value::Float(_))) {
                continue;
            }
            let operator = Operator::find(&format!("aten::{name}"), "")?;
            let mut is_same = true;
            for run in 0..x.runs.len() {
                is_same = is_same && is_same_for(builder, x, run, &operator, corners, (&sizes, way), targets, rule)?;
            }
            if is_same {
                let mut arguments: Vec<Arg> = vec![x.into(), sizes.clone().into()];
                arguments.extend(corners.map(Arg::from));
                arguments.extend(way.iter().cloned().map(Arg::Literal));
                return builder.call(name, arguments).map(Some);
            }
        }
    }
    Ok(None)
}

/// Whether ATen's interpolation of random pixels is the product with the weights.
#[allow(clippy::too_many_arguments, reason = "each is one of what the comparison is made of")]
fn is_same_for(
    builder: &Builder,
    x: &Known,
    run: usize,
    operator: &Operator,
    corners: Option<bool>,
    (sizes, scales): (&[Number], &[Value]),
    targets: [Option<&Target>; 2],
    rule: &Rule,
) -> Result<bool, ModelError> {
    let own = x.run(run).size();
    let size = |index: usize| match sizes[index].run(run) {
        Scalar::Int(size) => size,
        Scalar::Float(size) => size as i64,
    };
    if own[2].saturating_mul(own[3]) > MAX_WEIGHTS || size(0) * size(1) > MAX_WEIGHTS {
        return Ok(false);
    }
    let mut want = Tensor::f_randn([1, 1, own[2], own[3]], (Kind::Double, tch::Device::Cpu))?;
    let mut arguments = vec![Value::Tensor(want.shallow_clone()), Value::Ints(vec![size(0), size(1)])];
    arguments.extend(corners.map(Value::Bool));
    arguments.extend(scales.iter().cloned());
    let Ok(got) = operator.call_tensor(&arguments) else { return Ok(false) };
    for (index, target) in targets.into_iter().enumerate() {
        let Some(target) = target else { continue };
        let weights = weights(builder, rule, own[index + 2], size(index), target.scale)?;
        want = match index {
            0 => weights.f_matmul(&want)?,
            _ => want.f_matmul(&weights.f_tr()?)?,
        };
    }
    if got.size() != want.size() {
        return Ok(false);
    }
    // ATen computes the scale of float64 pictures in double precision.
    let difference = got.f_sub(&want)?.f_abs()?.f_max()?.f_double_value(&[])?;
    Ok(difference < 1e-9)
}
