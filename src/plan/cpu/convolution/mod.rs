//! Fused convolutions with packed weights.
//!
//! The nodes are those of [`plan::convolution`](crate::plan::convolution). Each runs on the fastest of several kernels
//! ([`forward`]): oneDNN, a matrix product (`gemm`), Winograd's algorithm for 3 × 3 kernels, products that skip the
//! zeros that rectifiers leave, or sums in each channel alone (`depthwise`). oneDNN's operators have no derivative in
//! ATen; [`backward`] computes the gradient to the input.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tch::Tensor;

use crate::plan::convolution::{Activation, FusedNode, Geometry};
use crate::plan::rule::{Gradient, Parts, Rule, RuleOutput, Saved, Slot};
use crate::torch::{OperatorError, PendingMask, Value, channels_last};

use crate::plan::autotune::Chosen;
use crate::plan::rules::arguments::{first, unfit};
use crate::plan::rules::rectifiers::Gate;
use backward::InputGradientCall;
use batch_split::BatchSplit;
use epilogue::Epilogue;
use forward::ForwardCall;
use onednn::Operators;

pub(in crate::plan) use packed_weight::PackedConvolution;

/// The rule of a fused node. The weight is the packed one that it was made with, not an argument of a run.
pub(in crate::plan) struct ConvolutionRule {
    convolution: Arc<Convolution>,
    /// Whether the node adds another tensor: the overload `binary`.
    adds: bool,
    activation: Activation,
    guided: bool,
}

/// What the rule shares with the saved state of its runs.
struct Convolution {
    operators: Operators,
    weights: Arc<Mutex<PackedConvolution>>,
    weight_size: Vec<i64>,
    geometry: Geometry,
    forward: Mutex<Option<Chosen<ForwardCall>>>,
    /// With the height and width of the input that the kernel was prepared for.
    backward: Mutex<Option<([i64; 2], Chosen<InputGradientCall>)>>,
    forward_split: BatchSplit,
    backward_split: BatchSplit,
    classes_split: BatchSplit,
}

impl ConvolutionRule {
    pub fn new(node: &FusedNode, weights: Arc<Mutex<PackedConvolution>>) -> Result<Self, OperatorError> {
        let FusedNode { geometry, adds, activation, guided, .. } = *node;
        let (weight_size, timing) = {
            let weights = lock(&weights);
            (weights.size(), weights.timing())
        };
        let convolution = Convolution {
            operators: Operators::find()?,
            weights,
            weight_size,
            geometry,
            forward: Mutex::new(None),
            backward: Mutex::new(None),
            forward_split: BatchSplit::new(timing),
            backward_split: BatchSplit::new(timing),
            classes_split: BatchSplit::new(timing),
        };
        Ok(ConvolutionRule { convolution: Arc::new(convolution), adds, activation, guided })
    }
}

impl Rule for ConvolutionRule {
    fn forward(&self, arguments: &[Value], wanted: &[Slot]) -> Result<RuleOutput, OperatorError> {
        let input = channels_last(first(arguments)?)?;
        let other = if self.adds { arguments.get(1).and_then(Value::tensor) } else { None };
        let bias = arguments.get(if self.adds { 3 } else { 2 }).ok_or_else(|| unfit(2, "a bias", arguments))?;
        let other = other.map(channels_last).transpose()?;
        let epilogue = Epilogue {
            other: other.as_ref(),
            activation: self.activation,
            wants_gate: !wanted.is_empty(),
            guided: self.guided,
        };
        let (result, gate) = self.convolution.run(&input, bias, &epilogue)?;
        if wanted.is_empty() {
            return Ok((vec![Value::Tensor(result)], None));
        }
        let saved = SavedConvolution {
            convolution: Arc::clone(&self.convolution),
            gate,
            size: input.size(),
            wanted: wanted.iter().map(|slot| slot.argument).collect(),
        };
        Ok((vec![Value::Tensor(result)], Some(Box::new(saved))))
    }
}

impl Convolution {
    /// The result with its epilogue. The bias, the activation and whether a tensor is added are those of the first run.
    fn run(
        &self,
        input: &Tensor,
        bias: &Value,
        epilogue: &Epilogue<'_>,
    ) -> Result<(Tensor, Option<Gate>), OperatorError> {
        if let Some(other) = epilogue.other {
            let expected = self.geometry.output_shape(&input.size(), &self.weight_size);
            if other.size() != expected {
                return Err(OperatorError::Argument {
                    operator: "mkldnn._convolution_pointwise.binary".into(),
                    argument: "other".into(),
                    problem: format!("has shape {:?}, and the convolution gives {expected:?}", other.size()),
                });
            }
        }
        let mut forward = lock(&self.forward);
        let call = match forward.take() {
            Some(call) if !call.is_due() => call,
            before => {
                if before.is_some() {
                    self.forward_split.forget();
                }
                let mut weights = lock(&self.weights);
                let kernel = weights.forward(input, epilogue, &self.operators)?;
                let activation = epilogue.fused_activation();
                kernel.try_map(|kernel| kernel.call(bias, &self.geometry, activation, &self.operators))?
            }
        };
        let call = forward.insert(call).used();
        if input.size()[0] == 1 {
            return call.run_with(input, epilogue);
        }
        epilogue.apply(self.forward_split.run(input, |input| call.run(input))?)
    }

    /// The gradient to an input of shape `size`, `[N, C, H, W]`, from the gradient of the result.
    fn input_gradient(&self, grad_output: &Tensor, size: &[i64]) -> Result<Tensor, OperatorError> {
        self.check(grad_output, size)?;
        let grad_output = channels_last(grad_output)?;
        let of_size = [size[2], size[3]];
        let mut backward = lock(&self.backward);
        let call = match backward.take().filter(|(known, _)| *known == of_size) {
            Some((_, call)) if !call.is_due() => call,
            before => {
                if before.is_some() {
                    self.backward_split.forget();
                    self.classes_split.forget();
                }
                let mut weights = lock(&self.weights);
                let kernel = weights.backward(&grad_output, size, &self.operators)?;
                let shape = grad_output.size();
                kernel
                    .try_map(|kernel| kernel.call(&self.weight_size, &self.geometry, &shape, size, &self.operators))?
            }
        };
        let (_, call) = backward.insert((of_size, call));
        let call = call.used();
        self.backward_split.run(&grad_output, |grad_output| call.input_gradient(grad_output))
    }

    /// [`Convolution::input_gradient`] of a gradient that has not passed the activation's mask yet: the kernel applies
    /// it. `None` where the kernel cannot, for several rows, and while a kernel has to be chosen for this size.
    fn input_gradient_masked(
        &self,
        grad_output: &Tensor,
        mask: PendingMask<'_>,
        size: &[i64],
    ) -> Result<Option<Tensor>, OperatorError> {
        self.check(grad_output, size)?;
        let backward = lock(&self.backward);
        match &*backward {
            // Several rows may be split into single ones.
            Some((of_size, call)) if *of_size == [size[2], size[3]] && size[0] == 1 && !call.is_due() => {
                call.used().input_gradient_masked(grad_output, mask)
            }
            _ => Ok(None),
        }
    }

    /// [`Convolution::input_gradient`] of each of several gradients of the same result.
    fn input_gradients(&self, grad_output: &[&Tensor], size: &[i64]) -> Result<Vec<Tensor>, OperatorError> {
        for grad_output in grad_output {
            self.check(grad_output, size)?;
        }
        let is_packed = lock(&self.backward).is_some();
        if let (Some(first), false) = (grad_output.first(), is_packed) {
            // Chooses the kernel on the rows of one gradient.
            drop(self.input_gradient(first, size)?);
        }
        self.classes_split.run_each(grad_output, |grad_output| {
            let mut size = size.to_vec();
            size[0] = grad_output.size()[0];
            self.input_gradient(grad_output, &size)
        })
    }

    /// Checks that `grad_output` has the shape of the result for an input of shape `size`.
    fn check(&self, grad_output: &Tensor, size: &[i64]) -> Result<(), OperatorError> {
        let expected = self.geometry.output_shape(size, &self.weight_size);
        if grad_output.size() != expected {
            return Err(OperatorError::Argument {
                operator: "a convolution's gradient".into(),
                argument: "gradient".into(),
                problem: format!("has shape {:?}, and the result had {expected:?}", grad_output.size()),
            });
        }
        Ok(())
    }
}

/// What one forward run saves for its reverse runs.
struct SavedConvolution {
    convolution: Arc<Convolution>,
    gate: Option<Gate>,
    /// The input's shape.
    size: Vec<i64>,
    /// Positions of the arguments whose gradients are wanted.
    wanted: Vec<usize>,
}

impl Saved for SavedConvolution {
    fn reverse(&self, results: &[Option<Tensor>], gradient: Gradient) -> Result<Vec<Option<Tensor>>, OperatorError> {
        self.reverse_parts(Parts::of_each(results), gradient)
    }

    fn reverse_parts(&self, results: Vec<Parts>, gradient: Gradient) -> Result<Vec<Option<Tensor>>, OperatorError> {
        if let Some(found) = self.reverse_masked(&results, gradient)? {
            return Ok(vec![Some(found)]);
        }
        let Some(grad_output) = self.gated(results, gradient)? else {
            return Ok(self.wanted.iter().map(|_| None).collect());
        };
        self.wanted
            .iter()
            .map(|&argument| match argument {
                0 => self.convolution.input_gradient(&grad_output, &self.size).map(Some),
                _ => Ok(Some(grad_output.shallow_clone())),
            })
            .collect()
    }

    fn reverse_each(
        &self,
        each: Vec<Vec<Parts>>,
        gradient: Gradient,
    ) -> Result<Vec<Vec<Option<Tensor>>>, OperatorError> {
        let grad_output =
            each.into_iter().map(|results| self.gated(results, gradient)).collect::<Result<Vec<_>, _>>()?;
        let forward: Vec<&Tensor> = grad_output.iter().flatten().collect();
        let wants_input = self.wanted.contains(&0);
        let inputs = if wants_input { self.convolution.input_gradients(&forward, &self.size)? } else { Vec::new() };
        let mut inputs = inputs.into_iter();
        let answer = |grad_output: &Option<Tensor>| {
            let input = if grad_output.is_some() { inputs.next() } else { None };
            let of = |argument| if argument == 0 { &input } else { grad_output };
            self.wanted.iter().map(|&argument| of(argument).as_ref().map(Tensor::shallow_clone)).collect()
        };
        Ok(grad_output.iter().map(answer).collect())
    }
}

impl SavedConvolution {
    /// The gradient to the input, computed with the mask in the kernel; `None` unless it alone is wanted and the kernel
    /// can.
    fn reverse_masked(&self, results: &[Parts], gradient: Gradient) -> Result<Option<Tensor>, OperatorError> {
        let mask = self.gate.as_ref().and_then(|gate| gate.mask(gradient));
        match (mask, results.first().map(Parts::as_slice), self.wanted.as_slice()) {
            (Some(mask), Some([grad_output]), [0]) => {
                self.convolution.input_gradient_masked(grad_output, mask, &self.size)
            }
            _ => Ok(None),
        }
    }

    /// The gradient before the activation: that of the convolution's result, and of the tensor added to it.
    fn gated(&self, results: Vec<Parts>, gradient: Gradient) -> Result<Option<Tensor>, OperatorError> {
        match (&self.gate, results.into_iter().next()) {
            (Some(gate), Some(parts)) => gate.pass(parts.as_slice(), gradient),
            (None, Some(parts)) => parts.into_sum(),
            (_, None) => Ok(None),
        }
    }
}

/// A panic cannot leave the value half-written: it is replaced in one assignment. So a poisoned lock is ignored.
fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}
pub mod backward;
pub mod batch_split;
pub mod col2im;
pub mod depthwise;
pub mod epilogue;
pub mod forward;
pub mod gemm;
pub mod onednn;
pub mod packed_weight;
pub mod sparse;
#[cfg(test)]
mod tests;
pub mod winograd;
