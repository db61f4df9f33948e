use proptest::prelude::*;
use tch::Kind;

use super::backward::{InputGradientKernel, flipped};
use super::forward::ForwardKernel;
use super::gemm::Gemm;
use super::winograd::Winograd;
use super::*;
use crate::model::node::{Argument, Node, Rectifier, ValueId};
use crate::model::operation::Operation;
use crate::plan::KernelChoice;
use crate::plan::constant::Constant;
use crate::plan::rules::against_tape::{Layout, any, relative_error, slot};
use crate::torch::{Operator, has_gemm_kernels, has_onednn_kernels};

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
    grad_output: Layout,
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
    (1..=3i64, axis(), axis(), any::<bool>(), channels, any::<[bool; 2]>(), activation, any::layout(), any::layout())
        .prop_map(
            |(
                rows,
                a,
                b,
                same_stride,
                [groups, inputs, outputs],
                [adds, with_bias],
                activation,
                layout,
                grad_output,
            )| {
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
                    grad_output,
                }
            },
        )
}

/// A node that reads its tensors as arguments, and their values.
fn node(case: &Case) -> (Node, Vec<Value>) {
    let random = |shape: &[i64]| Value::Tensor(Layout::Contiguous.random(shape, Kind::Float));
    let [_, inputs, ..] = case.input;
    let weight = random(&[case.outputs, inputs / case.geometry.groups, case.kernel[0], case.kernel[1]]);
    let bias = if case.with_bias { random(&[case.outputs]) } else { Value::None };
    let input = Value::Tensor(case.layout.random(&case.input, Kind::Float));
    let result = case.geometry.output_shape(&case.input, &weight.tensor().unwrap().size());
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

fn rule(node: &Node, values: &[Value]) -> ConvolutionRule {
    let fused = FusedNode::read(node).unwrap().unwrap();
    let weight = Constant::Whole(values[fused.weight_position].tensor().unwrap().shallow_clone());
    let packed = PackedConvolution::new(weight, fused.geometry, KernelChoice::default());
    ConvolutionRule::new(&fused, Arc::new(Mutex::new(packed))).unwrap()
}

/// Results of PyTorch's ordinary operators.
struct Expected {
    /// Before the activation.
    sum: Tensor,
    result: Tensor,
    /// Of the input, and of the added tensor.
    gradients: Vec<Tensor>,
}

fn expected(case: &Case, node: &Node, values: &[Value], grad_output: &Tensor, gradient: Gradient) -> Expected {
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
            // Its derivative at the bounds is 0; that of `clamp` is 1.
            Operator::find("aten::hardtanh", "")
                .unwrap()
                .call_recording(&[Value::Tensor(sum.shallow_clone()), Value::Float(bounds[0]), Value::Float(bounds[1])])
                .unwrap()
                .remove(0)
                .tensor()
                .unwrap()
                .shallow_clone()
        }
        _ => sum.shallow_clone(),
    };
    let guided = gradient == Gradient::Guided && node.rectifier.is_some();
    let grad_output = if guided { grad_output.clamp_min(0) } else { grad_output.shallow_clone() };
    let score = (&result * grad_output).sum(Kind::Float);
    let leaves: Vec<&Tensor> = [&input].into_iter().chain(&other).collect();
    let gradients = Tensor::run_backward(&[score], &leaves, false, false);
    Expected { sum: sum.detach(), result: result.detach(), gradients }
}

/// Whether an element is so near a bound that rounding, relative to the largest sum, may change whether its gradient
/// passes.
fn is_on_the_edge(case: &Case, sum: &Tensor) -> bool {
    let bounds: &[f64] = if case.activation.0 == "relu" { &[0.0] } else { &case.activation.1 };
    let rounding = 1e-5 * sum.abs().max().double_value(&[]);
    bounds.iter().any(|bound| (sum - *bound).abs().min().double_value(&[]) < rounding)
}

proptest! {
    #[test]
    fn a_packed_convolution_agrees_with_its_parts(case in case()) {
        let (node, values) = node(&case);
        let rule = rule(&node, &values);
        let wanted = if case.adds { vec![slot(0), slot(1)] } else { vec![slot(0)] };
        // Twice: the first run packs the weight.
        for _ in 0..2 {
            let (results, saved) = rule.forward(&values, &wanted).unwrap();
            let result = results[0].tensor().unwrap();
            let grad_output = case.grad_output.random(&result.size(), Kind::Float);
            for gradient in [Gradient::Plain, Gradient::Guided] {
                let expected = expected(&case, &node, &values, &grad_output, gradient);
                // Relative to the sum before the activation, which may leave little of it.
                let off = &expected.sum + (result - &expected.result);
                prop_assert!(relative_error(&off, &expected.sum) < 1e-5);
                if is_on_the_edge(&case, &expected.sum) {
                    continue;
                }
                let found = saved.as_ref().unwrap().reverse(&[Some(grad_output.shallow_clone())], gradient).unwrap();
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

proptest! {
    #[test]
    fn every_backward_kernel_gives_the_gradient(case in case()) {
        let case = Case { adds: false, activation: ("none", vec![]), ..case };
        let (node, values) = node(&case);
        let weight = values[1].tensor().unwrap();
        let shape = case.geometry.output_shape(&case.input, &weight.size());
        let grad_output = channels_last(&Layout::Contiguous.random(&shape, Kind::Float)).unwrap();
        let expected = expected(&case, &node, &values, &grad_output, Gradient::Plain).gradients.remove(0);
        let operators = Operators::find().unwrap();
        let kernels = backward_kernels(weight, &case.geometry, &shape, &case.input, &operators);
        for kernel in kernels {
            let call = kernel.call(&weight.size(), &case.geometry, &shape, &case.input, &operators).unwrap();
            let found = call.input_gradient(&grad_output).unwrap();
            prop_assert_eq!(found.size(), expected.size());
            let error = relative_error(&found, &expected);
            prop_assert!(error < 1e-5, "{:?}: {}", kernel, error);
        }
    }
}

proptest! {
    #[test]
    fn every_backward_kernel_takes_a_guided_gradient_through_the_gate(case in case()) {
        let mut case = Case { adds: false, activation: ("relu", vec![]), ..case };
        case.input[0] = 1;
        let (node, values) = node(&case);
        let rule = rule(&node, &values);
        let (results, saved) = rule.forward(&values, &[slot(0)]).unwrap();
        let shape = results[0].tensor().unwrap().size();
        let grad_output = case.grad_output.random(&shape, Kind::Float);
        let expected = expected(&case, &node, &values, &grad_output, Gradient::Guided);
        if is_on_the_edge(&case, &expected.sum) {
            return Ok(());
        }
        let (weight, operators) = (values[1].tensor().unwrap(), Operators::find().unwrap());
        for kernel in backward_kernels(weight, &case.geometry, &shape, &case.input, &operators) {
            let call = kernel.call(&weight.size(), &case.geometry, &shape, &case.input, &operators).unwrap();
            *lock(&rule.convolution.backward) = Some(([case.input[2], case.input[3]], Chosen::sole(call)));
            let saved = saved.as_ref().unwrap();
            let found = saved.reverse(&[Some(grad_output.shallow_clone())], Gradient::Guided).unwrap();
            let error = relative_error(found[0].as_ref().unwrap(), &expected.gradients[0]);
            prop_assert!(error < 1e-5, "{:?}: {}", kernel, error);
        }
    }
}

/// Every forward kernel that suits, packed.
fn forward_kernels(weight: &Tensor, geometry: &Geometry, input: &[i64], operators: &Operators) -> Vec<ForwardKernel> {
    let candidates = ForwardKernel::candidates(weight, geometry, input, operators);
    candidates.into_iter().filter_map(|candidate| candidate.pack().unwrap()).collect()
}

fn backward_kernels(
    weight: &Tensor,
    geometry: &Geometry,
    grad_output: &[i64],
    size: &[i64],
    operators: &Operators,
) -> Vec<InputGradientKernel> {
    let flipped = flipped(weight, geometry, grad_output).unwrap();
    let kernels = |forward: Option<&Tensor>| {
        let candidates =
            InputGradientKernel::candidates(weight, forward, flipped.as_ref(), geometry, grad_output, size, operators);
        candidates.into_iter().filter_map(|candidate| candidate.pack().unwrap()).collect::<Vec<_>>()
    };
    let forward = forward_kernels(weight, geometry, size, operators);
    let shared =
        forward.iter().filter_map(|kernel| kernel.panels().unwrap()).flat_map(|panels| kernels(Some(&panels)).pop());
    kernels(None).into_iter().chain(shared).collect()
}

#[test]
fn a_kernel_for_each_channel_alone_suits_depthwise_convolutions() {
    if !has_gemm_kernels(Kind::Float) {
        return;
    }
    let operators = Operators::find().unwrap();
    let suits = |weight: &Tensor, groups: i64, padding: i64| {
        let geometry = Geometry { padding: [padding; 2], stride: [1, 1], dilation: [1, 1], groups };
        let input = [1, groups * weight.size()[1], 9, 9];
        let result = geometry.output_shape(&input, &weight.size());
        let forward = forward_kernels(weight, &geometry, &input, &operators);
        let backward = backward_kernels(weight, &geometry, &result, &input, &operators);
        (
            forward.iter().any(|kernel| matches!(kernel, ForwardKernel::Depthwise(_))),
            backward.iter().any(|kernel| matches!(kernel, InputGradientKernel::Depthwise(_))),
        )
    };
    let weight = |shape: [i64; 4]| Layout::Contiguous.random(&shape, Kind::Float);
    assert_eq!(suits(&weight([8, 1, 3, 3]), 8, 1), (true, true));
    // Two results for each channel; four groups of two channels.
    assert_eq!(suits(&weight([16, 1, 3, 3]), 8, 1), (false, false));
    assert_eq!(suits(&weight([8, 2, 3, 3]), 4, 1), (false, false));
    // Padding times infinity is NaN, and is not multiplied.
    let infinite = weight([8, 1, 3, 3]);
    let _ = infinite.get(5).get(0).get(1).get(1).fill_(f64::INFINITY);
    assert_eq!(suits(&infinite, 8, 1), (false, false));
    assert_eq!(suits(&infinite, 8, 0), (true, true));
}

/// Convolutions that suit Winograd's algorithm.
fn case_of_3_by_3() -> impl Strategy<Value = Case> {
    let channels = || prop_oneof![Just(16i64), Just(32)];
    (case(), channels(), channels(), [3..=11i64, 3..=11i64], 0..=2i64).prop_map(
        |(case, inputs, outputs, size, padding)| Case {
            input: [case.input[0], inputs, size[0], size[1]],
            outputs,
            kernel: [3, 3],
            geometry: Geometry { padding: [padding; 2], stride: [1, 1], dilation: [1, 1], groups: 1 },
            adds: false,
            ..case
        },
    )
}

proptest! {
    #[test]
    fn winograds_algorithm_gives_result_and_gradient(case in case_of_3_by_3()) {
        let (node, values) = node(&case);
        let (input, weight) = (channels_last(values[0].tensor().unwrap()).unwrap(), values[1].tensor().unwrap());
        let activation = rule(&node, &values).activation;
        let operators = Operators::find().unwrap();
        let shape = case.geometry.output_shape(&case.input, &weight.size());
        let grad_output = channels_last(&Layout::Contiguous.random(&shape, Kind::Float)).unwrap();
        let plain = Case { activation: ("none", vec![]), ..case.clone() };
        let gradient = expected(&plain, &node, &values, &grad_output, Gradient::Plain).gradients.remove(0);
        let expected = expected(&case, &node, &values, &grad_output, Gradient::Plain);

        let forward = forward_kernels(weight, &case.geometry, &case.input, &operators);
        prop_assert_eq!(forward.len(), if has_gemm_kernels(Kind::Float) { 5 } else { 1 });
        for kernel in forward {
            let call = kernel.call(&values[2], &case.geometry, activation, &operators).unwrap();
            let found = call.run(&input).unwrap();
            let error = relative_error(&(&expected.sum + (found - &expected.result)), &expected.sum);
            prop_assert!(error < 1e-5, "{:?}: {}", kernel, error);
        }
        let backward = backward_kernels(weight, &case.geometry, &shape, &case.input, &operators);
        let is_winograd = |kernel: &&InputGradientKernel| {
            matches!(kernel, InputGradientKernel::FlippedKernel(ForwardKernel::Winograd(_)))
        };
        prop_assert_eq!(backward.iter().filter(is_winograd).count(), if has_gemm_kernels(Kind::Float) { 2 } else { 0 });
        for kernel in backward {
            let call = kernel.call(&weight.size(), &case.geometry, &shape, &case.input, &operators).unwrap();
            let error = relative_error(&call.input_gradient(&grad_output).unwrap(), &gradient);
            prop_assert!(error < 1e-5, "{:?}: {}", kernel, error);
        }
    }
}

/// Convolutions of 1 × 1 kernels.
fn case_of_1_by_1() -> impl Strategy<Value = Case> {
    (case(), 1..=40i64, 2..=40i64, [1..=11i64, 1..=11i64]).prop_map(|(case, inputs, outputs, size)| Case {
        input: [case.input[0], inputs, size[0], size[1]],
        outputs,
        kernel: [1, 1],
        geometry: Geometry { padding: [0; 2], stride: [1, 1], dilation: [1, 1], groups: 1 },
        adds: false,
        ..case
    })
}

proptest! {
    #[test]
    fn a_matrix_product_gives_result_and_gradient(case in case_of_1_by_1()) {
        let (node, values) = node(&case);
        let (input, weight) = (channels_last(values[0].tensor().unwrap()).unwrap(), values[1].tensor().unwrap());
        let activation = rule(&node, &values).activation;
        let operators = Operators::find().unwrap();
        let shape = case.geometry.output_shape(&case.input, &weight.size());
        let grad_output = channels_last(&Layout::Contiguous.random(&shape, Kind::Float)).unwrap();
        let plain = Case { activation: ("none", vec![]), ..case.clone() };
        let gradient = expected(&plain, &node, &values, &grad_output, Gradient::Plain).gradients.remove(0);
        let expected = expected(&case, &node, &values, &grad_output, Gradient::Plain);

        let forward = forward_kernels(weight, &case.geometry, &case.input, &operators);
        prop_assert_eq!(forward.len(), if has_gemm_kernels(Kind::Float) { 3 } else { 1 });
        for kernel in forward {
            let found = kernel.call(&values[2], &case.geometry, activation, &operators).unwrap().run(&input).unwrap();
            let error = relative_error(&(&expected.sum + (found - &expected.result)), &expected.sum);
            prop_assert!(error < 1e-5, "{:?}: {}", kernel, error);
        }
        let backward = backward_kernels(weight, &case.geometry, &shape, &case.input, &operators);
        let is_gemm =
            |kernel: &InputGradientKernel| matches!(kernel, InputGradientKernel::FlippedKernel(ForwardKernel::Gemm(_)));
        prop_assert!(!has_gemm_kernels(Kind::Float) || backward.iter().any(is_gemm));
        for kernel in backward {
            let call = kernel.call(&weight.size(), &case.geometry, &shape, &case.input, &operators).unwrap();
            let error = relative_error(&call.input_gradient(&grad_output).unwrap(), &gradient);
            prop_assert!(error < 1e-5, "{:?}: {}", kernel, error);
        }
    }
}

/// In bfloat16 where the processor has it. Elsewhere plans hold float32 alone, which needs no conversion.
#[test]
fn groups_in_bfloat16_go_back_in_float32_too() {
    let kind = if has_onednn_kernels(Kind::BFloat16) { Kind::BFloat16 } else { Kind::Float };
    let operators = Operators::find().unwrap();
    let geometry = Geometry { padding: [1, 1], stride: [2, 2], dilation: [1, 1], groups: 16 };
    let size = [2, 16, 9, 10];
    let weight = Layout::Contiguous.random(&[16, 1, 3, 3], kind);
    let shape = geometry.output_shape(&size, &weight.size());
    let grad_output = channels_last(&Layout::Contiguous.random(&shape, kind)).unwrap();
    let float = |tensor: &Tensor| tensor.to_kind(Kind::Float);
    let leaf = Tensor::zeros(size, (Kind::Float, tch::Device::Cpu)).set_requires_grad(true);
    let result = leaf.conv2d(&float(&weight), None::<Tensor>, geometry.stride, geometry.padding, [1, 1], 16);
    let expected =
        Tensor::run_backward(&[(result * float(&grad_output)).sum(Kind::Float)], &[&leaf], false, false).remove(0);
    let kernels = backward_kernels(&weight, &geometry, &shape, &size, &operators);
    assert_eq!(kernels.iter().any(|kernel| matches!(kernel, InputGradientKernel::Float32(_))), kind == Kind::BFloat16);
    for kernel in kernels {
        let call = kernel.call(&weight.size(), &geometry, &shape, &size, &operators).unwrap();
        let found = call.input_gradient(&grad_output).unwrap();
        assert_eq!(found.kind(), kind);
        let error = relative_error(&float(&found), &expected);
        let limit = if kind == Kind::BFloat16 { 5e-3 } else { 1e-5 };
        assert!(error < limit, "{kernel:?} is off by {error}");
    }
}

/// Where the processor has bfloat16, every kernel is as close to the result as bfloat16 allows.
#[test]
fn every_kernel_takes_bfloat16() {
    let operators = Operators::find().unwrap();
    for (kernel, padding) in [(1, 0), (3, 1)] {
        let geometry = Geometry { padding: [padding; 2], stride: [1, 1], dilation: [1, 1], groups: 1 };
        let random = |shape: &[i64]| Layout::Contiguous.random(shape, Kind::BFloat16);
        let (input, weight, bias) = (random(&[2, 32, 9, 10]), random(&[48, 32, kernel, kernel]), random(&[48]));
        if !has_onednn_kernels(Kind::BFloat16) {
            assert_eq!(Gemm::new(&weight, &geometry).unwrap().is_some(), has_gemm_kernels(Kind::BFloat16));
            assert!(Winograd::candidates(&weight, &geometry).is_empty());
            continue;
        }
        let float = |t: &Tensor| t.to_kind(Kind::Float);
        let sum = float(&input).conv2d(&float(&weight), Some(float(&bias)), 1, padding, 1, 1);
        let kernels = forward_kernels(&weight, &geometry, &input.size(), &operators);
        let products = usize::from(has_gemm_kernels(Kind::BFloat16));
        let own_kernels = 2 * products + if kernel == 1 { 0 } else { 2 };
        assert_eq!(kernels.len(), 1 + own_kernels);
        for kernel in kernels {
            let call =
                kernel.call(&Value::Tensor(bias.shallow_clone()), &geometry, Activation::Relu, &operators).unwrap();
            let found = call.run(&channels_last(&input).unwrap()).unwrap();
            assert_eq!(found.kind(), Kind::BFloat16);
            assert!(relative_error(&float(&found), &sum.relu()) < 4e-3, "{kernel:?}");
        }
    }
}

#[test]
fn a_kernel_that_does_not_suit_another_size_is_chosen_again() {
    // On inputs of 4 × 4 a window of the flipped kernel, padded by 4, would lie in the padding alone.
    let geometry = Geometry { padding: [0, 0], stride: [1, 1], dilation: [1, 1], groups: 4 };
    let weight = Layout::Contiguous.random(&[4, 1, 3, 3], Kind::Float);
    let scale = Layout::Contiguous.random(&[4, 1, 1, 1], Kind::Double);
    let scaled = Constant::Scaled { weight: Box::new(Constant::Whole(weight.shallow_clone())), scale };
    let mut packed = PackedConvolution::new(scaled.clone(), geometry, KernelChoice::default());
    let operators = Operators::find().unwrap();
    for size in [9, 3, 9] {
        let grad_output = channels_last(&Layout::Contiguous.random(&[1, 4, size - 2, size - 2], Kind::Float)).unwrap();
        let kernel = packed.backward(&grad_output, &[1, 4, size, size], &operators).unwrap().kernel();
        assert!(kernel.suits(&weight.size(), &geometry, &grad_output.size()));
        let call =
            kernel.call(&weight.size(), &geometry, &grad_output.size(), &[1, 4, size, size], &operators).unwrap();
        let expected = grad_output.conv_transpose2d(
            &scaled.tensor().unwrap(),
            None::<Tensor>,
            geometry.stride,
            geometry.padding,
            [0i64, 0],
            geometry.groups,
            geometry.dilation,
        );
        assert!(relative_error(&call.input_gradient(&grad_output).unwrap(), &expected) < 1e-5);
    }
}

#[test]
fn a_weight_that_could_not_be_packed_is_packed_later() {
    let geometry = Geometry { padding: [0, 0], stride: [1, 1], dilation: [1, 1], groups: 1 };
    let weight = Layout::Contiguous.random(&[6, 4, 3, 3], Kind::Float);
    let mut packed = PackedConvolution::new(Constant::Whole(weight), geometry, KernelChoice::default());
    let operators = Operators::find().unwrap();
    let input = |channels| channels_last(&Layout::Contiguous.random(&[1, channels, 9, 9], Kind::Float)).unwrap();
    let epilogue = Epilogue { other: None, activation: Activation::Relu, wants_gate: true, guided: true };
    assert!(packed.forward(&input(5), &epilogue, &operators).is_err());
    assert!(packed.forward(&input(4), &epilogue, &operators).is_ok());
}

#[test]
fn every_kernel_applies_the_epilogue() {
    let operators = Operators::find().unwrap();
    for (size, kernel) in [([1, 32, 6, 7], 1), ([1, 16, 5, 5], 3), ([2, 32, 6, 7], 1)] {
        let geometry = Geometry { padding: [kernel / 2; 2], stride: [1, 1], dilation: [1, 1], groups: 1 };
        let random = |shape: &[i64]| channels_last(&Layout::Contiguous.random(shape, Kind::Float)).unwrap();
        let weight = Layout::Contiguous.random(&[48, size[1], kernel, kernel], Kind::Float);
        let (input, shape) = (random(&size), geometry.output_shape(&size, &weight.size()));
        let (other, grad_output) = (random(&shape), random(&shape));
        let sum = input.conv2d(&weight, None::<Tensor>, [1, 1], geometry.padding, [1, 1], 1);
        for (other, wants_gate) in [(None, true), (Some(&other), true), (Some(&other), false)] {
            let epilogue = Epilogue { other, activation: Activation::Relu, wants_gate, guided: true };
            let result = other.map_or_else(|| sum.copy(), |other| &sum + other).relu();
            for kernel in forward_kernels(&weight, &geometry, &size, &operators) {
                let call = kernel.call(&Value::None, &geometry, epilogue.fused_activation(), &operators).unwrap();
                let (found, gate) = call.run_with(&input, &epilogue).unwrap();
                assert!(relative_error(&found, &result) < 1e-5, "{kernel:?}");
                assert_eq!(gate.is_some(), wants_gate, "{kernel:?}");
                let Some(gate) = gate else { continue };
                let passed = gate.pass(&[grad_output.copy()], Gradient::Guided).unwrap().unwrap();
                let open = found.gt(0.0).to_kind(Kind::Float);
                assert!(passed.equal(&(grad_output.relu() * open)), "{kernel:?}");
            }
        }
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
        grad_output: Layout::Contiguous,
    };
    let (node, values) = node(&case);
    assert!(rule(&node, &values).forward(&values, &[]).unwrap().1.is_none());
}

#[test]
fn an_activation_that_it_does_not_know_is_refused() {
    let (mut node, _) = node(&Case {
        input: [1, 1, 2, 2],
        outputs: 1,
        kernel: [1, 1],
        geometry: Geometry { padding: [0, 0], stride: [1, 1], dilation: [1, 1], groups: 1 },
        adds: false,
        with_bias: false,
        activation: ("none", vec![]),
        layout: Layout::Contiguous,
        grad_output: Layout::Contiguous,
    });
    node.arguments[7] = Argument::Literal(Value::String("gelu".into()));
    let error = FusedNode::read(&node).err().unwrap();
    assert!(error.to_string().contains("takes none, relu or hardtanh"), "{error}");
}

/// Fills memory that the next allocation reuses with NaN, so that an unwritten element shows.
fn spoil(shape: &[i64]) {
    for kind in [Kind::Float, Kind::BFloat16] {
        drop(Tensor::full(shape, f64::NAN, (kind, tch::Device::Cpu)));
    }
}

#[test]
fn every_kernel_writes_all_of_its_result() {
    let operators = Operators::find().unwrap();
    let kinds = [Kind::Float, Kind::BFloat16].into_iter().filter(|&kind| has_onednn_kernels(kind));
    for kind in kinds {
        let random = |shape: &[i64]| channels_last(&Layout::Contiguous.random(shape, kind)).unwrap();
        let float = |tensor: &Tensor| tensor.to_kind(Kind::Float);
        for (inputs, outputs, window, stride, padding, size) in [
            (3, 8, 3, 1, 1, [9, 9]),
            (8, 8, 3, 1, 1, [9, 9]),
            (8, 8, 3, 2, 1, [9, 10]),
            (3, 8, 7, 2, 3, [20, 21]),
            (16, 48, 1, 1, 0, [7, 7]),
            (16, 48, 1, 2, 0, [7, 8]),
            (32, 16, 3, 1, 2, [6, 7]),
            (6, 10, 2, 3, 0, [11, 13]),
        ] {
            let geometry = Geometry { padding: [padding; 2], stride: [stride; 2], dilation: [1, 1], groups: 1 };
            let (input, weight) = (random(&[2, inputs, size[0], size[1]]), random(&[outputs, inputs, window, window]));
            let leaf = float(&input).set_requires_grad(true);
            let expected = leaf.conv2d(&float(&weight), None::<Tensor>, geometry.stride, geometry.padding, [1, 1], 1);
            let grad_output = random(&expected.size()) * random(&expected.size()).gt(0.5);
            let grad_output = channels_last(&grad_output.to_kind(kind)).unwrap();
            let sum = (&expected * float(&grad_output)).sum(Kind::Float);
            let gradient = Tensor::run_backward(&[sum], &[&leaf], false, false).remove(0);
            let limit = if kind == Kind::Float { 1e-5 } else { 5e-3 };
            for kernel in forward_kernels(&weight, &geometry, &input.size(), &operators) {
                let call = kernel.call(&Value::None, &geometry, Activation::None, &operators).unwrap();
                for _ in 0..3 {
                    spoil(&expected.size());
                    let error = relative_error(&float(&call.run(&input).unwrap()), &expected);
                    assert!(error < limit, "{kind:?} {inputs} to {outputs} by {window}: {kernel:?} is off by {error}");
                }
            }
            for kernel in backward_kernels(&weight, &geometry, &grad_output.size(), &input.size(), &operators) {
                let call =
                    kernel.call(&weight.size(), &geometry, &grad_output.size(), &input.size(), &operators).unwrap();
                for _ in 0..3 {
                    spoil(&input.size());
                    let error = relative_error(&float(&call.input_gradient(&grad_output).unwrap()), &gradient);
                    assert!(error < limit, "{kind:?} {inputs} to {outputs} by {window}: {kernel:?} is off by {error}");
                }
            }
        }
    }
}
