//! What a plan is compiled for.

use tch::Device;

use crate::model::node::ValueId;

/// How a plan runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Mode {
    /// With folded weights, fused nodes and the backend's kernels.
    #[default]
    Default,
    /// Operator by operator as PyTorch runs it, for comparison with PyTorch.
    Exact,
    /// As the default, with values and weights rounded to bfloat16. For float32 models.
    Bfloat16,
}

/// The key of a plan, together with the model that its graph belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PlanSpec {
    /// The logits.
    pub score: ValueId,
    /// Values whose activations are wanted, and whose gradients are when `target_gradients` is set.
    pub targets: Vec<ValueId>,
    pub mode: Mode,
    /// Whether a reverse run may compute the input's gradient.
    pub input_gradient: bool,
    /// Whether a reverse run may stop at the targets.
    pub target_gradients: bool,
    /// Whether guided runs guide smooth activations (SiLU, GELU, …) as well as rectifiers.
    pub guide_smooth: bool,
    /// Height and width in pixels.
    pub input_size: [i64; 2],
    pub device: Device,
}
