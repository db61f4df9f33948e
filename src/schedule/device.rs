//! What runs batches, as the worker sees it.

use crate::explain::{ExplainError, Method, Target};
use crate::plan::Interrupt;
use crate::telemetry::Stage;

/// Rows that run together: one model, one method, one input size.
pub struct Batch<'a> {
    /// The model's place among those that the engine was started with.
    pub model: usize,
    pub method: &'a Method,
    /// `[C, H, W]` of each row.
    pub shape: [u32; 3],
    /// Each row's input, `C · H · W` numbers.
    pub inputs: Vec<&'a [f32]>,
    /// Each row's targets.
    pub targets: Vec<&'a [Target]>,
}

/// Runs batches. One thread owns it.
pub trait Device {
    /// Runs a batch; one result for each row, in order. `ended` is called when a stage of the whole batch has ended.
    ///
    /// # Errors
    /// What concerns the whole batch. What concerns one row is that row's result.
    fn run(
        &mut self,
        batch: &Batch<'_>,
        interrupt: &dyn Interrupt,
        ended: &mut dyn FnMut(Stage),
    ) -> Result<Vec<RowResult>, ExplainError>;
}

/// One row's maps, or what was wrong with the row.
pub type RowResult = Result<RowMaps, ExplainError>;

/// What came out for one row, in host memory.
#[derive(Debug, Clone, Default)]
pub struct RowMaps {
    /// Before softmax, one for each class.
    pub logits: Vec<f32>,
    pub targets: Vec<TargetValues>,
}

/// One class at one target layer.
#[derive(Debug, Clone, Default)]
pub struct TargetValues {
    pub class_index: u32,
    pub score: f32,
    pub target_layer: String,
    pub no_positive_evidence: bool,
    /// `[h, w]`, in the layer's resolution.
    pub layer_map: Option<HostMap>,
    /// `[H, W]`.
    pub grad_cam: Option<HostMap>,
    /// `[C, H, W]`.
    pub guided_backprop: Option<HostMap>,
    /// `[C, H, W]`.
    pub guided_grad_cam: Option<HostMap>,
}

/// A dense tensor in host memory, row-major.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HostMap {
    pub values: Vec<f32>,
    pub shape: Vec<u32>,
}
