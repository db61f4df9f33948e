//! Convolutions with what follows them.

use std::sync::{Arc, Mutex, PoisonError};

use tch::{Device, Tensor};

use crate::plan::KernelChoice;
use crate::plan::autotune::{Candidate, Chosen, Fetched, Task, autotune};
use crate::plan::convolution::{Activation, FusedNode, Geometry};
use crate::plan::rule::{Gradient, Parts, Rule, RuleOutput, Saved, Slot};
use crate::plan::rules::arguments::{first, tensor};
use crate::plan::rules::meta::MetaTensor;
use crate::plan::rules::rectifiers::Gate;
use crate::torch::{Operator, OperatorError, Value, channels_last, cuda};

use super::weight::Weight;

/// The rule of a fused node. The weight is the one that it was made with, not an argument of a run.
pub struct ConvolutionRule {
    node: FusedNode,
    convolution: Arc<Convolution>,
}

/// What the rule shares with the saved state of its runs.
struct Convolution {
    operators: Operators,
    weight: Arc<Weight>,
    geometry: Geometry,
    activation: Activation,
    choice: KernelChoice,
    /// With the height and width of the input that it was timed on.
    kernel: Mutex<Option<([i64; 2], Chosen<Kernel>)>>,
}

/// How the forward run is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernel {
    /// A convolution without bias, then one kernel for the bias, the addition and the activation.
    Epilogue,
    /// cuDNN's convolution with bias, addition and ReLU in one.
    Cudnn,
}

struct Operators {
    convolution: Operator,
    convolution_relu: Operator,
    convolution_add_relu: Operator,
    backward: Operator,
}

impl Operators {
    fn find() -> Result<Self, OperatorError> {
        Ok(Operators {
            convolution: Operator::find("aten::convolution", "")?,
            convolution_relu: Operator::find("aten::cudnn_convolution_relu", "")?,
            convolution_add_relu: Operator::find("aten::cudnn_convolution_add_relu", "")?,
            backward: Operator::find("aten::convolution_backward", "")?,
        })
    }
}

impl ConvolutionRule {
    pub fn new(node: FusedNode, weight: Arc<Weight>, choice: KernelChoice) -> Result<Self, OperatorError> {
        let convolution = Convolution {
            operators: Operators::find()?,
            weight,
            geometry: node.geometry,
            activation: node.activation,
            choice,
            kernel: Mutex::new(None),
        };
        Ok(ConvolutionRule { node, convolution: Arc::new(convolution) })
    }
}

impl Rule for ConvolutionRule {
    fn forward(&self, arguments: &[Value], wanted: &[Slot]) -> Result<RuleOutput, OperatorError> {
        let input = channels_last(first(arguments)?)?;
        let other = if self.node.adds { Some(channels_last(tensor(arguments, 1)?)?) } else { None };
        let bias = arguments.get(self.node.bias_position()).and_then(Value::tensor);
        let result = self.convolution.run(&input, bias, other.as_ref())?;
        if wanted.is_empty() {
            return Ok((vec![Value::Tensor(result)], None));
        }
        let bounds = self.node.activation.bounds();
        let saved = SavedConvolution {
            convolution: Arc::clone(&self.convolution),
            gate: bounds.map(|bounds| Gate::of(&result, bounds, self.node.guided)).transpose()?,
            input: MetaTensor::of(&input)?,
            wanted: wanted.iter().map(|slot| slot.argument).collect(),
        };
        Ok((vec![Value::Tensor(result)], Some(Box::new(saved))))
    }
}

impl Convolution {
    fn run(&self, input: &Tensor, bias: Option<&Tensor>, other: Option<&Tensor>) -> Result<Tensor, OperatorError> {
        let kernel = self.kernel(input, bias, other)?;
        self.run_with(kernel, input, bias, other)
    }

    /// The faster kernel for inputs of this size.
    fn kernel(&self, input: &Tensor, bias: Option<&Tensor>, other: Option<&Tensor>) -> Result<Kernel, OperatorError> {
        if self.activation != Activation::Relu {
            return Ok(Kernel::Epilogue);
        }
        let size = input.size();
        let of_size = [size[2], size[3]];
        let mut known = self.kernel.lock().unwrap_or_else(PoisonError::into_inner);
        let chosen = match known.take().filter(|(timed, _)| *timed == of_size) {
            Some((_, chosen)) if !chosen.is_due() => chosen,
            before => {
                let shapes = format_args!(
                    "{:?} {:?} {size:?} {:?} {} {}",
                    input.f_kind()?,
                    self.weight.tensor().size(),
                    self.geometry,
                    bias.is_some(),
                    other.is_some()
                );
                let task = Task { operator: "a convolution on CUDA", shapes, choice: &self.choice };
                let candidates =
                    [Kernel::Epilogue, Kernel::Cudnn].map(|kernel| Candidate::new(move || Ok(Some(kernel))));
                let nothing = |_: &Kernel| Fetched { bytes: 0, is_onednn: false };
                autotune(&task, before.map(|(_, chosen)| chosen), candidates.into(), nothing, |&kernel| {
                    Ok(move || {
                        let result = self.run_with(kernel, input, bias, other)?;
                        synchronize(input.device())?;
                        Ok(result)
                    })
                })?
            }
        };
        Ok(*known.insert((of_size, chosen)).1.used())
    }

    fn run_with(
        &self,
        kernel: Kernel,
        input: &Tensor,
        bias: Option<&Tensor>,
        other: Option<&Tensor>,
    ) -> Result<Tensor, OperatorError> {
        let Geometry { padding, stride, dilation, groups } = self.geometry;
        let value = |tensor: &Tensor| Value::Tensor(tensor.shallow_clone());
        let ints = |numbers: [i64; 2]| Value::Ints(numbers.to_vec());
        let (input, weight) = (value(input), Value::Tensor(self.weight.tensor()));
        let optional = |tensor: Option<&Tensor>| tensor.map_or(Value::None, value);
        match (kernel, other) {
            (Kernel::Cudnn, None) => self.operators.convolution_relu.call_tensor(&[
                input,
                weight,
                optional(bias),
                ints(stride),
                ints(padding),
                ints(dilation),
                Value::Int(groups),
            ]),
            (Kernel::Cudnn, Some(other)) => self.operators.convolution_add_relu.call_tensor(&[
                input,
                weight,
                value(other),
                Value::Float(1.0),
                optional(bias),
                ints(stride),
                ints(padding),
                ints(dilation),
                Value::Int(groups),
            ]),
            (Kernel::Epilogue, _) => {
                let result = self.operators.convolution.call_tensor(&[
                    input,
                    weight,
                    Value::None,
                    ints(stride),
                    ints(padding),
                    ints(dilation),
                    Value::Bool(false),
                    ints([0, 0]),
                    Value::Int(groups),
                ])?;
                cuda::epilogue(result, bias, other, self.activation.bounds())
            }
        }
    }

    /// The gradient to the input, of which the shape, the layout and the dtype alone are read.
    fn input_gradient(&self, grad_output: &Tensor, input: &MetaTensor) -> Result<Tensor, OperatorError> {
        let Geometry { padding, stride, dilation, groups } = self.geometry;
        let ints = |numbers: [i64; 2]| Value::Ints(numbers.to_vec());
        self.operators.backward.call_tensor(&[
            Value::Tensor(channels_last(grad_output)?),
            Value::Tensor(input.tensor()?),
            Value::Tensor(self.weight.tensor()),
            Value::None,
            ints(stride),
            ints(padding),
            ints(dilation),
            Value::Bool(false),
            ints([0, 0]),
            Value::Int(groups),
            Value::Bools(vec![true, false, false]),
        ])
    }
}

/// Waits for the device, so that a run's time is its own.
fn synchronize(device: Device) -> Result<(), OperatorError> {
    let failed = |error: cuda::CudaError| OperatorError::Failed { operator: "cuda".into(), message: error.to_string() };
    match (device, cuda::loaded()) {
        (Device::Cuda(index), Some(cuda)) => cuda.synchronize(index as u32).map_err(failed),
        _ => Ok(()),
    }
}

/// What one forward run saves for its reverse runs.
struct SavedConvolution {
    convolution: Arc<Convolution>,
    gate: Option<Gate>,
    input: MetaTensor,
    /// Positions of the arguments whose gradients are wanted.
    wanted: Vec<usize>,
}

impl Saved for SavedConvolution {
    fn reverse(&self, results: &[Option<Tensor>], gradient: Gradient) -> Result<Vec<Option<Tensor>>, OperatorError> {
        self.reverse_parts(Parts::of_each(results), gradient)
    }

    fn reverse_parts(&self, results: Vec<Parts>, gradient: Gradient) -> Result<Vec<Option<Tensor>>, OperatorError> {
        let grad_output = match (&self.gate, results.into_iter().next()) {
            (Some(gate), Some(parts)) => gate.pass(parts.as_slice(), gradient)?,
            (None, Some(parts)) => parts.into_sum()?,
            (_, None) => None,
        };
        let Some(grad_output) = grad_output else { return Ok(self.wanted.iter().map(|_| None).collect()) };
        self.wanted
            .iter()
            .map(|&argument| match argument {
                0 => self.convolution.input_gradient(&grad_output, &self.input).map(Some),
                _ => Ok(Some(grad_output.shallow_clone())),
            })
            .collect()
    }
}
