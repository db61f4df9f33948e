//! The operators that a file may call: those of ATen that compute results from their arguments and do nothing else.

use crate::model::ModelError;
use crate::model::operation::Symbolic;
use crate::torch::{Alias, Operator, Value};

use super::program::{ProgramArgument, ProgramNode, ProgramOperation};

/// Checks of sizes and dtypes that PyTorch made at export; they compute nothing.
const IGNORED: [&str; 5] = [
    "aten._assert_tensor_metadata.default",
    "aten._assert_scalar.default",
    "aten._assert_async.msg",
    "aten.sym_constrain_range.default",
    "aten.sym_constrain_range_for_size.default",
];

const NO_GRADIENT_ADVICE: &str = "export with gradients enabled, not under torch.no_grad()";

/// Why an operator of ATen is never run.
#[derive(Debug, Clone, Copy)]
enum Ban {
    Memory,
    Unchecked,
    Sparse,
    Quantized,
    Internal,
    Slow,
}

impl Ban {
    fn why(self) -> &'static str {
        match self {
            Ban::Memory => "accesses files or memory beyond its arguments",
            Ban::Unchecked => "does not check its arguments",
            Ban::Sparse => "makes or reads tensors that are not dense",
            Ban::Quantized => "computes with quantised numbers, which have no gradient",
            Ban::Internal => "is one of those that decompositions, autograd and other devices call",
            Ban::Slow => "takes any amount of time",
        }
    }

    fn advice(self) -> &'static str {
        match self {
            Ban::Internal => {
                "export the model in evaluation mode, on the CPU, and without run_decompositions(): the program then \
                 calls public operators"
            }
            Ban::Quantized => "export the model in floating point",
            Ban::Memory | Ban::Unchecked | Ban::Sparse | Ban::Slow => {
                "write this step of forward() with other operators before exporting"
            }
        }
    }
}

const FORBIDDEN: [(&str, Ban); 25] = [
    ("from_file", Ban::Memory),
    ("set_", Ban::Memory),
    ("set", Ban::Memory),
    ("set_data", Ban::Memory),
    ("resize_", Ban::Memory),
    ("resize", Ban::Memory),
    ("resize_as_", Ban::Memory),
    ("resize_as", Ban::Memory),
    ("resize_as_sparse_", Ban::Memory),
    ("data", Ban::Memory),
    ("record_stream", Ban::Memory),
    ("retain_grad", Ban::Memory),
    ("requires_grad_", Ban::Memory),
    ("rename", Ban::Memory),
    ("rename_", Ban::Memory),
    ("pin_memory", Ban::Memory),
    ("align_as", Ban::Unchecked),
    ("align_tensors", Ban::Unchecked),
    ("align_to", Ban::Unchecked),
    ("batch_norm_update_stats", Ban::Unchecked),
    ("choose_qparams_optimized", Ban::Unchecked),
    ("combinations", Ban::Unchecked),
    ("promote_types", Ban::Unchecked),
    ("range", Ban::Unchecked),
    ("segment_reduce", Ban::Unchecked),
];

/// Families of operators.
const FORBIDDEN_PARTS: [(&str, Ban); 14] = [
    ("sparse", Ban::Sparse),
    ("nested", Ban::Sparse),
    ("mkldnn", Ban::Internal),
    ("quantize", Ban::Quantized),
    ("fbgemm", Ban::Quantized),
    ("cudnn", Ban::Internal),
    ("miopen", Ban::Internal),
    ("mps", Ban::Internal),
    ("thnn", Ban::Internal),
    ("_backward", Ban::Internal),
    ("native_", Ban::Internal),
    ("fused_", Ban::Internal),
    ("slow_", Ban::Unchecked),
    // Of any degree.
    ("polynomial", Ban::Slow),
];

/// Why an operator is never run; none if it may be.
fn ban(name: &str) -> Option<Ban> {
    let named = FORBIDDEN.iter().find(|(known, _)| *known == name);
    let family = || FORBIDDEN_PARTS.iter().find(|(part, _)| name.contains(part) && !name.starts_with("fake_quantize_"));
    let internal = name.starts_with('_') && !name.starts_with("__") && !INTERNAL.contains(&name);
    named.or_else(family).map(|(_, ban)| *ban).or(internal.then_some(Ban::Internal))
}

/// Names with a leading underscore are ATen's own, and their arguments are not checked as those of public operators
/// are. These are the ones that torch.export writes into a program before it is decomposed.
const INTERNAL: [&str; 16] = [
    "_adaptive_avg_pool2d",
    "_adaptive_avg_pool3d",
    "_convolution",
    "_local_scalar_dense",
    "_log_softmax",
    "_softmax",
    "_to_copy",
    "_unique2",
    "_unsafe_view",
    "_upsample_bicubic2d_aa",
    "_upsample_bilinear2d_aa",
    "_upsample_lanczos2d_aa",
    "_upsample_nearest_exact1d",
    "_upsample_nearest_exact2d",
    "_upsample_nearest_exact3d",
    "_weight_norm",
];

const RANDOM: [&str; 15] = [
    "rand",
    "randn",
    "rand_like",
    "randn_like",
    "randint",
    "randint_like",
    "bernoulli",
    "bernoulli_",
    "normal",
    "normal_",
    "uniform_",
    "multinomial",
    "randperm",
    "rrelu_with_noise",
    "rrelu_with_noise_",
];

const DROPOUT: [&str; 8] = [
    "dropout",
    "dropout_",
    "feature_dropout",
    "feature_dropout_",
    "alpha_dropout",
    "alpha_dropout_",
    "feature_alpha_dropout",
    "feature_alpha_dropout_",
];

/// A dropout in evaluation mode: its result is its input.
pub fn is_dropout(name: &str) -> bool {
    DROPOUT.contains(&name)
}

/// Whether nodes of this target (`aten._assert_scalar.default`) are skipped.
pub fn is_ignored(target: &str) -> bool {
    IGNORED.contains(&target)
}

/// Finds the operator of a node. Only ATen's are allowed, and none that accesses memory beyond its arguments.
pub fn find(target: &str, node: &str) -> Result<ProgramOperation, ModelError> {
    let unknown = |why: &str| {
        ModelError::refused(
            format!("operator {target} (node {node}) {why}"),
            "camlens runs operators of ATen; replace custom operators before exporting",
        )
    };
    let mut parts = target.split('.');
    let (Some(space), Some(name)) = (parts.next(), parts.next()) else { return Err(unknown("is not known")) };
    if matches!(space, "_operator" | "math" | "torch") {
        return Symbolic::find(name).map(ProgramOperation::Symbolic).ok_or_else(|| unknown("is not known"));
    }
    if space != "aten" {
        return Err(unknown("is not one of ATen's"));
    }
    let random = || {
        ModelError::refused(
            format!("{target} (node {node}) is random"),
            "explanations need a deterministic model: call model.eval() before exporting, and take out of forward() \
             what is random even then",
        )
    };
    if RANDOM.contains(&name) {
        return Err(random());
    }
    if matches!(name, "_native_multi_head_attention" | "_transformer_encoder_layer_fwd") {
        return Err(ModelError::refused(format!("{target} (node {node}) has no derivative"), NO_GRADIENT_ADVICE));
    }
    if let Some(ban) = ban(name) {
        let problem = format!("operator {target} (node {node}) is never run: it {}", ban.why());
        return Err(ModelError::refused(problem, ban.advice()));
    }
    let overload = parts.next().unwrap_or("default");
    let overload = if overload == "default" { "" } else { overload };
    let operator =
        Operator::find(&format!("aten::{name}"), overload).map_err(|_| unknown("is not in this libtorch (2.11)"))?;
    let schema = operator.schema();
    // An operator with a `generator` argument draws random numbers. `rrelu` does so only in training, which is refused
    // below.
    if schema.position("generator").is_some() && schema.position("training").is_none() {
        return Err(random());
    }
    let written = schema.arguments.iter().filter(|a| a.alias == Alias::Written).count();
    if written > 1 || name.ends_with("_out") || overload.contains("out") {
        return Err(unknown("writes into tensors that it is given"));
    }
    if schema.returns.is_empty() {
        return Err(unknown("gives nothing"));
    }
    Ok(ProgramOperation::Aten(operator))
}

/// Evaluation mode is what is explained.
pub fn refuse_training(node: &ProgramNode) -> Result<(), ModelError> {
    let ProgramOperation::Aten(operator) = &node.operation else { return Ok(()) };
    let argument = |name: &str| operator.schema().position(name).and_then(|i| node.arguments.get(i));
    let is_off = |argument: &ProgramArgument| matches!(argument, ProgramArgument::Literal(Value::Bool(false)));
    let is_absent = |argument: &ProgramArgument| matches!(argument, ProgramArgument::Literal(Value::None));
    if ["train", "training"].into_iter().filter_map(argument).any(|flag| !is_off(flag)) {
        if argument("running_mean").is_some_and(is_absent) {
            return Err(ModelError::refused(
                format!(
                    "node {} ({operator}) has no running statistics: it normalises by those of the batch",
                    node.name
                ),
                "train it with track_running_stats=True, or use a normalisation of each frame, such as GroupNorm",
            ));
        }
        return Err(ModelError::refused(
            format!("node {} ({operator}) is in training mode", node.name),
            "call model.eval() before torch.export.export",
        ));
    }
    let drops = |argument: &ProgramArgument| {
        !matches!(argument, ProgramArgument::Literal(Value::Float(p)) if *p == 0.0)
            && !matches!(argument, ProgramArgument::Literal(Value::Int(0)))
    };
    if argument("dropout_p").is_some_and(drops) {
        return Err(ModelError::refused(
            format!("node {} ({operator}) is random: its dropout_p is not 0", node.name),
            "call model.eval() before torch.export.export, and give dropout_p = 0 then",
        ));
    }
    Ok(())
}
