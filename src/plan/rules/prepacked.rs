//! Convolutions whose weights are laid out for the processor once, with what follows them.
//!
//! The operators are oneDNN's, as ATen carries them: `mkldnn::_convolution_pointwise` is a convolution and an activation,
//! its overload `binary` adds another tensor before the activation. They have no derivative of their own: the gradient
//! to the input is a transposed convolution, with its weights laid out too. The plan's `fuse_convolutions` pass makes
//! these nodes.

use std::sync::{Arc, Mutex, PoisonError};

use tch::Tensor;

use crate::model::graph::{Argument, Node};
use crate::plan::rule::{Gradient, Ran, Rule, Slot};
use crate::torch::{Operator, OperatorError, Value};

use super::arguments::{first, unfit};
use super::polyphase::Phases;

/// How a two-dimensional convolution moves over its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::plan) struct Geometry {
    pub padding: [i64; 2],
    pub stride: [i64; 2],
    pub dilation: [i64; 2],
    pub groups: i64,
}

impl Geometry {
    /// The shape of the result for weights `[outputs, inputs, height, width]`, and how much of the input's lower and right
    /// edge the kernel never reaches.
    fn result(&self, input: &[i64], weight: &[i64]) -> ([i64; 4], [i64; 2]) {
        let span = |axis: usize| self.dilation[axis] * (weight[axis + 2] - 1) + 1;
        let room = |axis: usize| input[axis + 2] + 2 * self.padding[axis] - span(axis);
        let steps = [0, 1].map(|axis| room(axis).div_euclid(self.stride[axis]));
        let rest = [0, 1].map(|axis| room(axis) - steps[axis] * self.stride[axis]);
        ([input[0], weight[0], steps[0] + 1, steps[1] + 1], rest)
    }

    fn values(&self) -> [Value; 4] {
        [
            Value::Ints(self.padding.to_vec()),
            Value::Ints(self.stride.to_vec()),
            Value::Ints(self.dilation.to_vec()),
            Value::Int(self.groups),
        ]
    }
}

/// A convolution's weights, laid out at their first use. Plans of one model share them.
///
/// The layouts suit the input size that came first. They stay right for any other.
pub(in crate::plan) struct LaidOut {
    /// As the model has them, `[outputs, inputs / groups, height, width]`.
    weight: Tensor,
    geometry: Geometry,
    forward: Option<Tensor>,
    backward: Option<Backward>,
}

/// How the gradient of the result goes back to the input.
enum Backward {
    Transposed(Tensor),
    Phases(Phases),
}

impl Clone for Backward {
    fn clone(&self) -> Self {
        match self {
            Backward::Transposed(weight) => Backward::Transposed(weight.shallow_clone()),
            Backward::Phases(phases) => Backward::Phases(phases.clone()),
        }
    }
}

impl LaidOut {
    pub fn new(weight: &Tensor, geometry: Geometry) -> Self {
        LaidOut { weight: weight.shallow_clone(), geometry, forward: None, backward: None }
    }

    /// Whether these are that tensor's.
    pub fn are_of(&self, weight: &Tensor, geometry: &Geometry) -> bool {
        self.geometry == *geometry && self.weight.data_ptr() == weight.data_ptr() && self.weight.size() == weight.size()
    }

    fn forward(&mut self, input: &[i64], operators: &Operators) -> Result<Tensor, OperatorError> {
        if let Some(weight) = &self.forward {
            return Ok(weight.shallow_clone());
        }
        let [padding, stride, dilation, groups] = self.geometry.values();
        let plain = Value::Tensor(self.weight.shallow_clone());
        let weight =
            operators.reorder.call_tensor(&[plain, padding, stride, dilation, groups, Value::Ints(input.to_vec())])?;
        Ok(self.forward.insert(weight).shallow_clone())
    }

    fn backward(&mut self, input: &[i64], operators: &Operators) -> Result<Backward, OperatorError> {
        if let Some(backward) = &self.backward {
            return Ok(backward.clone());
        }
        let size = self.weight.size();
        let (result, rest) = self.geometry.result(input, &size);
        let backward = if Phases::suit(&size, &self.geometry) {
            Backward::Phases(Phases::new(&self.weight, &self.geometry, &result, &operators.reorder)?)
        } else {
            let [padding, stride, dilation, groups] = self.geometry.values();
            let rest = Value::Ints(rest.to_vec());
            let plain = Value::Tensor(self.weight.shallow_clone());
            let result = Value::Ints(result.to_vec());
            Backward::Transposed(
                operators.reorder_transposed.call_tensor(&[plain, padding, rest, stride, dilation, groups, result])?,
            )
        };
        Ok(self.backward.insert(backward).clone())
    }
}

#[derive(Clone)]
struct Operators {
    convolution: Operator,
    transposed: Operator,
    reorder: Operator,
    reorder_transposed: Operator,
    add_relu: Operator,
    contiguous: Operator,
}

/// What follows the convolution, as far as its result tells how to come back.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Activation {
    None,
    Relu,
    /// `min(max(·, low), high)`.
    Clamp {
        low: f64,
        high: f64,
    },
}

/// The rule of both operators. Tensors but for the input and what is added are taken from the weights that it was made
/// with, not from the arguments.
pub(in crate::plan) struct Prepacked {
    operators: Operators,
    weights: Arc<Mutex<LaidOut>>,
    weight_size: Vec<i64>,
    geometry: Geometry,
    /// Whether another tensor is added.
    adds: bool,
    activation: Activation,
    guided: bool,
}

impl Prepacked {
    /// Where a node of one of the two operators keeps its weight, and how it moves. None for other nodes.
    pub fn read(node: &Node) -> Option<(&Argument, Geometry)> {
        let operator = node.operation.aten().filter(|o| o.name() == "mkldnn::_convolution_pointwise")?;
        let at = |name| node.arguments.get(operator.schema().position(name)?);
        let pair = |name| match at(name)? {
            Argument::Literal(Value::Ints(pair)) => <[i64; 2]>::try_from(pair.as_slice()).ok(),
            _ => None,
        };
        let Argument::Literal(Value::Int(groups)) = at("groups")? else { return None };
        let (padding, stride, dilation) = (pair("padding")?, pair("stride")?, pair("dilation")?);
        Some((at("W")?, Geometry { padding, stride, dilation, groups: *groups }))
    }

    /// The rule of a node that can be [read](Prepacked::read).
    pub fn new(node: &Node, geometry: Geometry, weights: Arc<Mutex<LaidOut>>) -> Result<Self, OperatorError> {
        let find = |name| Operator::find(name, "");
        let adds = node.operation.aten().is_some_and(|operator| operator.overload() == "binary");
        let (activation, scalars) = if adds { ("unary_attr", "unary_scalars") } else { ("attr", "scalars") };
        let activation = match (node.literal(activation), node.literal(scalars)) {
            (Some(Value::String(name)), Some(Value::Floats(scalars))) => match (name.as_str(), scalars.as_slice()) {
                ("none", []) => Some(Activation::None),
                ("relu", []) => Some(Activation::Relu),
                ("hardtanh", &[low, high]) => Some(Activation::Clamp { low, high }),
                _ => None,
            },
            (Some(Value::None), _) => Some(Activation::None),
            _ => None,
        };
        let activation = activation.ok_or_else(|| OperatorError::Argument {
            operator: node.name.clone(),
            argument: "attr".into(),
            problem: "takes none, relu or hardtanh".into(),
        })?;
        let weight_size = lock(&weights).weight.size();
        Ok(Prepacked {
            operators: Operators {
                convolution: find("mkldnn::_convolution_pointwise")?,
                transposed: find("mkldnn::_convolution_transpose_pointwise")?,
                reorder: find("mkldnn::_reorder_convolution_weight")?,
                reorder_transposed: find("mkldnn::_reorder_convolution_transpose_weight")?,
                add_relu: Operator::find("aten::_add_relu_", "Tensor")?,
                contiguous: find("aten::contiguous")?,
            },
            weights,
            weight_size,
            geometry,
            adds,
            activation,
            guided: node.rectifier.is_some(),
        })
    }

    fn convolve(&self, input: &Tensor, bias: &Value, activation: Activation) -> Result<Tensor, OperatorError> {
        let (name, scalars) = match activation {
            Activation::None => ("none", Vec::new()),
            Activation::Relu => ("relu", Vec::new()),
            Activation::Clamp { low, high } => ("hardtanh", vec![low, high]),
        };
        let weight = lock(&self.weights).forward(&input.size(), &self.operators)?;
        let [padding, stride, dilation, groups] = self.geometry.values();
        self.operators.convolution.call_tensor(&[
            Value::Tensor(input.shallow_clone()),
            Value::Tensor(weight),
            bias.clone(),
            padding,
            stride,
            dilation,
            groups,
            Value::String(name.into()),
            Value::Floats(scalars),
            Value::None,
        ])
    }

    /// Adds first and activates then, in place. oneDNN's own fused addition was measured at more than twice the time.
    fn convolve_and_add(&self, input: &Tensor, bias: &Value, other: &Tensor) -> Result<Tensor, OperatorError> {
        let mut sum = self.convolve(input, bias, Activation::None)?;
        let other = channels_last(&self.operators.contiguous, other)?;
        if other.size() != sum.size() {
            return Err(OperatorError::Argument {
                operator: "mkldnn._convolution_pointwise.binary".into(),
                argument: "other".into(),
                problem: format!("has shape {:?}, and the convolution gives {:?}", other.size(), sum.size()),
            });
        }
        match self.activation {
            Activation::None => Ok(sum.f_add_(&other)?),
            Activation::Relu => {
                self.operators.add_relu.call_tensor(&[Value::Tensor(sum), Value::Tensor(other), Value::Int(1)])
            }
            Activation::Clamp { low, high } => Ok(sum.f_add_(&other)?.f_clamp_(low, high)?),
        }
    }
}

impl Rule for Prepacked {
    fn forward(&self, arguments: &[Value], wanted: &[Slot]) -> Result<Ran, OperatorError> {
        let input = channels_last(&self.operators.contiguous, first(arguments)?)?;
        let other = if self.adds { arguments.get(1).and_then(Value::tensor) } else { None };
        let bias = arguments.get(if self.adds { 3 } else { 2 }).ok_or_else(|| unfit(2, "a bias", arguments))?;
        let result = match other {
            Some(other) => self.convolve_and_add(&input, bias, other)?,
            None => self.convolve(&input, bias, self.activation)?,
        };
        if wanted.is_empty() {
            return Ok((vec![Value::Tensor(result)], None));
        }
        let size = input.size();
        let back = Back {
            operators: self.operators.clone(),
            weights: lock(&self.weights).backward(&size, &self.operators)?,
            rest: self.geometry.result(&size, &self.weight_size).1,
            size,
            geometry: self.geometry,
            activation: self.activation,
            result: result.shallow_clone(),
            guided: self.guided,
        };
        let wanted: Vec<usize> = wanted.iter().map(|slot| slot.argument).collect();
        let saved = move |results: &[Option<Tensor>], gradient: Gradient| {
            let Some(Some(given)) = results.first() else { return Ok(wanted.iter().map(|_| None).collect()) };
            let given = back.through_the_gate(given, gradient)?;
            wanted
                .iter()
                .map(|&argument| match argument {
                    0 => back.through_the_convolution(&given).map(Some),
                    _ => Ok(Some(given.shallow_clone())),
                })
                .collect()
        };
        Ok((vec![Value::Tensor(result)], Some(Box::new(saved))))
    }
}

/// The way back of one run.
struct Back {
    operators: Operators,
    weights: Backward,
    /// The input's shape.
    size: Vec<i64>,
    rest: [i64; 2],
    geometry: Geometry,
    activation: Activation,
    /// It tells where the gate was open.
    result: Tensor,
    guided: bool,
}

impl Back {
    fn through_the_gate(&self, given: &Tensor, gradient: Gradient) -> Result<Tensor, OperatorError> {
        let given = channels_last(&self.operators.contiguous, given)?;
        let mut passed = match self.activation {
            Activation::None => return Ok(given),
            Activation::Relu => self.result.f_threshold_backward(&given, 0)?,
            Activation::Clamp { low, high } => self.result.f_hardtanh_backward(&given, low, high)?,
        };
        Ok(if self.guided && gradient == Gradient::Guided { passed.f_relu_()? } else { passed })
    }

    fn through_the_convolution(&self, given: &Tensor) -> Result<Tensor, OperatorError> {
        let weight = match &self.weights {
            Backward::Phases(phases) => {
                return phases.input_gradient(given, &self.size, &self.operators.convolution);
            }
            Backward::Transposed(weight) => weight,
        };
        let [padding, stride, dilation, groups] = self.geometry.values();
        self.operators.transposed.call_tensor(&[
            Value::Tensor(given.shallow_clone()),
            Value::Tensor(weight.shallow_clone()),
            Value::None,
            padding,
            Value::Ints(self.rest.to_vec()),
            stride,
            dilation,
            groups,
            Value::String("none".into()),
            Value::Floats(Vec::new()),
            Value::None,
        ])
    }
}

/// Weights are whole even when a panic came between: they are written in one go.
fn lock(weights: &Mutex<LaidOut>) -> std::sync::MutexGuard<'_, LaidOut> {
    weights.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The tensor with its channels next to each other in memory; itself where it has them so.
fn channels_last(contiguous: &Operator, tensor: &Tensor) -> Result<Tensor, OperatorError> {
    /// ATen's number of the memory format.
    const CHANNELS_LAST: i64 = 2;
    contiguous.call_tensor(&[Value::Tensor(tensor.shallow_clone()), Value::Int(CHANNELS_LAST)])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tch::Kind;

    use super::*;
    use crate::model::graph::{Operation, Rectifier, ValueId};
    use crate::plan::rules::trial::{Layout, any, relative_error, slot};

    #[derive(Debug, Clone)]
    struct Case {
        input: [i64; 4],
        outputs: i64,
        kernel: [i64; 2],
        geometry: Geometry,
        adds: bool,
        with_bias: bool,
        activation: (&'static str, Vec<f64>),
        layout: Layout,
        given: Layout,
    }

    fn case() -> impl Strategy<Value = Case> {
        let axis = || {
            (1..=7i64, 1..=3i64, 0..=3i64, 1..=2i64, 0..=9i64).prop_map(|(kernel, stride, padding, dilation, more)| {
                let dilation = if kernel > 4 { 1 } else { dilation };
                let padding = padding.min(dilation * (kernel - 1));
                let least = (dilation * (kernel - 1) + 1 - 2 * padding).max(1);
                (least + more, kernel, stride, padding, dilation)
            })
        };
        let channels = prop_oneof![
            (2..=5i64, 1..=9i64).prop_map(|(i, o)| [1, i, o]),
            (2..=3i64, 1..=3i64, 1..=3i64).prop_map(|(g, i, o)| [g, i, o]),
            (2..=8i64).prop_map(|g| [g, 1, 1]),
        ];
        let activation = prop_oneof![
            Just(("none", vec![])),
            Just(("relu", vec![])),
            Just(("hardtanh", vec![0.0, 1.5])),
            Just(("hardtanh", vec![-1.0, 1.0])),
        ];
        (
            1..=3i64,
            axis(),
            axis(),
            any::<bool>(),
            channels,
            any::<[bool; 2]>(),
            activation,
            any::layout(),
            any::layout(),
        )
            .prop_map(
                |(rows, a, b, same_stride, [groups, inputs, outputs], [adds, with_bias], activation, layout, given)| {
                    let b = if same_stride { (b.0 + a.2, b.1, a.2, b.3, b.4) } else { b };
                    Case {
                        input: [rows, groups * inputs, a.0, b.0],
                        outputs: groups * outputs,
                        kernel: [a.1, b.1],
                        geometry: Geometry { padding: [a.3, b.3], stride: [a.2, b.2], dilation: [a.4, b.4], groups },
                        adds,
                        with_bias,
                        activation,
                        layout,
                        given,
                    }
                },
            )
    }

    /// A node whose tensors are arguments, and their values.
    fn node(case: &Case) -> (Node, Vec<Value>) {
        let random = |shape: &[i64]| Value::Tensor(Layout::Contiguous.random(shape, Kind::Float));
        let [_, inputs, ..] = case.input;
        let weight = random(&[case.outputs, inputs / case.geometry.groups, case.kernel[0], case.kernel[1]]);
        let bias = if case.with_bias { random(&[case.outputs]) } else { Value::None };
        let input = Value::Tensor(case.layout.random(&case.input, Kind::Float));
        let (result, _) = case.geometry.result(&case.input, &weight.tensor().unwrap().size());
        let name = Value::String(case.activation.0.into());
        let scalars = Value::Floats(case.activation.1.clone());
        let geometry = case.geometry.values();
        let (overload, values): (_, Vec<Value>) = if case.adds {
            let other = Value::Tensor(case.layout.random(&result, Kind::Float));
            let name = if case.activation.0 == "none" { Value::None } else { name };
            let add = [Value::String("add".into()), Value::Float(1.0)];
            let tensors = [input, other, weight, bias];
            ("binary", tensors.into_iter().chain(geometry).chain(add).chain([name, scalars, Value::None]).collect())
        } else {
            ("", [input, weight, bias].into_iter().chain(geometry).chain([name, scalars, Value::None]).collect())
        };
        let arguments = values
            .iter()
            .enumerate()
            .map(|(i, value)| match value {
                Value::Tensor(_) => Argument::Use(ValueId(i as u32)),
                literal => Argument::Literal(literal.clone()),
            })
            .collect();
        let node = Node {
            name: "fused".into(),
            operation: Operation::Aten(Operator::find("mkldnn::_convolution_pointwise", overload).unwrap()),
            arguments,
            outputs: vec![Some(ValueId(99))],
            no_grad: false,
            rectifier: (case.activation.0 != "none").then_some(Rectifier { source: 0 }),
            smooth_activation: false,
        };
        (node, values)
    }

    fn rule(node: &Node, values: &[Value]) -> Prepacked {
        let (weight, geometry) = Prepacked::read(node).unwrap();
        let Argument::Use(ValueId(weight)) = weight else { panic!("the weight is a value") };
        let weight = values[*weight as usize].tensor().unwrap();
        Prepacked::new(node, geometry, Arc::new(Mutex::new(LaidOut::new(weight, geometry)))).unwrap()
    }

    /// What PyTorch's ordinary operators give.
    struct Expected {
        /// Before the activation.
        sum: Tensor,
        result: Tensor,
        /// Of the input, and of what is added.
        gradients: Vec<Tensor>,
    }

    fn expected(case: &Case, node: &Node, values: &[Value], given: &Tensor, gradient: Gradient) -> Expected {
        let leaf = |i: usize| values[i].tensor().unwrap().detach().set_requires_grad(true);
        let at = usize::from(case.adds);
        let input = leaf(0);
        let weight = values[1 + at].tensor().unwrap();
        let bias = values[2 + at].tensor();
        let g = case.geometry;
        let mut sum = input.conv2d(weight, bias, g.stride, g.padding, g.dilation, g.groups);
        let other = case.adds.then(|| leaf(1));
        if let Some(other) = &other {
            sum += other;
        }
        let result = match case.activation {
            ("relu", _) => sum.relu(),
            ("hardtanh", ref bounds) => {
                // Its derivative is 0 on the bounds, that of `clamp` is 1.
                Operator::find("aten::hardtanh", "")
                    .unwrap()
                    .call_recording(&[
                        Value::Tensor(sum.shallow_clone()),
                        Value::Float(bounds[0]),
                        Value::Float(bounds[1]),
                    ])
                    .unwrap()
                    .remove(0)
                    .tensor()
                    .unwrap()
                    .shallow_clone()
            }
            _ => sum.shallow_clone(),
        };
        let guided = gradient == Gradient::Guided && node.rectifier.is_some();
        let given = if guided { given.clamp_min(0) } else { given.shallow_clone() };
        let score = (&result * given).sum(Kind::Float);
        let leaves: Vec<&Tensor> = [&input].into_iter().chain(&other).collect();
        let gradients = Tensor::run_backward(&[score], &leaves, false, false);
        Expected { sum: sum.detach(), result: result.detach(), gradients }
    }

    /// Whether a gate is so near its edge that rounding may flip it.
    fn is_on_the_edge(case: &Case, sum: &Tensor) -> bool {
        let bounds: &[f64] = if case.activation.0 == "relu" { &[0.0] } else { &case.activation.1 };
        bounds.iter().any(|bound| (sum - *bound).abs().min().double_value(&[]) < 1e-5)
    }

    proptest! {
        #[test]
        fn a_prepacked_convolution_agrees_with_its_parts(case in case()) {
            let (node, values) = node(&case);
            let rule = rule(&node, &values);
            let wanted = if case.adds { vec![slot(0), slot(1)] } else { vec![slot(0)] };
            // Twice: the first run lays the weights out.
            for _ in 0..2 {
                let (results, saved) = rule.forward(&values, &wanted).unwrap();
                let result = results[0].tensor().unwrap();
                let given = case.given.random(&result.size(), Kind::Float);
                for gradient in [Gradient::Plain, Gradient::Guided] {
                    let expected = expected(&case, &node, &values, &given, gradient);
                    prop_assert!(relative_error(result, &expected.result) < 1e-5);
                    if is_on_the_edge(&case, &expected.sum) {
                        continue;
                    }
                    let found = saved.as_ref().unwrap().reverse(&[Some(given.shallow_clone())], gradient).unwrap();
                    prop_assert_eq!(found.len(), wanted.len());
                    for (found, expected) in found.iter().zip(&expected.gradients) {
                        let found = found.as_ref().unwrap();
                        prop_assert_eq!(found.size(), expected.size());
                        let error = relative_error(found, expected);
                        prop_assert!(error < 1e-5, "{:?}: {}", gradient, error);
                    }
                }
            }
        }
    }

    #[test]
    fn the_first_convolution_of_a_network_goes_back_by_phases() {
        // 7 × 7 with stride 2 and 11 × 11 with stride 4, on sizes that the stride does and does not divide.
        for (kernel, stride, padding, size) in
            [(7, 2, 3, 24), (7, 2, 3, 25), (11, 4, 2, 35), (5, 3, 0, 16), (6, 2, 5, 9)]
        {
            let case = Case {
                input: [2, 3, size, size + 1],
                outputs: 6,
                kernel: [kernel, kernel],
                geometry: Geometry { padding: [padding; 2], stride: [stride; 2], dilation: [1, 1], groups: 1 },
                adds: false,
                with_bias: true,
                activation: ("none", vec![]),
                layout: Layout::Contiguous,
                given: Layout::Contiguous,
            };
            assert!(Phases::suit(&[6, 3, kernel, kernel], &case.geometry));
            let (node, values) = node(&case);
            let (results, saved) = rule(&node, &values).forward(&values, &[slot(0)]).unwrap();
            let given = case.given.random(&results[0].tensor().unwrap().size(), Kind::Float);
            let expected = expected(&case, &node, &values, &given, Gradient::Plain);
            let found = saved.unwrap().reverse(&[Some(given)], Gradient::Plain).unwrap().remove(0).unwrap();
            assert!(relative_error(&found, &expected.gradients[0]) < 1e-5, "kernel {kernel} stride {stride}");
        }
    }

    #[test]
    fn a_run_without_gradients_saves_nothing() {
        let case = Case {
            input: [1, 3, 8, 8],
            outputs: 4,
            kernel: [3, 3],
            geometry: Geometry { padding: [1, 1], stride: [1, 1], dilation: [1, 1], groups: 1 },
            adds: false,
            with_bias: false,
            activation: ("relu", vec![]),
            layout: Layout::Contiguous,
            given: Layout::Contiguous,
        };
        let (node, values) = node(&case);
        assert!(rule(&node, &values).forward(&values, &[]).unwrap().1.is_none());
    }

    #[test]
    fn an_activation_that_it_does_not_know_is_refused() {
        let (mut node, values) = node(&Case {
            input: [1, 1, 2, 2],
            outputs: 1,
            kernel: [1, 1],
            geometry: Geometry { padding: [0, 0], stride: [1, 1], dilation: [1, 1], groups: 1 },
            adds: false,
            with_bias: false,
            activation: ("none", vec![]),
            layout: Layout::Contiguous,
            given: Layout::Contiguous,
        });
        node.arguments[7] = Argument::Literal(Value::String("gelu".into()));
        let (_, geometry) = Prepacked::read(&node).unwrap();
        let weights = LaidOut::new(values[1].tensor().unwrap(), geometry);
        let error = Prepacked::new(&node, geometry, Arc::new(Mutex::new(weights))).err().unwrap();
        assert!(error.to_string().contains("takes none, relu or hardtanh"), "{error}");
    }
}
