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

/// Operators that access files, storages or other memory, or that change a tensor's type or layout.
const FORBIDDEN: [&str; 25] = [
    "from_file",
    "set_",
    "set",
    "set_data",
    "resize_",
    "resize",
    "resize_as_",
    "resize_as",
    "resize_as_sparse_",
    "data",
    "record_stream",
    "retain_grad",
    "requires_grad_",
    "rename",
    "rename_",
    "pin_memory",
    // These do not check their arguments.
    "align_as",
    "align_tensors",
    "align_to",
    "batch_norm_update_stats",
    "choose_qparams_optimized",
    "combinations",
    "promote_types",
    "range",
    "segment_reduce",
];

/// Families of operators whose results are no dense tensors, that only other back ends, decompositions or autograd
/// call, or that take their arguments unchecked (`slow_conv3d`) or any time (polynomials of any degree).
const FORBIDDEN_PARTS: [&str; 14] = [
    "sparse",
    "mkldnn",
    "quantize",
    "fbgemm",
    "nested",
    "cudnn",
    "miopen",
    "mps",
    "thnn",
    "_backward",
    "native_",
    "fused_",
    "slow_",
    "polynomial",
];

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
    let family = FORBIDDEN_PARTS.iter().any(|part| name.contains(part)) && !name.starts_with("fake_quantize_");
    let internal = name.starts_with('_') && !name.starts_with("__") && !INTERNAL.contains(&name);
    let random = || {
        ModelError::refused(
            format!("{target} (node {node}) is random"),
            "explanations need a deterministic model: model.eval()",
        )
    };
    if RANDOM.contains(&name) {
        return Err(random());
    }
    if matches!(name, "_native_multi_head_attention" | "_transformer_encoder_layer_fwd") {
        return Err(ModelError::refused(format!("{target} (node {node}) has no derivative"), NO_GRADIENT_ADVICE));
    }
    if FORBIDDEN.contains(&name) || family || internal {
        return Err(unknown("reaches beyond its tensors, or is internal to ATen, and is never run"));
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
