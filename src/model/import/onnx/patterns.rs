//! Finds what exporters have taken apart: activations, layer normalisation, a linear layer's bias.
//!
//! A Hardswish that is left as `x · clamp(x + 3, 0, 6) / 6` would pass for a rectifier, and guided backpropagation
//! would treat the model as another one than its twin in a `.pt2`.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};
use std::rc::Rc;

use tch::Tensor;

use super::builder::Builder;
use super::value::Known;
use crate::model::ModelError;
use crate::model::program::ProgramArgument;
use crate::torch::Value;

/// `√(2 / π)`, of GELU's approximation by tanh.
const SQRT_2_OVER_PI: f64 = FRAC_2_SQRT_PI * FRAC_1_SQRT_2;

/// An operator that computes what a pattern of several does.
struct Found {
    operator: &'static str,
    arguments: Vec<ProgramArgument>,
    /// A new constant in the place of an argument.
    constant: Option<(usize, Tensor)>,
}

impl Found {
    fn with(operator: &'static str, arguments: Vec<ProgramArgument>) -> Found {
        Found { operator, arguments, constant: None }
    }

    fn of(operator: &'static str, x: &str) -> Option<Found> {
        Some(Found::with(operator, vec![read(x)]))
    }
}

fn read(name: &str) -> ProgramArgument {
    ProgramArgument::Use(name.to_owned())
}

fn literal(value: Value) -> ProgramArgument {
    ProgramArgument::Literal(value)
}

/// The result of an addition, multiplication or division, by one operator where it completes a pattern.
///
/// # Errors
/// The graph grows too large.
pub fn activation(builder: &mut Builder, result: Rc<Known>) -> Result<Rc<Known>, ModelError> {
    if result.is_constant {
        return Ok(result);
    }
    let found = {
        let at = At(builder);
        let name = result.name.as_str();
        at.product_with_gate(name)
            .or_else(|| at.sixth(name))
            .or_else(|| at.gelu(name))
            .or_else(|| at.layer_norm(name, &result))
            .or_else(|| at.parameter(name))
    };
    match found {
        Some(Found { operator, mut arguments, constant }) => {
            if let Some((at, tensor)) = constant {
                arguments[at] = read(&builder.constant(tensor, None).name);
            }
            builder.replace(operator, arguments, &result)
        }
        None => Ok(result),
    }
}

/// Reads the program's nodes backwards from a name.
struct At<'a>(&'a Builder);

impl<'a> At<'a> {
    /// The arguments of the node that computes a value, if its operator is this one.
    fn node(&self, name: &str, operator: &str) -> Option<&'a [ProgramArgument]> {
        let (found, arguments) = self.0.maker(name)?;
        (found == operator).then_some(arguments)
    }

    /// `f(x)` → `x`.
    fn argument_of(&self, name: &str, operator: &str) -> Option<&'a str> {
        value(self.node(name, operator)?.first()?)
    }

    /// `x · y` of two values.
    fn product(&self, name: &str) -> Option<[&'a str; 2]> {
        let [x, y, ..] = self.node(name, "mul")? else { return None };
        Some([value(x)?, value(y)?])
    }

    /// `x · factor`, or `x / (1 / factor)` → `x`.
    fn times(&self, name: &str, factor: f64) -> Option<&'a str> {
        let scaled = |operator: &str, factor: f64| {
            let [x, by, ..] = self.node(name, operator)? else { return None };
            value(x).filter(|_| number(by).is_some_and(|by| near(by, factor)))
        };
        scaled("mul", factor).or_else(|| scaled("div", factor.recip()))
    }

    /// `x + term` → `x`.
    fn plus(&self, name: &str, term: f64) -> Option<&'a str> {
        let [x, by, ..] = self.node(name, "add")? else { return None };
        value(x).filter(|_| number(by).is_some_and(|by| near(by, term)))
    }

    /// `clamp(x + 3, 0, 6)` → `x`.
    fn shifted_relu6(&self, name: &str) -> Option<&'a str> {
        let [x, low, high] = self.node(name, "hardtanh")? else { return None };
        let is_relu6 = number(low) == Some(0.0) && number(high) == Some(6.0);
        self.plus(value(x)?, 3.0).filter(|_| is_relu6)
    }

    /// SiLU, Hardswish, Mish: `x` times a gate of `x`.
    fn product_with_gate(&self, name: &str) -> Option<Found> {
        let [left, right] = self.product(name)?;
        [(left, right), (right, left)].into_iter().find_map(|(x, gate)| {
            let is_of = |found: Option<&str>| found == Some(x);
            if is_of(self.argument_of(gate, "sigmoid")) {
                return Found::of("silu", x);
            }
            if is_of(self.argument_of(gate, "hardsigmoid")) {
                return Found::of("hardswish", x);
            }
            if is_of(self.argument_of(gate, "tanh").and_then(|inner| self.argument_of(inner, "softplus"))) {
                return Found::of("mish", x);
            }
            let sixth = self.times(x, 1.0 / 6.0)?;
            if self.shifted_relu6(gate) == Some(sixth) { Found::of("hardswish", sixth) } else { None }
        })
    }

    /// Hardsigmoid, or Hardswish: a sixth of `clamp(x + 3, 0, 6)`, or of its product with `x`.
    fn sixth(&self, name: &str) -> Option<Found> {
        let whole = self.times(name, 1.0 / 6.0)?;
        if let Some(x) = self.shifted_relu6(whole) {
            return Found::of("hardsigmoid", x);
        }
        let [left, right] = self.product(whole)?;
        let is_gate = |x: &str, gate: &str| self.shifted_relu6(gate) == Some(x);
        if is_gate(left, right) {
            Found::of("hardswish", left)
        } else if is_gate(right, left) {
            Found::of("hardswish", right)
        } else {
            None
        }
    }

    /// GELU: `0.5 · x · (1 + erf(x / √2))`, in any order, or its approximation.
    fn gelu(&self, name: &str) -> Option<Found> {
        let of = |x: &str, gate: &str| {
            let approximate = if self.erf_gate(gate) == Some(x) {
                "none"
            } else if self.tanh_gate(gate, x) {
                "tanh"
            } else {
                return None;
            };
            let arguments = vec![read(x), literal(Value::String(approximate.to_owned()))];
            Some(Found::with("gelu", arguments))
        };
        let either = |[left, right]: [&str; 2]| of(left, right).or_else(|| of(right, left));
        if let Some(twice) = self.times(name, 0.5) {
            return either(self.product(twice)?);
        }
        let [left, right] = self.product(name)?;
        [(left, right), (right, left)].into_iter().find_map(|(half, other)| {
            let whole = self.times(half, 0.5)?;
            // Half of `x`, or half of the gate.
            of(whole, other).or_else(|| of(other, whole))
        })
    }

    /// `1 + erf(x / √2)` → `x`.
    fn erf_gate(&self, name: &str) -> Option<&'a str> {
        self.times(self.argument_of(self.plus(name, 1.0)?, "erf")?, FRAC_1_SQRT_2)
    }

    /// Whether a value is `1 + tanh(√(2 / π) · (x + 0.044715 · x³))`.
    fn tanh_gate(&self, name: &str, x: &str) -> bool {
        let inner = || {
            let inside = self.argument_of(self.plus(name, 1.0)?, "tanh")?;
            if let Some(sum) = self.times(inside, SQRT_2_OVER_PI) {
                let [first, second, ..] = self.node(sum, "add")? else { return None };
                let (first, second) = (value(first)?, value(second)?);
                let cube = if first == x { second } else { first };
                let other = if first == x { first } else { second };
                return Some(other == x && self.is_cube(self.times(cube, 0.044_715)?, x));
            }
            // `(√(2 / π) · x) · (1 + 0.044715 · x²)`
            let [left, right] = self.product(inside)?;
            Some([(left, right), (right, left)].into_iter().any(|(linear, rest)| {
                let square = self.plus(rest, 1.0).and_then(|scaled| self.times(scaled, 0.044_715));
                self.times(linear, SQRT_2_OVER_PI) == Some(x) && square.is_some_and(|square| self.is_square(square, x))
            }))
        };
        inner().unwrap_or(false)
    }

    fn is_power(&self, name: &str, x: &str, exponent: f64) -> bool {
        match self.node(name, "pow") {
            Some([base, by, ..]) => value(base) == Some(x) && number(by) == Some(exponent),
            _ => false,
        }
    }

    fn is_square(&self, name: &str, x: &str) -> bool {
        self.is_power(name, x, 2.0) || self.product(name) == Some([x, x])
    }

    fn is_cube(&self, name: &str, x: &str) -> bool {
        let is_product = |[left, right]: [&str; 2]| {
            (left == x && self.is_square(right, x)) || (right == x && self.is_square(left, x))
        };
        self.is_power(name, x, 3.0) || self.product(name).is_some_and(is_product)
    }

    /// `(x − mean(x)) / √(mean((x − mean(x))²) + ε)`, over the last axis.
    fn layer_norm(&self, name: &str, result: &Known) -> Option<Found> {
        let [centred, deviation, ..] = self.node(name, "div")? else { return None };
        let (centred, deviation) = (value(centred)?, value(deviation)?);
        let [variance, epsilon, ..] = self.node(self.argument_of(deviation, "sqrt")?, "add")? else { return None };
        let epsilon = number(epsilon)?;
        let square = self.mean_over_last(value(variance)?, result.rank())?;
        let x = self.centred(centred, result.rank())?;
        let is_variance = self.is_square(square, centred)
            || self.node(square, "pow").and_then(|arguments| self.centred(value(arguments.first()?)?, result.rank()))
                == Some(x);
        let size = result.fixed_size(result.rank().checked_sub(1)?)?;
        if !is_variance || !(0.0..1e-2).contains(&epsilon) {
            return None;
        }
        let arguments = vec![
            read(x),
            literal(Value::Ints(vec![size])),
            literal(Value::None),
            literal(Value::None),
            literal(Value::Float(epsilon)),
        ];
        Some(Found::with("layer_norm", arguments))
    }

    /// `x − mean(x)` → `x`.
    fn centred(&self, name: &str, rank: usize) -> Option<&'a str> {
        let [x, mean, ..] = self.node(name, "sub")? else { return None };
        value(x).filter(|x| value(mean).and_then(|mean| self.mean_over_last(mean, rank)) == Some(*x))
    }

    fn mean_over_last(&self, name: &str, rank: usize) -> Option<&'a str> {
        let [x, axes, keeps, ..] = self.node(name, "mean")? else { return None };
        let is_last = match axes {
            ProgramArgument::Literal(Value::Ints(axes)) => *axes == [-1] || *axes == [rank as i64 - 1],
            _ => false,
        };
        value(x).filter(|_| is_last && matches!(keeps, ProgramArgument::Literal(Value::Bool(true))))
    }

    /// A constant that is a parameter of the layer before: the bias of a linear layer or of a convolution, the weight
    /// and the bias of a layer normalisation.
    fn parameter(&self, name: &str) -> Option<Found> {
        let (operator, [left, right, ..]) = self.0.maker(name)? else { return None };
        let (left, right) = (value(left)?, value(right)?);
        let constants = &self.0.constants;
        let (x, parameter) = if constants.contains_key(right) { (left, right) } else { (right, left) };
        let size = constants.get(parameter)?.0.size();
        let (layer, arguments) = self.0.maker(x)?;
        let is_absent = |at: usize| matches!(arguments.get(at), Some(ProgramArgument::Literal(Value::None)));
        let weight = || Some(constants.get(value(arguments.get(1)?)?)?.0.size());
        let (operator, at, wanted) = match (layer, operator) {
            ("linear", "add") => ("linear", 2, vec![*weight()?.first()?]),
            ("conv2d", "add") => {
                // As a picture, [1, C, 1, 1].
                let channels = *weight()?.first()?;
                let is_bias = size == [1, channels, 1, 1] || size == [channels, 1, 1];
                let flat = constants.get(parameter)?.0.f_reshape([-1]).ok()?;
                let constant = Some((2, flat));
                let arguments = arguments.to_vec();
                return (is_bias && is_absent(2)).then_some(Found { operator: "conv2d", arguments, constant });
            }
            ("layer_norm", "mul" | "add") => {
                let ProgramArgument::Literal(Value::Ints(shape)) = arguments.get(1)? else { return None };
                // The weight is multiplied before the bias is added.
                if operator == "mul" && !is_absent(3) {
                    return None;
                }
                ("layer_norm", if operator == "mul" { 2 } else { 3 }, shape.clone())
            }
            _ => return None,
        };
        if !is_absent(at) || size != wanted {
            return None;
        }
        let mut arguments = arguments.to_vec();
        arguments[at] = read(parameter);
        Some(Found::with(operator, arguments))
    }
}

fn value(argument: &ProgramArgument) -> Option<&str> {
    match argument {
        ProgramArgument::Use(name) => Some(name),
        _ => None,
    }
}

fn number(argument: &ProgramArgument) -> Option<f64> {
    match argument {
        ProgramArgument::Literal(Value::Float(number)) => Some(*number),
        ProgramArgument::Literal(Value::Int(number)) => Some(*number as f64),
        _ => None,
    }
}

/// Whether two numbers are equal in half precision, in which an exporter may have written one.
fn near(found: f64, wanted: f64) -> bool {
    (found - wanted).abs() <= 1e-3 * wanted.abs()
}
