//! `linear` with a constant weight, laid out for the processor once.
//!
//! Either for oneDNN's operator, as ATen carries it, `mkldnn::_linear_pointwise`, or for camlens's own product, whichever is faster.
//! ATen's own `linear` asks MKL, which is several times slower on processors that are not Intel's. The gradient to the input is
//! another `linear`, of the transposed weight; or the sum of those rows of the weight whose gradient is not zero, of which a classifier's
//! last layer has one. Inputs of few rows are multiplied with the weight as it is: reading it is what takes the time, and nothing else
//! needs memory.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tch::{Device, Kind, Tensor};

use crate::model::node::{Argument, Node, ValueId};
use crate::plan::rule::{Gradient, Parts, Ran, Rule, Saved, Slot};
use crate::torch::{
    Call, Operator, OperatorError, Value, can_pack, has_gemm_kernels, has_onednn_kernels, linear, linear_few_rows,
    linear_input_gradient, linear_weight,
};

use super::autotune::{Candidate, bytes, fastest, in_float, is_finite, sparingly};
use crate::plan::rules::arguments::first;
use crate::plan::rules::tape::TapeRule;

/// The place of a call's input.
const INPUT: usize = 0;
/// While inputs have no more rows, the weight is read as it is. Where the first gradient has no more, and half of its numbers are
/// zero, the rows of the weight are summed; later gradients take as long as they have numbers that are not.
const FEW_ROWS: i64 = 16;

/// A weight `[outputs, inputs]`, laid out at its first use. Plans of one model share it.
pub(in crate::plan) struct PackedWeight {
    weight: Tensor,
    forward: Option<Packed>,
    back: Option<Packed>,
}

impl PackedWeight {
    pub fn new(weight: &Tensor) -> Self {
        PackedWeight { weight: weight.shallow_clone(), forward: None, back: None }
    }

    /// Whether this is that tensor.
    pub fn is_of(&self, weight: &Tensor) -> bool {
        self.weight.data_ptr() == weight.data_ptr()
            && self.weight.size() == weight.size()
            && self.weight.stride() == weight.stride()
    }

    /// For `input` and any other of no more rows; where it has more than a few, for any other.
    fn forward(&mut self, input: &Tensor, operators: &Operators) -> Result<&Packed, OperatorError> {
        let suits = |packed: &Packed| !matches!(packed, Packed::Rows(_)) || rows(input) <= FEW_ROWS;
        let packed = match self.forward.take().filter(suits) {
            Some(packed) => packed,
            None => sparingly(|| Packed::choose_forward(&self.weight.f_contiguous()?, input, operators))?,
        };
        Ok(self.forward.insert(packed))
    }

    /// For the gradient `given` and any other.
    fn back(&mut self, given: &Tensor, operators: &Operators) -> Result<&Packed, OperatorError> {
        let packed = match self.back.take() {
            Some(packed) => packed,
            None => sparingly(|| Packed::choose_back(&self.weight, given, operators))?,
        };
        Ok(self.back.insert(packed))
    }
}

/// oneDNN's operators.
struct Operators {
    linear: Operator,
    reorder: Operator,
}

impl Operators {
    fn find() -> Result<Self, OperatorError> {
        Ok(Operators {
            linear: Operator::find("mkldnn::_linear_pointwise", "")?,
            reorder: Operator::find("mkldnn::_reorder_linear_weight", "")?,
        })
    }
}

/// A weight laid out for one of several ways.
#[derive(Debug)]
enum Packed {
    OneDnn(Tensor),
    Panels {
        weight: Tensor,
        outputs: i64,
    },
    /// Forward, by the weight as it is.
    Rows(Tensor),
    /// Back, by the weight as it is.
    Sums(Tensor),
}

impl Packed {
    /// The faster way for a `weight`, tried on `input`.
    fn choose(weight: &Tensor, input: &Tensor, operators: &Operators) -> Result<Self, OperatorError> {
        fastest(Self::candidates(weight, rows(input), operators), Self::size, |way| {
            let call = way.call(&Value::None, operators)?;
            Ok(move || call.run(input))
        })
    }

    /// The way forward: of few rows by the weight as it is, which nothing needs to be laid out for.
    fn choose_forward(weight: &Tensor, input: &Tensor, operators: &Operators) -> Result<Self, OperatorError> {
        if rows(input) <= FEW_ROWS && has_gemm_kernels(weight.f_kind()?) {
            return Ok(Packed::Rows(weight.shallow_clone()));
        }
        Self::choose(weight, input, operators)
    }

    /// The way back: where little of a small gradient is not zero, by the sum of rows of the weight as it is.
    fn choose_back(weight: &Tensor, given: &Tensor, operators: &Operators) -> Result<Self, OperatorError> {
        let count = given.f_count_nonzero(None)?.f_int64_value(&[])?;
        let is_sparse = rows(given) <= FEW_ROWS && 2 * count as usize <= given.numel();
        // Infinite or NaN, it would make NaN of a zero.
        if is_sparse && has_gemm_kernels(weight.f_kind()?) && is_finite(weight)? {
            return Ok(Packed::Sums(weight.f_contiguous()?));
        }
        Self::choose(&weight.f_transpose(0, 1)?.f_contiguous()?, given, operators)
    }

    fn candidates<'a>(weight: &'a Tensor, rows: i64, operators: &'a Operators) -> Vec<Candidate<'a, Self>> {
        let one_dnn = move || {
            let arguments = [Value::Tensor(weight.shallow_clone()), Value::Int(rows)];
            Ok(Some(Packed::OneDnn(operators.reorder.call_tensor(&arguments)?)))
        };
        let panels = move || {
            let &[outputs, inputs] = weight.size().as_slice() else { return Ok(None) };
            let suits = can_pack(weight.f_kind()?, inputs);
            Ok(if suits { Some(Packed::Panels { weight: linear_weight(weight)?, outputs }) } else { None })
        };
        vec![Candidate::new(one_dnn), Candidate::new(panels)]
    }

    /// How many bytes it takes.
    fn size(&self) -> usize {
        match self {
            Packed::OneDnn(weight) | Packed::Panels { weight, .. } => bytes(weight),
            Packed::Rows(weight) | Packed::Sums(weight) => bytes(weight),
        }
    }

    fn call(&self, bias: &Value, operators: &Operators) -> Result<LinearCall, OperatorError> {
        Ok(match self {
            Packed::OneDnn(weight) => {
                let (input, weight) = (Value::Tensor(Tensor::new()), Value::Tensor(weight.shallow_clone()));
                let (name, scalars) = (Value::String("none".into()), Value::Floats(Vec::new()));
                let arguments = [input, weight, bias.clone(), name, scalars, Value::None];
                LinearCall::OneDnn(Call::new(&operators.linear, &arguments)?)
            }
            Packed::Panels { weight, outputs } => {
                LinearCall::Panels { weight: weight.shallow_clone(), outputs: *outputs, bias: in_float(bias.tensor())? }
            }
            Packed::Rows(weight) => LinearCall::Rows { weight: weight.shallow_clone(), bias: in_float(bias.tensor())? },
            Packed::Sums(weight) => LinearCall::Sums(weight.shallow_clone()),
        })
    }
}

/// A way with everything but the input.
#[derive(Debug)]
enum LinearCall {
    OneDnn(Call),
    Panels { weight: Tensor, outputs: i64, bias: Option<Tensor> },
    Rows { weight: Tensor, bias: Option<Tensor> },
    Sums(Tensor),
}

impl LinearCall {
    fn run(&self, input: &Tensor) -> Result<Tensor, OperatorError> {
        let input = input.f_contiguous()?;
        match self {
            LinearCall::OneDnn(call) => call.call([(INPUT, &input)]),
            LinearCall::Panels { weight, outputs, bias } => linear(&input, weight, *outputs, bias.as_ref(), None),
            LinearCall::Rows { weight, bias } => linear_few_rows(&input, weight, bias.as_ref()),
            LinearCall::Sums(weight) => linear_input_gradient(&input, weight),
        }
    }
}

/// The rule. The weight and the bias are those that it was made with.
pub(in crate::plan) struct PackedLinear {
    linear: Arc<Linear>,
    bias: Value,
    tape: TapeRule,
}

struct Linear {
    operators: Operators,
    weight: Arc<Mutex<PackedWeight>>,
    /// `[outputs, inputs]`.
    size: [i64; 2],
    kind: Kind,
    forward: Mutex<Option<LinearCall>>,
    back: Mutex<Option<LinearCall>>,
}

impl PackedLinear {
    /// The weight and the bias of a `linear` that this rule is for: both constant, or no bias, on the CPU, in float32 or in a bfloat16
    /// that the processor has.
    pub fn read<'t>(node: &Node, constant: impl Fn(ValueId) -> Option<&'t Tensor>) -> Option<(&'t Tensor, Value)> {
        let is_linear = node.operation.aten().is_some_and(|o| o.name() == "aten::linear");
        let [Argument::Use(_), Argument::Use(weight), bias] = node.arguments.as_slice() else { return None };
        let is = |tensor: &Tensor, kind| tensor.f_kind().is_ok_and(|k| k == kind) && tensor.device() == Device::Cpu;
        let weight = constant(*weight).filter(|weight| weight.dim() == 2 && weight.numel() > 0)?;
        let kind = weight.f_kind().ok().filter(|&kind| has_onednn_kernels(kind) && is(weight, kind))?;
        let bias = match bias {
            Argument::Literal(Value::None) => Value::None,
            Argument::Use(bias) => Value::Tensor(constant(*bias).filter(|bias| is(bias, kind))?.shallow_clone()),
            _ => return None,
        };
        is_linear.then_some((weight, bias))
    }

    /// The rule of a node that can be [read](PackedLinear::read).
    pub fn new(node: &Node, weight: Arc<Mutex<PackedWeight>>, bias: Value) -> Result<Self, OperatorError> {
        let (size, kind) = {
            let weight = &lock(&weight).weight;
            (weight.size(), weight.f_kind()?)
        };
        let &[outputs, inputs] = size.as_slice() else {
            return Err(OperatorError::Unsupported { operator: node.name.clone() });
        };
        let linear = Linear {
            operators: Operators::find()?,
            weight,
            size: [outputs, inputs],
            kind,
            forward: Mutex::new(None),
            back: Mutex::new(None),
        };
        Ok(PackedLinear { linear: Arc::new(linear), bias, tape: TapeRule::new(node.operation.clone(), false) })
    }
}

impl Rule for PackedLinear {
    fn forward(&self, arguments: &[Value], wanted: &[Slot]) -> Result<Ran, OperatorError> {
        let input = first(arguments)?;
        let size = input.size();
        let fits = input.f_kind()? == self.linear.kind
            && size.len() >= 2
            && size.last() == Some(&self.linear.size[1])
            && input.numel() > 0
            && wanted.iter().all(|slot| slot.argument == 0);
        if !fits {
            return self.tape.forward(arguments, wanted);
        }
        let result = self.linear.run(input, &self.bias)?;
        if wanted.is_empty() {
            return Ok((vec![Value::Tensor(result)], None));
        }
        Ok((vec![Value::Tensor(result)], Some(Box::new(Back(Arc::clone(&self.linear))))))
    }
}

/// The way back: of the input only the shape mattered, and the gradient's tells it.
struct Back(Arc<Linear>);

impl Saved for Back {
    fn reverse(&self, results: &[Option<Tensor>], _: Gradient) -> Result<Vec<Option<Tensor>>, OperatorError> {
        let given = results.first().and_then(Option::as_ref);
        Ok(vec![given.map(|given| self.0.input_gradient(given)).transpose()?])
    }

    /// As rows of one gradient: reading the weight is what takes the time.
    fn reverse_each(&self, each: Vec<Vec<Parts>>, _: Gradient) -> Result<Vec<Vec<Option<Tensor>>>, OperatorError> {
        let whole = |results: Vec<Parts>| results.into_iter().next().map_or(Ok(None), Parts::into_sum);
        let given: Vec<Option<Tensor>> = each.into_iter().map(whole).collect::<Result<_, _>>()?;
        let there: Vec<&Tensor> = given.iter().flatten().collect();
        let mut found = match there.as_slice() {
            [] => Vec::new(),
            [one] => vec![self.0.input_gradient(one)?],
            several => self.0.input_gradient(&Tensor::f_cat(several, 0)?)?.f_chunk(several.len() as i64, 0)?,
        }
        .into_iter();
        Ok(given.iter().map(|given| vec![given.as_ref().and_then(|_| found.next())]).collect())
    }
}

impl Linear {
    /// The bias is that of the first run.
    fn run(&self, input: &Tensor, bias: &Value) -> Result<Tensor, OperatorError> {
        let mut forward = lock(&self.forward);
        let suits = |call: &LinearCall| !matches!(call, LinearCall::Rows { .. }) || rows(input) <= FEW_ROWS;
        let call = match forward.take().filter(suits) {
            Some(call) => call,
            None => lock(&self.weight).forward(input, &self.operators)?.call(bias, &self.operators)?,
        };
        forward.insert(call).run(input)
    }

    fn input_gradient(&self, given: &Tensor) -> Result<Tensor, OperatorError> {
        let mut back = lock(&self.back);
        let call = match back.take() {
            Some(call) => call,
            None => lock(&self.weight).back(given, &self.operators)?.call(&Value::None, &self.operators)?,
        };
        back.insert(call).run(given)
    }
}

/// All axes but the last.
fn rows(tensor: &Tensor) -> i64 {
    let size = tensor.size();
    size.iter().take(size.len().saturating_sub(1)).product()
}

/// What is locked here is whole even when a panic came between: it is written in one go.
fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::plan::rules::against_tape::{Layout, Trial, any, relative_error, slot};
    use crate::torch::has_gemm_kernels;

    /// A `linear` by its packed rule, and the values of its arguments.
    fn packed(input: Tensor, weight: Tensor, bias: Value) -> (PackedLinear, Vec<Value>) {
        let trial =
            Trial::new("aten::linear", "", vec![("input", input.into()), ("weight", weight.into()), ("bias", bias)]);
        let constants: HashMap<ValueId, Tensor> = trial
            .node
            .arguments
            .iter()
            .zip(&trial.values)
            .filter_map(|(argument, value)| match (argument, value) {
                (Argument::Use(id), Value::Tensor(tensor)) => Some((*id, tensor.shallow_clone())),
                _ => None,
            })
            .collect();
        let (weight, bias) = PackedLinear::read(&trial.node, |id| constants.get(&id)).unwrap();
        let weight = Arc::new(Mutex::new(PackedWeight::new(weight)));
        (PackedLinear::new(&trial.node, weight, bias).unwrap(), trial.values)
    }

    proptest! {
        #[test]
        fn a_packed_linear_agrees_with_the_plain_one(
            shape in any::shape(),
            classes in 1..=40i64,
            with_bias: bool,
            input in any::layout(),
            weight in any::layout(),
            given in any::layout(),
        ) {
            let features = shape[shape.len() - 1];
            let input = input.random(&shape, Kind::Float);
            let weight = weight.random(&[classes, features], Kind::Float);
            let bias = with_bias.then(|| Layout::Contiguous.random(&[classes], Kind::Float));
            let leaf = input.detach().set_requires_grad(true);
            let expected = leaf.linear(&weight, bias.as_ref());
            let given = given.random(&expected.size(), Kind::Float);
            let gradient = Tensor::run_backward(&[(&expected * &given).sum(Kind::Float)], &[&leaf], false, false).remove(0);
            // Sums may cancel: errors are relative to what is summed.
            let summed = leaf.detach().abs().linear(&weight.abs(), bias.as_ref().map(Tensor::abs).as_ref());
            let summed_back = given.abs().matmul(&weight.abs());
            let off = |found: &Tensor, expected: &Tensor, summed: &Tensor| relative_error(&(summed + (found - expected)), summed);
            let (rule, values) = packed(input, weight, bias.map_or(Value::None, Value::Tensor));
            // Twice: the first run lays the weight out.
            for _ in 0..2 {
                let (results, saved) = rule.forward(&values, &[slot(0)]).unwrap();
                prop_assert!(off(results[0].tensor().unwrap(), &expected.detach(), &summed) < 1e-5);
                let found = saved.unwrap().reverse(&[Some(given.shallow_clone())], Gradient::Guided).unwrap().remove(0);
                let found = found.unwrap();
                prop_assert_eq!(found.size(), gradient.size());
                prop_assert!(off(&found, &gradient, &summed_back) < 1e-5);
                prop_assert!(rule.forward(&values, &[]).unwrap().1.is_none());
            }
        }
    }

    proptest! {
        #[test]
        fn all_ways_give_the_product(size in [1..=60i64, 1..=40i64, 1..=40i64], with_bias: bool, is_bfloat16: bool) {
            let kind = if is_bfloat16 && has_onednn_kernels(Kind::BFloat16) { Kind::BFloat16 } else { Kind::Float };
            let random = |shape: &[i64]| Layout::Contiguous.random(shape, kind);
            let [rows, inputs, outputs] = size;
            let (input, weight, bias) = (random(&[rows, inputs]), random(&[outputs, inputs]), random(&[outputs]));
            let bias = with_bias.then_some(bias);
            let float = |t: &Tensor| t.to_kind(Kind::Float);
            let expected = float(&input).linear(&float(&weight), bias.as_ref().map(float));
            let summed = float(&input).abs().linear(&float(&weight).abs(), bias.as_ref().map(|b| float(b).abs()));
            let operators = Operators::find().unwrap();
            let candidates = Packed::candidates(&weight, rows, &operators).into_iter();
            let ways = candidates.filter_map(|candidate| candidate.lay_out().unwrap()).collect::<Vec<_>>();
            let has_panels = has_gemm_kernels(kind) && (kind == Kind::Float || inputs % 2 == 0);
            prop_assert_eq!(ways.len(), 1 + usize::from(has_panels));
            let by_rows = has_gemm_kernels(kind).then(|| Packed::Rows(weight.shallow_clone()));
            let bias = bias.map_or(Value::None, Value::Tensor);
            for way in ways.into_iter().chain(by_rows) {
                let found = way.call(&bias, &operators).unwrap().run(&input).unwrap();
                let error = relative_error(&(&summed + (float(&found) - &expected)), &summed);
                prop_assert!(error < if kind == Kind::Float { 1e-6 } else { 4e-3 }, "{:?}: {}", way, error);
            }
        }
    }

    #[test]
    fn a_weight_is_read_as_it_is_until_an_input_has_many_rows() {
        let random = |shape: &[i64]| Layout::Contiguous.random(shape, Kind::Float);
        let (weight, bias) = (random(&[40, 70]), random(&[40]));
        let (rule, values) = packed(random(&[1, 70]), weight.shallow_clone(), Value::Tensor(bias.shallow_clone()));
        let by_rows = || matches!(*lock(&rule.linear.forward), Some(LinearCall::Rows { .. }));
        for (rows, is_as_it_is) in [(1, true), (FEW_ROWS, true), (FEW_ROWS + 1, false), (1, false)] {
            let input = random(&[rows, 70]);
            let expected = input.linear(&weight, Some(&bias));
            let arguments = [Value::Tensor(input), values[1].clone(), values[2].clone()];
            let found = rule.forward(&arguments, &[]).unwrap().0.remove(0);
            assert!(relative_error(found.tensor().unwrap(), &expected) < 1e-5);
            assert_eq!(by_rows(), is_as_it_is && has_gemm_kernels(Kind::Float), "{rows} rows");
        }
    }

    #[test]
    fn the_gradient_of_a_class_is_a_row_of_the_weight() {
        let random = |shape: &[i64]| Layout::Contiguous.random(shape, Kind::Float);
        for is_finite in [true, false] {
            let weight = random(&[50, 130]);
            if !is_finite {
                let _ = weight.get(3).get(7).fill_(f64::INFINITY);
            }
            let (rule, values) = packed(random(&[2, 130]), weight.shallow_clone(), Value::None);
            let saved = rule.forward(&values, &[slot(0)]).unwrap().1.unwrap();
            let given = Tensor::zeros([2, 50], (Kind::Float, Device::Cpu));
            let _ = given.get(0).get(4).fill_(1.0);
            let _ = given.get(1).get(5).fill_(2.0);
            let found = saved.reverse(&[Some(given.shallow_clone())], Gradient::Plain).unwrap().remove(0).unwrap();
            // Against weights that are not finite, zeros count. All else is one product and zeros, which no order of
            // sums rounds.
            let expected = given.matmul(&weight);
            assert!(found.nan_to_num(7.0, None, None).equal(&expected.nan_to_num(7.0, None, None)));
            assert_eq!(found.isnan().any().int64_value(&[]) == 0, is_finite);
            let by_rows = matches!(*lock(&rule.linear.back), Some(LinearCall::Sums(_)));
            assert_eq!(by_rows, is_finite && has_gemm_kernels(Kind::Float));
        }
    }

    #[test]
    fn a_weight_that_is_computed_is_not_packed() {
        let random = |shape: &[i64]| Layout::Contiguous.random(shape, Kind::Float);
        let trial = Trial::new(
            "aten::linear",
            "",
            vec![("input", random(&[2, 3]).into()), ("weight", random(&[4, 3]).into()), ("bias", Value::None)],
        );
        assert!(PackedLinear::read(&trial.node, |_| None).is_none());
    }
}
