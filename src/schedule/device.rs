//! What runs batches, as the worker sees it.

use crate::explain::{ExplainError, Method, RowMaps, Target};
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
