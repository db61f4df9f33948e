//! Finds attention that exporters took apart: `softmax(q · kᵀ · scale + mask) · v` becomes the operator that a
//! `.pt2` has for it, which does not store the weights, `[N, heads, tokens, tokens]`.

use std::collections::HashSet;
use std::rc::Rc;

use tch::Kind;

use super::builder::Builder;
use super::value::Known;
use crate::model::ModelError;
use crate::model::program::ProgramArgument;
use crate::torch::Value;

/// `torch.contiguous_format`.
const CONTIGUOUS: i64 = 0;

/// What attention computes with, by names of the program.
struct Attention {
    query: String,
    /// `kᵀ`, `[N, heads, channels, tokens]`.
    turned_key: String,
    value: String,
    mask: Option<String>,
    scale: f64,
}

/// The product of attention's weights with values, by the one operator where it completes attention.
///
/// # Errors
/// The graph grows too large.
pub fn fused(builder: &mut Builder, product: Rc<Known>) -> Result<Rc<Known>, ModelError> {
    let Some(found) = find(builder, &product.name) else { return Ok(product) };
    let key = key(builder, &found.turned_key)?;
    let mask = found.mask.map_or(ProgramArgument::Literal(Value::None), ProgramArgument::Use);
    let arguments = vec![
        ProgramArgument::Use(found.query),
        ProgramArgument::Use(key),
        ProgramArgument::Use(found.value),
        mask,
        ProgramArgument::Literal(Value::Float(0.0)),
        ProgramArgument::Literal(Value::Bool(false)),
        ProgramArgument::Literal(Value::Float(found.scale)),
    ];
    builder.replace("scaled_dot_product_attention", arguments, &product)
}

/// The key, `[N, heads, tokens, channels]`, with the channels of a token beside each other in memory.
fn key(builder: &mut Builder, turned: &str) -> Result<String, ModelError> {
    let literal = |number| ProgramArgument::Literal(Value::Int(number));
    let is_view = match builder.maker(turned) {
        Some(("permute", [ProgramArgument::Use(key), ProgramArgument::Literal(Value::Ints(order))])) => {
            if *order == [0, 1, 3, 2] {
                return Ok(key.clone());
            }
            true
        }
        _ => false,
    };
    let key = builder.add("transpose.int", vec![ProgramArgument::Use(turned.to_owned()), literal(-2), literal(-1)])?;
    if is_view {
        return Ok(key);
    }
    builder.add("clone", vec![ProgramArgument::Use(key), literal(CONTIGUOUS)])
}

fn find(builder: &Builder, product: &str) -> Option<Attention> {
    let (weights, value) = operands(builder, product, "matmul")?;
    let [scores, ProgramArgument::Literal(Value::Int(-1 | 3)), ..] = arguments(builder, weights, "softmax")? else {
        return None;
    };
    let (scores, mask) = without_mask(builder, used(scores)?);
    let (scores, outer) = without_scale(builder, scores);
    let (query, turned_key) = operands(builder, scores, "matmul")?;
    let (query, of_query) = without_scale(builder, query);
    let (turned_key, of_key) = without_scale(builder, turned_key);
    let found = Attention {
        query: query.to_owned(),
        turned_key: turned_key.to_owned(),
        value: value.to_owned(),
        mask: mask.map(str::to_owned),
        scale: outer * of_query * of_key,
    };
    fits(builder, &found, product).then_some(found)
}

/// Whether the operator takes these tensors: `[N, heads, tokens, channels]` of one dtype, without broadcasting but that
/// of the mask.
fn fits(builder: &Builder, found: &Attention, product: &str) -> bool {
    let shape = |name: &str| builder.shape(name);
    let (Some((kind, queries)), Some((_, keys))) = (shape(&found.query), shape(&found.turned_key)) else {
        return false;
    };
    let (Some((_, values)), Some((_, results))) = (shape(&found.value), shape(product)) else { return false };
    let mask = found.mask.as_deref().and_then(shape);
    let of = |sizes: &[Vec<i64>], run: usize| sizes[run.min(sizes.len() - 1)].clone();
    matches!(kind, Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16)
        && [&found.turned_key, &found.value].iter().all(|name| shape(name).is_some_and(|(other, _)| other == kind))
        && (0..builder.runs()).all(|run| {
            let (query, key, value) = (of(&queries, run), of(&keys, run), of(&values, run));
            let (&[batch, heads, tokens, channels], &[_, _, _, others]) = (query.as_slice(), key.as_slice()) else {
                return false;
            };
            let &[.., features] = value.as_slice() else { return false };
            key == [batch, heads, channels, others]
                && value == [batch, heads, others, features]
                && of(&results, run) == [batch, heads, tokens, features]
                && mask.as_ref().is_none_or(|(mask_kind, sizes)| {
                    let size = of(sizes, run);
                    let scores = [batch, heads, tokens, others];
                    *mask_kind == kind
                        && (2..=4).contains(&size.len())
                        && size.iter().rev().zip(scores.iter().rev()).all(|(&own, &full)| own == 1 || own == full)
                })
        })
}

/// `x + mask` → `x` and the mask, which does not depend on the picture.
fn without_mask<'a>(builder: &'a Builder, name: &'a str) -> (&'a str, Option<&'a str>) {
    match operands(builder, name, "add") {
        Some((x, mask)) if !is_of_picture(builder, mask) => (x, Some(mask)),
        Some((mask, x)) if !is_of_picture(builder, mask) => (x, Some(mask)),
        _ => (name, None),
    }
}

/// Whether a value depends on more of the picture than its size.
fn is_of_picture(builder: &Builder, name: &str) -> bool {
    let (mut waiting, mut seen) = (vec![name], HashSet::new());
    while let Some(name) = waiting.pop() {
        if !seen.insert(name) || builder.constants.contains_key(name) {
            continue;
        }
        let Some(&at) = builder.defined_by.get(name) else { return true };
        let node = &builder.made[at].node;
        if node.operator_name() != "sym_size" {
            waiting.extend(node.uses());
        }
    }
    false
}

/// `x · factor`, or `x / (1 / factor)` → `x` and the factor.
fn without_scale<'a>(builder: &'a Builder, name: &'a str) -> (&'a str, f64) {
    let scaled = |operator: &str| match arguments(builder, name, operator)? {
        [x, ProgramArgument::Literal(Value::Float(by)), ..] => Some((used(x)?, *by)),
        [x, ProgramArgument::Literal(Value::Int(by)), ..] => Some((used(x)?, *by as f64)),
        _ => None,
    };
    let found = scaled("mul").or_else(|| scaled("div").map(|(x, by)| (x, by.recip())));
    found.filter(|(_, factor)| factor.is_finite()).unwrap_or((name, 1.0))
}

fn arguments<'a>(builder: &'a Builder, name: &str, operator: &str) -> Option<&'a [ProgramArgument]> {
    builder.maker(name).filter(|(found, _)| *found == operator).map(|(_, arguments)| arguments)
}

/// The two tensors that an operator reads.
fn operands<'a>(builder: &'a Builder, name: &str, operator: &str) -> Option<(&'a str, &'a str)> {
    match arguments(builder, name, operator)? {
        [x, y, ..] => Some((used(x)?, used(y)?)),
        _ => None,
    }
}

fn used(argument: &ProgramArgument) -> Option<&str> {
    match argument {
        ProgramArgument::Use(name) => Some(name),
        _ => None,
    }
}
