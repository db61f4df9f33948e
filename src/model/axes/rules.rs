//! What each operator makes of its arguments' axes.

use super::axis::{coarsened, reshaped};
use super::call::{Call, position};
use super::contraction::Contraction;
use super::{Axis, Factor, Role};
use crate::model::node::Argument;
use crate::model::operation::Operation;
use crate::torch::Value;

/// Operators whose result at a position is computed from their tensors at that position.
const ELEMENTWISE: &str = "abs add addcdiv addcmul atan atan2 bitwise_and bitwise_not bitwise_or ceil copy cos \
    cosh div divide eq erf exp exp2 expm1 floor floor_divide fmax fmin fmod frac ge gt hypot isfinite isnan le \
    lerp log log10 log1p log2 logaddexp logical_and logical_not logical_or logit lt maximum minimum mul multiply \
    nan_to_num ne neg pow reciprocal remainder round rsqrt rsub sigmoid sign sin sinc sinh special_expit sqrt square \
    sub tan tanh trunc where masked_fill xlogy";

/// Operators whose result has the axes of their first argument: elementwise functions, and normalisation along axes.
const LIKE_FIRST: &str = "_log_softmax _softmax _to_copy alias alpha_dropout batch_norm bernoulli celu clamp \
    clamp_max clamp_min clip clone contiguous conj cumsum cumprod detach dropout elu empty_like feature_dropout \
    fill gelu group_norm hardshrink hardsigmoid hardswish hardtanh index_put instance_norm layer_norm leaky_relu \
    lift_fresh lift_fresh_copy log_sigmoid log_softmax masked_scatter mish prelu relu relu6 rms_norm rrelu \
    scatter scatter_add select_scatter selu sigmoid silu slice_scatter softmax softplus softshrink softsign \
    threshold to type_as double float half bfloat16 zeros_like ones_like full_like _weight_norm";

const REDUCTIONS: &str = "all amax amin any argmax argmin linalg_vector_norm logsumexp max mean median min \
    nanmean nansum norm prod std std_mean sum var var_mean";

/// Operators that slide a window over the last two axes of `[N, C, h, w]`, or choose new sizes for them.
const OF_PLANES: &str = "_adaptive_avg_pool2d _upsample_bicubic2d_aa _upsample_bilinear2d_aa \
    _upsample_lanczos2d_aa adaptive_avg_pool2d adaptive_max_pool2d avg_pool2d fractional_max_pool2d lp_pool2d \
    max_pool2d max_pool2d_with_indices upsample_bicubic2d upsample_bilinear2d upsample_nearest2d \
    upsample_nearest_exact2d _upsample_nearest_exact2d";

const RESHAPES: &str = "_unsafe_view flatten reshape reshape_as unflatten view view_as";

fn is_in(list: &str, name: &str) -> bool {
    !name.is_empty() && list.split_ascii_whitespace().any(|known| known == name)
}

/// The axes of each result; none if the operator has no rule.
pub fn outputs(call: &Call<'_>) -> Option<Vec<Vec<Axis>>> {
    let name = call.name();
    let count = call.node.outputs.len();
    let one = |axes: Vec<Axis>| Some(vec![axes; count]);
    match &call.node.operation {
        Operation::Aten(_) => {}
        // What is written into keeps its axes.
        Operation::WriteBack(_) => return one(call.first()?.to_vec()),
        Operation::ClonedInPlace { written, .. } => {
            let Argument::Use(written) = call.node.arguments.get(*written)? else { return None };
            return one(call.axes.get(*written)?.to_vec());
        }
        Operation::Symbolic(_) => return None,
    }
    match name {
        // With another tensor, `max` and `min` are elementwise.
        "max" | "min" if call.input("other").is_some() => one(elementwise(call)?),
        _ if is_in(ELEMENTWISE, name) => one(elementwise(call)?),
        _ if is_in(LIKE_FIRST, name) => one(call.first()?.to_vec()),
        _ if is_in(REDUCTIONS, name) => one(reduced(call)?),
        _ if is_in(OF_PLANES, name) => one(planes(call, 2)?),
        _ if is_in(RESHAPES, name) => one(reshaped(call.first()?, call.shape(0)?)),
        "conv1d" | "conv2d" | "conv3d" | "convolution" | "_convolution" | "conv_transpose1d" | "conv_transpose2d"
        | "conv_transpose3d" => one(convolution(call)?),
        "adaptive_avg_pool1d" | "avg_pool1d" | "adaptive_max_pool1d" | "max_pool1d" => one(planes(call, 1)?),
        "adaptive_avg_pool3d" | "avg_pool3d" | "adaptive_max_pool3d" | "max_pool3d" | "_adaptive_avg_pool3d" => {
            one(planes(call, 3)?)
        }
        "glu" | "reflection_pad2d" | "replication_pad2d" => one(resized(call)?),
        "pad" | "constant_pad_nd" => one(padded(call)?),
        "scaled_dot_product_attention" => one(attention(call)?),
        "permute" | "transpose" | "swapaxes" | "swapdims" | "movedim" | "moveaxis" | "t" | "numpy_T" | "mT" => {
            one(permuted(call)?)
        }
        "squeeze" => one(squeezed(call)?),
        "unsqueeze" => one(unsqueezed(call)?),
        "expand" | "expand_as" | "repeat" | "tile" | "broadcast_to" => one(expanded(call)?),
        "slice" | "narrow" => one(sliced(call)?),
        "select" => one(without(call, call.axis("dim", call.first()?.len())?)?),
        "unbind" => one(without(call, call.axis("dim", call.first()?.len())?)?),
        "chunk" | "split" | "split_with_sizes" | "tensor_split" | "unsafe_chunk" | "unsafe_split" => parts(call),
        "cat" | "concat" | "concatenate" => {
            let dim = if call.node.argument("dim").is_some() { call.int("dim")? } else { 0 };
            one(concatenated(call, dim)?)
        }
        "hstack" => one(concatenated(call, 1)?),
        "flip" | "gather" | "index_select" | "repeat_interleave" | "sort" | "take_along_dim" | "topk" => {
            one(rearranged(call)?)
        }
        "stack" => one(stacked(call)?),
        "roll" => one(rolled(call)?),
        "pixel_shuffle" | "pixel_unshuffle" => one(planes(call, 2)?),
        "channel_shuffle" => one(call.first()?.to_vec()),
        "im2col" => one(unfolded(call)?),
        "col2im" => one(folded(call)?),
        _ => one(Contraction::of(call)?.axes()),
    }
}

/// Tensors are broadcast against each other from the last axis.
fn elementwise(call: &Call<'_>) -> Option<Vec<Axis>> {
    let rank = call.shape(0)?.len();
    let of = |from_last: usize| {
        let axes = call.tensors().filter_map(move |axes| axes.len().checked_sub(from_last + 1).map(|i| &axes[i]));
        axes.cloned().reduce(|a, b| a.combined(&b)).unwrap_or_default()
    };
    Some((0..rank).rev().map(of).collect())
}

fn reduced(call: &Call<'_>) -> Option<Vec<Axis>> {
    let axes = call.first()?;
    let shape = call.shape(call.node.outputs.iter().position(Option::is_some)?)?;
    let named = call.ints("dim").filter(|dims| !dims.is_empty());
    let is_reduced: Vec<bool> = match named {
        Some(dims) => {
            let dims: Option<Vec<usize>> = dims.into_iter().map(|dim| position(dim, axes.len())).collect();
            let dims = dims?;
            (0..axes.len()).map(|index| dims.contains(&index)).collect()
        }
        None => vec![true; axes.len()],
    };
    let keeps = shape.len() == axes.len();
    let reduced = axes.iter().zip(&is_reduced).filter(|(_, is_reduced)| **is_reduced);
    let consumed: Vec<Factor> = reduced.flat_map(|(axis, _)| axis.factors().to_vec()).collect();
    let kept = axes.iter().zip(is_reduced).filter_map(|(axis, is_reduced)| match (is_reduced, keeps) {
        (false, _) => Some(axis.clone()),
        (true, true) => Some(Axis::default()),
        (true, false) => None,
    });
    Some(coarsened(kept.collect(), &consumed))
}

/// `[N, C, …]` whose last `count` axes get new sizes.
fn planes(call: &Call<'_>, count: usize) -> Option<Vec<Axis>> {
    let (axes, shape) = (call.first()?, call.shape(call.node.outputs.iter().position(Option::is_some)?)?);
    if axes.len() != shape.len() {
        return None;
    }
    let lead = axes.len().checked_sub(count)?;
    let axis = |index: usize| {
        let axis = &axes[index];
        match (index >= lead, axis.size() == shape[index]) {
            (true, _) => axis.windowed(shape[index], false),
            (false, true) => axis.clone(),
            // The features of `pixel_shuffle`.
            (false, false) => Axis::channel(shape[index]),
        }
    };
    Some((0..axes.len()).map(axis).collect())
}

/// `[N, C, …]`: the batch is kept, features are new, and the window slides over the other axes.
fn convolution(call: &Call<'_>) -> Option<Vec<Axis>> {
    let (axes, shape) = (call.first()?, call.shape(0)?);
    let kernel = call.graph.value(call.value("weight")?).shape.as_deref()?;
    // Without a batch axis, the first one holds features.
    if axes.len() != shape.len() || axes.len() != kernel.len() || axes.len() < 3 {
        return None;
    }
    // Positions among the features, as space-to-depth puts them there, become features.
    let features = axes[1].factors();
    let mut axes = axes.to_vec();
    axes[1] = Axis::default();
    let axes = coarsened(axes, features);
    let axis = |index: usize| match index {
        0 => axes[0].clone(),
        1 => Axis::channel(shape[1]),
        _ => axes[index].windowed(shape[index], kernel[index] == 1),
    };
    Some((0..axes.len()).map(axis).collect())
}

/// Two numbers per axis, before and after, from the last axis on.
fn padded(call: &Call<'_>) -> Option<Vec<Axis>> {
    let (axes, Some(pad)) = (call.first()?, call.ints("pad")) else { return resized(call) };
    let of = |index: usize| {
        let at = 2 * (axes.len() - 1 - index);
        (pad.get(at).copied().unwrap_or(0), pad.get(at + 1).copied().unwrap_or(0))
    };
    let axis = |(index, axis): (usize, &Axis)| match of(index) {
        (0, 0) => axis.clone(),
        (before, after) => axis.padded(before, after),
    };
    Some(axes.iter().enumerate().map(axis).collect())
}

/// Axes that keep their meaning under a new size: padding.
fn resized(call: &Call<'_>) -> Option<Vec<Axis>> {
    let (axes, shape) = (call.first()?, call.shape(0)?);
    if axes.len() != shape.len() {
        return None;
    }
    Some(axes.iter().zip(shape).map(|(axis, &size)| axis.windowed(size, true)).collect())
}

/// The queries' positions, with the values' features.
fn attention(call: &Call<'_>) -> Option<Vec<Axis>> {
    let (query, value) = (call.input("query")?, call.input("value")?);
    let mut axes = query.to_vec();
    let last = axes.len().checked_sub(1)?;
    axes[last] = value.last()?.clone();
    Some(axes)
}

fn permuted(call: &Call<'_>) -> Option<Vec<Axis>> {
    let axes = call.first()?;
    let rank = axes.len();
    let swapped = |a: usize, b: usize| {
        let mut order: Vec<usize> = (0..rank).collect();
        order.swap(a, b);
        order
    };
    let order: Vec<usize> = match call.name() {
        "permute" => call.ints("dims")?.into_iter().map(|dim| position(dim, rank)).collect::<Option<_>>()?,
        "transpose" | "swapdims" => swapped(call.axis("dim0", rank)?, call.axis("dim1", rank)?),
        "swapaxes" => swapped(call.axis("axis0", rank)?, call.axis("axis1", rank)?),
        "movedim" | "moveaxis" => {
            let places = |name: &str| -> Option<Vec<usize>> {
                call.ints(name)?.into_iter().map(|dim| position(dim, rank)).collect()
            };
            let (from, to) = (places("source")?, places("destination")?);
            let mut rest = (0..rank).filter(|index| !from.contains(index));
            let source = |index: usize| match to.iter().position(|&place| place == index) {
                Some(moved) => from.get(moved).copied(),
                None => rest.next(),
            };
            (0..rank).map(source).collect::<Option<_>>()?
        }
        "mT" => swapped(rank.checked_sub(2)?, rank - 1),
        _ => (0..rank).rev().collect(),
    };
    (order.len() == rank).then(|| order.into_iter().map(|index| axes[index].clone()).collect())
}

fn squeezed(call: &Call<'_>) -> Option<Vec<Axis>> {
    let axes = call.first()?;
    let named: Option<Vec<usize>> = match call.ints("dim") {
        Some(dims) => Some(dims.into_iter().map(|dim| position(dim, axes.len())).collect::<Option<_>>()?),
        None => None,
    };
    let goes = |index: usize| axes[index].size() == 1 && named.as_ref().is_none_or(|named| named.contains(&index));
    Some((0..axes.len()).filter(|&index| !goes(index)).map(|index| axes[index].clone()).collect())
}

fn unsqueezed(call: &Call<'_>) -> Option<Vec<Axis>> {
    let mut axes = call.first()?.to_vec();
    let at = call.axis("dim", axes.len() + 1)?;
    axes.insert(at, Axis::default());
    Some(axes)
}

/// New positions are copies, and stand for nothing.
fn expanded(call: &Call<'_>) -> Option<Vec<Axis>> {
    let (axes, shape) = (call.first()?, call.shape(0)?);
    let added = shape.len().checked_sub(axes.len())?;
    let axis = |(index, &size): (usize, &i64)| match index.checked_sub(added).map(|own| &axes[own]) {
        Some(axis) if axis.size() == size => axis.clone(),
        Some(axis) if axis.size() != 1 && axis.is_channel() => Axis::channel(size),
        Some(axis) if axis.size() != 1 => Axis::unknown(size),
        _ => Axis::free(size),
    };
    Some(shape.iter().enumerate().map(axis).collect())
}

fn sliced(call: &Call<'_>) -> Option<Vec<Axis>> {
    let (mut axes, shape) = (call.first()?.to_vec(), call.shape(0)?);
    let dim = match call.node.argument("dim") {
        Some(_) => call.axis("dim", axes.len())?,
        None => 0,
    };
    let size = axes[dim].size();
    let start = match call.node.literal("start") {
        Some(Value::Int(start)) if *start < 0 => (start + size).max(0),
        Some(Value::Int(start)) => *start,
        Some(Value::None) => 0,
        // A start that follows from sizes.
        _ if shape[dim] == size => 0,
        _ => return None,
    };
    axes[dim] = axes[dim].sliced(start, call.int("step").unwrap_or(1), shape[dim]);
    Some(axes)
}

/// The axes without one of them.
fn without(call: &Call<'_>, dim: usize) -> Option<Vec<Axis>> {
    let mut axes = call.first()?.to_vec();
    axes.remove(dim);
    Some(axes)
}

fn parts(call: &Call<'_>) -> Option<Vec<Vec<Axis>>> {
    let axes = call.first()?;
    let dim = call.axis("dim", axes.len())?;
    let mut start = 0;
    let mut results = Vec::new();
    for output in 0..call.node.outputs.len() {
        // Results without a reader have no shape: what follows starts nowhere known.
        let size = call.shape(output).map(|shape| shape[dim]);
        let mut part = axes.to_vec();
        part[dim] = match size {
            Some(size) => axes[dim].sliced(start, 1, size),
            None => Axis::unknown(0),
        };
        start += size.or_else(|| Some(call.shape(0)?[dim]))?;
        results.push(part);
    }
    Some(results)
}

/// What takes the elements along `dim` in another order or number. Features stay features; positions are mixed up.
fn rearranged(call: &Call<'_>) -> Option<Vec<Axis>> {
    let axes = call.first()?;
    let shape = call.shape(call.node.outputs.iter().position(Option::is_some)?)?;
    let dims = match call.ints("dim").or_else(|| call.ints("dims")) {
        Some(dims) => dims.into_iter().map(|dim| position(dim, axes.len())).collect::<Option<Vec<_>>>()?,
        // `sort` and `topk` take the last axis.
        None if matches!(call.name(), "sort" | "topk") => vec![axes.len().checked_sub(1)?],
        None => return None,
    };
    if axes.len() != shape.len() {
        return None;
    }
    let axis = |index: usize| match (dims.contains(&index), axes[index].is_channel()) {
        (false, _) if axes[index].size() == shape[index] => axes[index].clone(),
        (true, true) if axes[index].size() > 1 => Axis::channel(shape[index]),
        _ if shape[index] == 1 => Axis::default(),
        _ => Axis::unknown(shape[index]),
    };
    Some((0..axes.len()).map(axis).collect())
}

/// Tensors one after the other along `dim`.
fn concatenated(call: &Call<'_>, dim: i64) -> Option<Vec<Axis>> {
    let tensors: Vec<&[Axis]> =
        call.values("tensors")?.into_iter().map(|value| call.axes.get(value)).collect::<Option<_>>()?;
    let rank = tensors.first()?.len();
    if tensors.iter().any(|axes| axes.len() != rank) {
        return None;
    }
    let dim = position(dim, rank)?;
    let axis = |index: usize| {
        let own: Vec<Axis> = tensors.iter().map(|axes| axes[index].clone()).collect();
        if index == dim {
            return Axis::concatenated(&own);
        }
        own.into_iter().reduce(|a, b| a.combined(&b)).unwrap_or_default()
    };
    Some((0..rank).map(axis).collect())
}

fn stacked(call: &Call<'_>) -> Option<Vec<Axis>> {
    let tensors: Vec<&[Axis]> =
        call.values("tensors")?.into_iter().map(|value| call.axes.get(value)).collect::<Option<_>>()?;
    let rank = tensors.first()?.len();
    let dim = match call.node.argument("dim") {
        Some(_) => call.axis("dim", rank + 1)?,
        None => 0,
    };
    let combined = |index: usize| tensors.iter().map(|axes| axes[index].clone()).reduce(|a, b| a.combined(&b));
    let mut axes = (0..rank).map(combined).collect::<Option<Vec<_>>>()?;
    // Features of different origin, or the parts of one.
    axes.insert(dim, Axis::channel(tensors.len() as i64));
    Some(axes)
}

fn rolled(call: &Call<'_>) -> Option<Vec<Axis>> {
    let mut axes = call.first()?.to_vec();
    let (shifts, dims) = (call.ints("shifts")?, call.ints("dims")?);
    if shifts.len() != dims.len() {
        return None;
    }
    for (shift, dim) in shifts.into_iter().zip(dims) {
        let dim = position(dim, axes.len())?;
        axes[dim] = axes[dim].rolled(shift);
    }
    Some(axes)
}

/// `[N, C, h, w]` → `[N, C · kernel, positions]`.
fn unfolded(call: &Call<'_>) -> Option<Vec<Axis>> {
    let (axes, shape) = (call.first()?, call.shape(0)?);
    let [batch, _, rows, columns] = axes else { return None };
    let of = |name: &str, index: usize| {
        let values = call.ints(name)?;
        values.get(index).or(values.first()).copied()
    };
    let windows = |axis: &Axis, index: usize| {
        let reach = of("dilation", index)?.checked_mul(of("kernel_size", index)? - 1)?.checked_add(1)?;
        let padded = of("padding", index)?.checked_mul(2)?.checked_add(axis.size())?;
        let count = padded.checked_sub(reach)?.checked_div(of("stride", index)?)?.checked_add(1)?;
        Some(axis.windowed(count, false))
    };
    let (rows, columns) = (windows(rows, 0)?, windows(columns, 1)?);
    let positions = Axis::new(rows.factors().iter().chain(columns.factors()).cloned());
    Some(vec![batch.clone(), Axis::channel(shape[1]), positions])
}

/// `[N, C · kernel, positions]` → `[N, C, h, w]`.
fn folded(call: &Call<'_>) -> Option<Vec<Axis>> {
    let ([batch, _, positions], shape) = (call.first()?, call.shape(0)?) else { return None };
    let Some(Factor::Tokens { before: 0, after: 0, .. }) = positions.tokens() else { return None };
    let [_, channels, rows, columns] = *shape else { return None };
    Some(vec![batch.clone(), Axis::channel(channels), Axis::whole(Role::Row, rows), Axis::whole(Role::Column, columns)])
}
