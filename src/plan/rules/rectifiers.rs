//! ReLU and its relatives: a gradient passes where the gate is open.
//!
//! Where the result tells whether the gate was open, the result is saved: it is in memory anyway. Otherwise the gate
//! itself is saved, one byte for each element; for a fused convolution, one bit for each element, so that the result
//! can be released.

use tch::Tensor;

use crate::plan::rule::{Gradient, Parts, Saved, Slot};
use crate::torch::{Bounds, Gates, Operator, OperatorError, PendingMask, Value, add_clamped, gate};

use super::arguments::{first, number, optional_number};
use super::explicit::{Run, Single, with_reverse};

/// The saved state of `relu`, `relu6`, `hardtanh` and `threshold`.
pub(in crate::plan) struct Gate {
    source: GateSource,
    guided: bool,
}

/// What the gate is computed from.
enum GateSource {
    Result(Tensor, Bounds),
    Bits(Gates),
}

impl Gate {
    /// The gate of `result`, as bits where possible; `result` can then be released.
    pub fn of(result: &Tensor, bounds: Bounds, guided: bool) -> Result<Self, OperatorError> {
        let bits = Gates::of(result, bounds)?;
        Ok(Gate {
            source: bits.map_or_else(|| GateSource::Result(result.shallow_clone(), bounds), GateSource::Bits),
            guided,
        })
    }

    /// The gate from bits.
    pub fn of_bits(bits: Gates, guided: bool) -> Self {
        Gate { source: GateSource::Bits(bits), guided }
    }

    /// Adds `other` to `sum` and clamps, reusing the memory of `sum`, and returns the result with its gate.
    pub fn of_sum(sum: Tensor, other: &Tensor, bounds: Bounds, guided: bool) -> Result<(Tensor, Self), OperatorError> {
        match Gates::of_sum(sum, other, bounds)? {
            Ok((result, bits)) => Ok((result, Gate::of_bits(bits, guided))),
            Err(sum) => {
                let result = add_clamped(sum, other, bounds)?;
                let gate = Gate::of(&result, bounds, guided)?;
                Ok((result, gate))
            }
        }
    }

    /// The mask for a kernel that applies it while it computes a guided gradient. `None` without bits, and for plain
    /// gradients: most of a plain gradient may pass, and a dense product is then faster.
    pub fn mask(&self, gradient: Gradient) -> Option<PendingMask<'_>> {
        match &self.source {
            GateSource::Bits(gates) if self.is_guided(gradient) => Some(PendingMask { gates, guided: true }),
            _ => None,
        }
    }

    fn is_guided(&self, gradient: Gradient) -> bool {
        self.guided && gradient == Gradient::Guided
    }

    /// The gradient of the gate's input, given the terms of its result's gradient; `None` is zero.
    pub fn pass(&self, parts: &[Tensor], gradient: Gradient) -> Result<Option<Tensor>, OperatorError> {
        if parts.is_empty() {
            return Ok(None);
        }
        let guided = self.is_guided(gradient);
        match &self.source {
            GateSource::Result(result, bounds) => gate(parts, result, *bounds, guided),
            GateSource::Bits(gates) => gates.pass(parts, guided),
        }
        .map(Some)
    }
}

impl Saved for Gate {
    fn reverse(&self, results: &[Option<Tensor>], gradient: Gradient) -> Result<Vec<Option<Tensor>>, OperatorError> {
        let grad_output: Vec<Tensor> = results.iter().flatten().map(Tensor::shallow_clone).collect();
        Ok(vec![self.pass(&grad_output, gradient)?])
    }

    fn reverse_parts(&self, results: Vec<Parts>, gradient: Gradient) -> Result<Vec<Option<Tensor>>, OperatorError> {
        Ok(vec![self.pass(results.first().map_or(&[], Parts::as_slice), gradient)?])
    }
}

/// `relu(self)`.
pub(in crate::plan) fn relu(operator: Operator, guided: bool) -> Run {
    gated(operator, guided, |_, result| Ok((Bounds::RELU, result.shallow_clone())))
}

/// `relu6(self)`; the gate is open strictly between the bounds.
pub(in crate::plan) fn relu6(operator: Operator, guided: bool) -> Run {
    gated(operator, guided, |_, result| Ok((Bounds { low: 0.0, high: Some(6.0) }, result.shallow_clone())))
}

/// `hardtanh(self, min_val, max_val)`; the gate is open strictly between the bounds.
pub(in crate::plan) fn hardtanh(operator: Operator, guided: bool) -> Run {
    gated(operator, guided, |arguments, result| {
        let bounds = Bounds { low: number(arguments, 1)?, high: Some(number(arguments, 2)?) };
        Ok((bounds, result.shallow_clone()))
    })
}

/// `threshold(self, threshold, value)`.
pub(in crate::plan) fn threshold(operator: Operator, guided: bool) -> Run {
    gated(operator, guided, |arguments, result| {
        let (threshold, value) = (number(arguments, 1)?, number(arguments, 2)?);
        let source = if value <= threshold { result } else { first(arguments)? };
        Ok((Bounds { low: threshold, high: None }, source.shallow_clone()))
    })
}

/// A rule with [`Gate`]; `bounds` returns the bounds and the tensor to compare with them.
fn gated(
    operator: Operator,
    guided: bool,
    bounds: impl Fn(&[Value], &Tensor) -> Result<(Bounds, Tensor), OperatorError> + Send + 'static,
) -> Run {
    Box::new(move |arguments, wanted| {
        if wanted != [Slot { argument: 0, element: None }] {
            return Ok(None);
        }
        let output = operator.call_tensor(arguments)?;
        let (bounds, result) = bounds(arguments, &output)?;
        Ok(Some((
            vec![Value::Tensor(output)],
            Some(Box::new(Gate { source: GateSource::Result(result, bounds), guided })),
        )))
    })
}

/// `clamp(self, min?, max?)`, `clamp_min(self, min)`; the gate is open at the bounds too.
pub(in crate::plan) fn clamp(operator: Operator) -> Single {
    Box::new(move |arguments| {
        let input = first(arguments)?;
        let above = optional_number(arguments, 1)?.map(|low| input.f_ge(low)).transpose()?;
        let below = optional_number(arguments, 2)?.map(|high| input.f_le(high)).transpose()?;
        let gate = match (above, below) {
            (Some(above), Some(below)) => above.f_logical_and(&below)?,
            (Some(gate), None) | (None, Some(gate)) => gate,
            (None, None) => input.f_ones_like()?.f_to_kind(tch::Kind::Bool)?,
        };
        let result = operator.call_tensor(arguments)?;
        with_reverse(result, move |grad_output| Ok(grad_output.f_where_scalarother(&gate, 0)?))
    })
}

/// `leaky_relu(self, negative_slope)`.
pub(in crate::plan) fn leaky_relu(operator: Operator) -> Single {
    Box::new(move |arguments| {
        let slope = number(arguments, 1)?;
        let result = operator.call_tensor(arguments)?;
        let gate: Tensor = if slope >= 0.0 { &result } else { first(arguments)? }.shallow_clone();
        with_reverse(result, move |grad_output| Ok(gate.f_leaky_relu_backward(grad_output, slope, false)?))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tch::Kind;

    use super::*;
    use crate::plan::rules::against_tape::{Layout, TestNode, Within, any, slot};

    /// Numbers on both sides of the bounds 0 and 6, many of them at a bound.
    fn around_the_bounds(layout: Layout, shape: &[i64], kind: Kind) -> Value {
        (layout.random(shape, kind) * 6.0).round().clamp(-7.0, 7.0).into()
    }

    fn rectifier() -> impl Strategy<Value = (&'static str, Vec<(&'static str, Value)>)> {
        let float = |v: f64| Value::Float(v);
        prop::sample::select(vec![
            ("aten::relu", vec![]),
            ("aten::relu6", vec![]),
            ("aten::hardtanh", vec![("min_val", Value::Int(0)), ("max_val", Value::Int(6))]),
            ("aten::hardtanh", vec![("min_val", float(-1.5)), ("max_val", float(2.0))]),
            ("aten::clamp", vec![("min", Value::Int(0)), ("max", float(6.0))]),
            ("aten::clamp", vec![("min", float(0.0))]),
            ("aten::clamp", vec![("max", float(6.0))]),
            ("aten::clamp_min", vec![("min", Value::Int(0))]),
            ("aten::threshold", vec![("threshold", Value::Int(0)), ("value", Value::Int(0))]),
            ("aten::threshold", vec![("threshold", float(1.0)), ("value", float(-3.0))]),
            ("aten::threshold", vec![("threshold", float(1.0)), ("value", float(20.0))]),
            ("aten::leaky_relu", vec![("negative_slope", float(0.01))]),
            ("aten::leaky_relu", vec![("negative_slope", float(0.0))]),
            ("aten::leaky_relu", vec![("negative_slope", float(-0.5))]),
        ])
    }

    proptest! {
        #[test]
        fn every_rectifier_agrees_with_its_tape(
            (name, literals) in rectifier(),
            shape in any::shape(),
            kind in any::kind(),
            input in any::layout(),
            grad_output in any::layout(),
            is_rectifier: bool,
        ) {
            let mut named = vec![("self", around_the_bounds(input, &shape, kind))];
            named.extend(literals);
            let mut test = TestNode::new(name, "", named);
            if is_rectifier {
                test = test.rectifier();
            }
            test.agrees(true, &[slot(0)], grad_output, Within::Equal);
        }
    }

    #[test]
    fn a_guided_leaky_relu_keeps_its_own_slope_and_takes_positive_gradients_only() {
        use crate::plan::rule::Gradient;
        let x = Tensor::from_slice(&[-2.0f32, -2.0, 3.0, 3.0]);
        let slope = ("negative_slope", Value::Float(0.25));
        let test = TestNode::new("aten::leaky_relu", "", vec![("self", x.into()), slope]).rectifier();
        let (_, saved) = test.explicit(true).forward(&test.values, &[slot(0)]).unwrap();
        let gradient = Some(Tensor::from_slice(&[4.0f32, -4.0, 4.0, -4.0]));
        let found = saved.unwrap().reverse(&[gradient], Gradient::Guided).unwrap();
        assert_eq!(Vec::<f32>::try_from(found[0].as_ref().unwrap()).unwrap(), [1.0, 0.0, 4.0, 0.0]);
    }

    #[test]
    fn a_clamp_that_is_no_rectifier_is_never_guided() {
        use crate::plan::rule::Gradient;
        let x = Tensor::from_slice(&[0.5f32, 2.0]);
        let test = TestNode::new(
            "aten::clamp",
            "",
            vec![("self", x.into()), ("min", Value::Float(-1.0)), ("max", Value::Float(1.0))],
        );
        let (_, saved) = test.explicit(true).forward(&test.values, &[slot(0)]).unwrap();
        let found = saved.unwrap().reverse(&[Some(Tensor::from_slice(&[-3.0f32, -3.0]))], Gradient::Guided).unwrap();
        assert_eq!(Vec::<f32>::try_from(found[0].as_ref().unwrap()).unwrap(), [-3.0, 0.0]);
    }
}
