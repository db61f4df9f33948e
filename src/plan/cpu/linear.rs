//! `linear` with a constant weight, packed once.
//!
//! The kernel is oneDNN's `mkldnn::_linear_pointwise` or camlens's own matrix product, whichever is faster; ATen's
//! `linear` calls MKL, which is several times slower on processors that are not Intel's. The gradient to the input is
//! another `linear` with the transposed weight, or, for a sparse gradient, the sum of the weight's rows whose gradient
//! is not zero: one row for a classifier's last layer. Inputs of few rows are multiplied by the unpacked weight:
//! reading it takes most of the time, and no memory is needed for a packed copy.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tch::{Device, Kind, Tensor};

use crate::model::node::{Argument, Node};
use crate::plan::KernelChoice;
use crate::plan::device_tensors::Constants;
use crate::plan::rule::{Gradient, Parts, Rule, RuleOutput, Saved, Slot};
use crate::torch::{
    Call, Operator, OperatorError, Value, can_pack, has_gemm_kernels, has_onednn_kernels, linear, linear_few_rows,
    linear_input_gradient, linear_weight,
};

use crate::plan::autotune::{Candidate, Chosen, Fetched, Task, autotune, bytes, float_bias, is_finite};
use crate::plan::rules::arguments::first;
use crate::plan::rules::tape::TapeRule;

/// Position of the input among a [`Call`]'s arguments.
const INPUT: usize = 0;
/// Inputs of at most this many rows are multiplied by the unpacked weight. If the first gradient has at most this many
/// rows and at least half of its elements are zero, this and every later gradient are computed as sums of weight rows,
/// at a cost proportional to their non-zero elements.
const FEW_ROWS: i64 = 16;

/// A weight `[outputs, inputs]`, packed at its first use and shared by the plans of one model.
pub(in crate::plan) struct PackedLinear {
    weight: Tensor,
    choice: KernelChoice,
    forward: Option<Chosen<LinearKernel>>,
    backward: Option<Chosen<LinearKernel>>,
}

impl PackedLinear {
    pub fn new(weight: &Tensor, choice: KernelChoice) -> Self {
        PackedLinear { weight: weight.shallow_clone(), choice, forward: None, backward: None }
    }

    /// Whether this is the packed form of `weight`: same memory, shape and strides.
    pub fn is_of(&self, weight: &Tensor) -> bool {
        self.weight.data_ptr() == weight.data_ptr()
            && self.weight.size() == weight.size()
            && self.weight.stride() == weight.stride()
    }

    /// The forward kernel for `input`. It is kept for inputs of any size, except that the unpacked weight is kept for
    /// inputs of at most [`FEW_ROWS`] rows, and that one that [is due](Chosen::is_due) is chosen again.
    fn forward(&mut self, input: &Tensor, operators: &Operators) -> Result<&Chosen<LinearKernel>, OperatorError> {
        let suits = |packed: &Chosen<LinearKernel>| {
            !matches!(packed.kernel(), LinearKernel::Unpacked(_)) || rows(input) <= FEW_ROWS
        };
        let packed = match self.forward.take().filter(suits) {
            Some(packed) if !packed.is_due() => packed,
            before => {
                LinearKernel::choose_forward(&self.weight.f_contiguous()?, input, operators, &self.choice, before)?
            }
        };
        Ok(self.forward.insert(packed))
    }

    /// The kernel for the gradient to the input, chosen on the first `grad_output` and kept for all others, unless it
    /// is due.
    fn backward(
        &mut self,
        grad_output: &Tensor,
        operators: &Operators,
    ) -> Result<&Chosen<LinearKernel>, OperatorError> {
        let packed = match self.backward.take() {
            Some(packed) if !packed.is_due() => packed,
            before => LinearKernel::choose_backward(&self.weight, grad_output, operators, &self.choice, before)?,
        };
        Ok(self.backward.insert(packed))
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

/// A weight as one of the kernels reads it.
#[derive(Debug)]
enum LinearKernel {
    OneDnn(Tensor),
    Panels {
        weight: Tensor,
        outputs: i64,
    },
    /// Forward with the unpacked weight.
    Unpacked(Tensor),
    /// Backward as a sum of rows of the unpacked weight.
    SparseGradient(Tensor),
}

impl LinearKernel {
    /// oneDNN's or camlens's kernel for `weight`, timed on `input`; `before` as for [`autotune`].
    fn choose(
        weight: &Tensor,
        input: &Tensor,
        operators: &Operators,
        choice: &KernelChoice,
        before: Option<Chosen<Self>>,
    ) -> Result<Chosen<Self>, OperatorError> {
        let shapes = format_args!("{:?} {:?} {} rows", input.f_kind()?, weight.size(), rows(input));
        let task = Task { operator: "linear", shapes, choice };
        autotune(&task, before, Self::candidates(weight, rows(input), operators), Self::fetched, |kernel| {
            let call = kernel.call(&Value::None, operators)?;
            Ok(move || call.run(input))
        })
    }

    /// The forward kernel: the unpacked weight for few rows, otherwise the faster of the packed ones.
    fn choose_forward(
        weight: &Tensor,
        input: &Tensor,
        operators: &Operators,
        choice: &KernelChoice,
        before: Option<Chosen<Self>>,
    ) -> Result<Chosen<Self>, OperatorError> {
        if rows(input) <= FEW_ROWS && has_gemm_kernels(weight.f_kind()?) {
            return Ok(Chosen::sole(LinearKernel::Unpacked(weight.shallow_clone())));
        }
        Self::choose(weight, input, operators, choice, before)
    }

    /// The backward kernel: sums of rows of the unpacked weight for a small, sparse gradient, otherwise the faster of
    /// the packed ones.
    fn choose_backward(
        weight: &Tensor,
        grad_output: &Tensor,
        operators: &Operators,
        choice: &KernelChoice,
        before: Option<Chosen<Self>>,
    ) -> Result<Chosen<Self>, OperatorError> {
        let count = grad_output.f_count_nonzero(None)?.f_int64_value(&[])?;
        let is_sparse = rows(grad_output) <= FEW_ROWS && 2 * count as usize <= grad_output.numel();
        // An infinite or NaN weight times zero is NaN, which a sum without zeros would miss.
        if is_sparse && has_gemm_kernels(weight.f_kind()?) && is_finite(weight)? {
            return Ok(Chosen::sole(LinearKernel::SparseGradient(weight.f_contiguous()?)));
        }
        Self::choose(&weight.f_transpose(0, 1)?.f_contiguous()?, grad_output, operators, choice, before)
    }

    fn candidates<'a>(weight: &'a Tensor, rows: i64, operators: &'a Operators) -> Vec<Candidate<'a, Self>> {
        let one_dnn = move || {
            let arguments = [Value::Tensor(weight.shallow_clone()), Value::Int(rows)];
            Ok(Some(LinearKernel::OneDnn(operators.reorder.call_tensor(&arguments)?)))
        };
        let panels = move || {
            let &[outputs, inputs] = weight.size().as_slice() else { return Ok(None) };
            let suits = can_pack(weight.f_kind()?, inputs);
            Ok(if suits { Some(LinearKernel::Panels { weight: linear_weight(weight)?, outputs }) } else { None })
        };
        vec![Candidate::new(one_dnn), Candidate::new(panels)]
    }

    /// What a run fetches.
    fn fetched(&self) -> Fetched {
        let (LinearKernel::OneDnn(weight)
        | LinearKernel::Panels { weight, .. }
        | LinearKernel::Unpacked(weight)
        | LinearKernel::SparseGradient(weight)) = self;
        Fetched { bytes: bytes(weight), is_onednn: matches!(self, LinearKernel::OneDnn(_)) }
    }

    fn call(&self, bias: &Value, operators: &Operators) -> Result<LinearCall, OperatorError> {
        Ok(match self {
            LinearKernel::OneDnn(weight) => {
                let (input, weight) = (Value::Tensor(Tensor::new()), Value::Tensor(weight.shallow_clone()));
                let (name, scalars) = (Value::String("none".into()), Value::Floats(Vec::new()));
                let arguments = [input, weight, bias.clone(), name, scalars, Value::None];
                LinearCall::OneDnn(Call::new(&operators.linear, &arguments)?)
            }
            LinearKernel::Panels { weight, outputs } => LinearCall::Panels {
                weight: weight.shallow_clone(),
                outputs: *outputs,
                bias: float_bias(bias.tensor())?,
            },
            LinearKernel::Unpacked(weight) => {
                LinearCall::Unpacked { weight: weight.shallow_clone(), bias: float_bias(bias.tensor())? }
            }
            LinearKernel::SparseGradient(weight) => LinearCall::SparseGradient(weight.shallow_clone()),
        })
    }
}

/// A kernel with all of its arguments except the input.
#[derive(Debug)]
enum LinearCall {
    OneDnn(Call),
    Panels { weight: Tensor, outputs: i64, bias: Option<Tensor> },
    Unpacked { weight: Tensor, bias: Option<Tensor> },
    SparseGradient(Tensor),
}

impl LinearCall {
    fn run(&self, input: &Tensor) -> Result<Tensor, OperatorError> {
        let input = input.f_contiguous()?;
        match self {
            LinearCall::OneDnn(call) => call.call([(INPUT, &input)]),
            LinearCall::Panels { weight, outputs, bias } => linear(&input, weight, *outputs, bias.as_ref(), None),
            LinearCall::Unpacked { weight, bias } => linear_few_rows(&input, weight, bias.as_ref()),
            LinearCall::SparseGradient(weight) => linear_input_gradient(&input, weight),
        }
    }
}

/// The rule of a `linear` node. The weight and the bias are those that it was made with, not the arguments of a run.
pub(in crate::plan) struct LinearRule {
    linear: Arc<Linear>,
    bias: Value,
    tape: TapeRule,
}

struct Linear {
    operators: Operators,
    weight: Arc<Mutex<PackedLinear>>,
    /// `[outputs, inputs]`.
    size: [i64; 2],
    kind: Kind,
    forward: Mutex<Option<Chosen<LinearCall>>>,
    backward: Mutex<Option<Chosen<LinearCall>>>,
}

impl LinearRule {
    /// The weight and the bias of a `linear` node that this rule runs: both constant, or no bias, on the CPU, in a
    /// dtype that the processor has kernels for.
    pub fn read(node: &Node, constants: &mut Constants<'_>) -> Result<Option<(Tensor, Value)>, OperatorError> {
        if node.operation.aten().is_none_or(|operator| operator.name() != "aten::linear") {
            return Ok(None);
        }
        let [Argument::Use(_), Argument::Use(weight), bias] = node.arguments.as_slice() else { return Ok(None) };
        let Some(weight) = constants.tensor(*weight)? else { return Ok(None) };
        let kind = weight.f_kind()?;
        if weight.dim() != 2 || weight.numel() == 0 || weight.device() != Device::Cpu || !has_onednn_kernels(kind) {
            return Ok(None);
        }
        let bias = match bias {
            Argument::Literal(Value::None) => Value::None,
            Argument::Use(bias) => match constants.tensor(*bias)? {
                Some(bias) if bias.f_kind()? == kind && bias.device() == Device::Cpu => Value::Tensor(bias),
                _ => return Ok(None),
            },
            _ => return Ok(None),
        };
        Ok(Some((weight, bias)))
    }

    /// The rule of a node that can be [read](LinearRule::read).
    pub fn new(node: &Node, weight: Arc<Mutex<PackedLinear>>, bias: Value) -> Result<Self, OperatorError> {
        let (size, kind) = {
            let weight = &lock(&weight).weight;
            (weight.size(), weight.f_kind()?)
        };
        let &[outputs, inputs] = size.as_slice() else {
            return Err(OperatorError::Argument {
                operator: node.name.clone(),
                argument: "weight".into(),
                problem: format!("has shape {size:?}, and [outputs, inputs] is allowed"),
            });
        };
        let linear = Linear {
            operators: Operators::find()?,
            weight,
            size: [outputs, inputs],
            kind,
            forward: Mutex::new(None),
            backward: Mutex::new(None),
        };
        Ok(LinearRule { linear: Arc::new(linear), bias, tape: TapeRule::new(node.operation.clone(), false) })
    }
}

impl Rule for LinearRule {
    fn forward(&self, arguments: &[Value], wanted: &[Slot]) -> Result<RuleOutput, OperatorError> {
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
        Ok((vec![Value::Tensor(result)], Some(Box::new(SavedLinear(Arc::clone(&self.linear))))))
    }
}

/// The reverse of a run. It saves nothing: the gradient's shape gives the input's.
struct SavedLinear(Arc<Linear>);

impl Saved for SavedLinear {
    fn reverse(&self, results: &[Option<Tensor>], _: Gradient) -> Result<Vec<Option<Tensor>>, OperatorError> {
        let grad_output = results.first().and_then(Option::as_ref);
        Ok(vec![grad_output.map(|grad_output| self.0.input_gradient(grad_output)).transpose()?])
    }

    /// All gradients as the rows of one, so that the weight is read once.
    fn reverse_each(&self, each: Vec<Vec<Parts>>, _: Gradient) -> Result<Vec<Vec<Option<Tensor>>>, OperatorError> {
        let whole = |results: Vec<Parts>| results.into_iter().next().map_or(Ok(None), Parts::into_sum);
        let grad_output: Vec<Option<Tensor>> = each.into_iter().map(whole).collect::<Result<_, _>>()?;
        let present: Vec<&Tensor> = grad_output.iter().flatten().collect();
        let mut found = match present.as_slice() {
            [] => Vec::new(),
            [one] => vec![self.0.input_gradient(one)?],
            several => self.0.input_gradient(&Tensor::f_cat(several, 0)?)?.f_chunk(several.len() as i64, 0)?,
        }
        .into_iter();
        Ok(grad_output.iter().map(|grad_output| vec![grad_output.as_ref().and_then(|_| found.next())]).collect())
    }
}

impl Linear {
    /// Keeps the kernel with the bias of the first run.
    fn run(&self, input: &Tensor, bias: &Value) -> Result<Tensor, OperatorError> {
        let mut forward = lock(&self.forward);
        let suits = |call: &Chosen<LinearCall>| {
            !matches!(call.kernel(), LinearCall::Unpacked { .. }) || rows(input) <= FEW_ROWS
        };
        let call = match forward.take().filter(suits) {
            Some(call) if !call.is_due() => call,
            _ => {
                let mut weight = lock(&self.weight);
                weight.forward(input, &self.operators)?.try_map(|kernel| kernel.call(bias, &self.operators))?
            }
        };
        forward.insert(call).used().run(input)
    }

    fn input_gradient(&self, grad_output: &Tensor) -> Result<Tensor, OperatorError> {
        let mut backward = lock(&self.backward);
        let call = match backward.take() {
            Some(call) if !call.is_due() => call,
            _ => {
                let mut weight = lock(&self.weight);
                let kernel = weight.backward(grad_output, &self.operators)?;
                kernel.try_map(|kernel| kernel.call(&Value::None, &self.operators))?
            }
        };
        backward.insert(call).used().run(grad_output)
    }
}

/// The product of all axes except the last.
fn rows(tensor: &Tensor) -> i64 {
    let size = tensor.size();
    size.iter().take(size.len().saturating_sub(1)).product()
}

/// A panic cannot leave the value half-written: it is replaced in one assignment. So a poisoned lock is ignored.
fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::model::node::ValueId;
    use crate::plan::constant::Constant;
    use crate::plan::device_tensors::DeviceTensors;
    use crate::plan::rules::against_tape::{Layout, TestNode, any, relative_error, slot};
    use crate::torch::has_gemm_kernels;

    /// A [`LinearRule`] and the values of its node's arguments.
    fn packed(input: Tensor, weight: Tensor, bias: Value) -> (LinearRule, Vec<Value>) {
        let test =
            TestNode::new("aten::linear", "", vec![("input", input.into()), ("weight", weight.into()), ("bias", bias)]);
        let constants = constants(&test);
        let mut tensors = DeviceTensors::default();
        let mut constants = Constants::new(&constants, &mut tensors, Device::Cpu);
        let (weight, bias) = LinearRule::read(&test.node, &mut constants).unwrap().unwrap();
        let weight = Arc::new(Mutex::new(PackedLinear::new(&weight, KernelChoice::default())));
        (LinearRule::new(&test.node, weight, bias).unwrap(), test.values)
    }

    /// Every argument of the node as a constant.
    fn constants(test: &TestNode) -> BTreeMap<ValueId, Constant> {
        let constant = |(argument, value): (&Argument, &Value)| match (argument, value) {
            (Argument::Use(id), Value::Tensor(tensor)) => Some((*id, Constant::Whole(tensor.shallow_clone()))),
            _ => None,
        };
        test.node.arguments.iter().zip(&test.values).filter_map(constant).collect()
    }

    proptest! {
        #[test]
        fn a_packed_linear_agrees_with_the_plain_one(
            shape in any::shape(),
            classes in 1..=40i64,
            with_bias: bool,
            input in any::layout(),
            weight in any::layout(),
            grad_output in any::layout(),
        ) {
            let features = shape[shape.len() - 1];
            let input = input.random(&shape, Kind::Float);
            let weight = weight.random(&[classes, features], Kind::Float);
            let bias = with_bias.then(|| Layout::Contiguous.random(&[classes], Kind::Float));
            let leaf = input.detach().set_requires_grad(true);
            let expected = leaf.linear(&weight, bias.as_ref());
            let grad_output = grad_output.random(&expected.size(), Kind::Float);
            let score = (&expected * &grad_output).sum(Kind::Float);
            let gradient = Tensor::run_backward(&[score], &[&leaf], false, false).remove(0);
            // Terms may cancel: errors are relative to the sum of absolute values.
            let summed = leaf.detach().abs().linear(&weight.abs(), bias.as_ref().map(Tensor::abs).as_ref());
            let summed_back = grad_output.abs().matmul(&weight.abs());
            let off = |found: &Tensor, expected: &Tensor, summed: &Tensor| {
                relative_error(&(summed + (found - expected)), summed)
            };
            let (rule, values) = packed(input, weight, bias.map_or(Value::None, Value::Tensor));
            // Twice: the first run packs the weight.
            for _ in 0..2 {
                let (results, saved) = rule.forward(&values, &[slot(0)]).unwrap();
                prop_assert!(off(results[0].tensor().unwrap(), &expected.detach(), &summed) < 1e-5);
                let mut found = saved.unwrap().reverse(&[Some(grad_output.shallow_clone())], Gradient::Guided).unwrap();
                let found = found.remove(0).unwrap();
                prop_assert_eq!(found.size(), gradient.size());
                prop_assert!(off(&found, &gradient, &summed_back) < 1e-5);
                prop_assert!(rule.forward(&values, &[]).unwrap().1.is_none());
            }
        }
    }

    proptest! {
        #[test]
        fn all_kernels_give_the_product(size in [1..=60i64, 1..=40i64, 1..=40i64], with_bias: bool, is_bfloat16: bool) {
            let kind = if is_bfloat16 && has_onednn_kernels(Kind::BFloat16) { Kind::BFloat16 } else { Kind::Float };
            let random = |shape: &[i64]| Layout::Contiguous.random(shape, kind);
            let [rows, inputs, outputs] = size;
            let (input, weight, bias) = (random(&[rows, inputs]), random(&[outputs, inputs]), random(&[outputs]));
            let bias = with_bias.then_some(bias);
            let float = |t: &Tensor| t.to_kind(Kind::Float);
            let expected = float(&input).linear(&float(&weight), bias.as_ref().map(float));
            let summed = float(&input).abs().linear(&float(&weight).abs(), bias.as_ref().map(|b| float(b).abs()));
            let operators = Operators::find().unwrap();
            let candidates = LinearKernel::candidates(&weight, rows, &operators).into_iter();
            let kernels = candidates.filter_map(|candidate| candidate.pack().unwrap()).collect::<Vec<_>>();
            let has_panels = has_gemm_kernels(kind) && (kind == Kind::Float || inputs % 2 == 0);
            prop_assert_eq!(kernels.len(), 1 + usize::from(has_panels));
            let unpacked = has_gemm_kernels(kind).then(|| LinearKernel::Unpacked(weight.shallow_clone()));
            let bias = bias.map_or(Value::None, Value::Tensor);
            for kernel in kernels.into_iter().chain(unpacked) {
                let found = kernel.call(&bias, &operators).unwrap().run(&input).unwrap();
                let error = relative_error(&(&summed + (float(&found) - &expected)), &summed);
                prop_assert!(error < if kind == Kind::Float { 1e-6 } else { 4e-3 }, "{:?}: {}", kernel, error);
            }
        }
    }

    #[test]
    fn a_weight_is_read_as_it_is_until_an_input_has_many_rows() {
        let random = |shape: &[i64]| Layout::Contiguous.random(shape, Kind::Float);
        let (weight, bias) = (random(&[40, 70]), random(&[40]));
        let (rule, values) = packed(random(&[1, 70]), weight.shallow_clone(), Value::Tensor(bias.shallow_clone()));
        let unpacked = || {
            lock(&rule.linear.forward).as_ref().is_some_and(|call| matches!(call.kernel(), LinearCall::Unpacked { .. }))
        };
        for (rows, is_as_it_is) in [(1, true), (FEW_ROWS, true), (FEW_ROWS + 1, false), (1, false)] {
            let input = random(&[rows, 70]);
            let expected = input.linear(&weight, Some(&bias));
            let arguments = [Value::Tensor(input), values[1].clone(), values[2].clone()];
            let found = rule.forward(&arguments, &[]).unwrap().0.remove(0);
            assert!(relative_error(found.tensor().unwrap(), &expected) < 1e-5);
            assert_eq!(unpacked(), is_as_it_is && has_gemm_kernels(Kind::Float), "{rows} rows");
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
            let grad_output = Tensor::zeros([2, 50], (Kind::Float, Device::Cpu));
            let _ = grad_output.get(0).get(4).fill_(1.0);
            let _ = grad_output.get(1).get(5).fill_(2.0);
            let found =
                saved.reverse(&[Some(grad_output.shallow_clone())], Gradient::Plain).unwrap().remove(0).unwrap();
            // A weight that is not finite makes NaN of zeros. Every other sum has one term that is not zero, so that no
            // order of additions rounds it.
            let expected = grad_output.matmul(&weight);
            assert!(found.nan_to_num(7.0, None, None).equal(&expected.nan_to_num(7.0, None, None)));
            assert_eq!(found.isnan().any().int64_value(&[]) == 0, is_finite);
            let unpacked = {
                let backward = lock(&rule.linear.backward);
                backward.as_ref().is_some_and(|call| matches!(call.kernel(), LinearCall::SparseGradient(_)))
            };
            assert_eq!(unpacked, is_finite && has_gemm_kernels(Kind::Float));
        }
    }

    #[test]
    fn a_weight_that_is_computed_is_not_packed() {
        let random = |shape: &[i64]| Layout::Contiguous.random(shape, Kind::Float);
        let test = TestNode::new(
            "aten::linear",
            "",
            vec![("input", random(&[2, 3]).into()), ("weight", random(&[4, 3]).into()), ("bias", Value::None)],
        );
        let all = constants(&test);
        let mut tensors = DeviceTensors::default();
        let mut read = |constants: &BTreeMap<ValueId, Constant>| {
            let mut constants = Constants::new(constants, &mut tensors, Device::Cpu);
            LinearRule::read(&test.node, &mut constants).unwrap().is_some()
        };
        assert!(read(&all));
        assert!(!read(&BTreeMap::new()));
    }
}
