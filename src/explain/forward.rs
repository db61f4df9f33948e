//! A batch after its forward run: it chooses classes and runs in reverse.

use tch::Tensor;

use crate::plan::Interrupt;
use crate::torch;

use super::enqueued::Enqueued;
use super::reversed::Reversed;
use super::targets::choose_classes;
use super::{ExplainError, Target};

/// A batch after its forward run.
pub struct Forward<'e> {
    pub(super) logits: Tensor,
    pub(super) enqueued: Enqueued<'e>,
}

impl<'e> Forward<'e> {
    /// Waits for the logits.
    ///
    /// # Errors
    /// [`ExplainError::Output`] when the output is not `[N, classes]`, and what the run failed with.
    pub(super) fn wait_for(enqueued: Enqueued<'e>) -> Result<Self, ExplainError> {
        Ok(Forward { logits: enqueued.head.logits(enqueued.pass.logits())?, enqueued })
    }
}

impl Forward<'_> {
    /// `[N, classes]` of f32 in host memory, before softmax.
    pub fn logits(&self) -> &Tensor {
        &self.logits
    }

    /// The logits of one row.
    pub fn row(&self, row: usize) -> Result<Vec<f32>, ExplainError> {
        Ok(torch::to_vec(&self.logits.f_get(row as i64)?)?)
    }

    /// The classes that each row's targets name.
    ///
    /// # Errors
    /// Each row has its own result: logits that are not finite, or a class that does not exist.
    pub fn classes(&self, targets: &[Vec<Target>]) -> Vec<Result<Vec<u32>, ExplainError>> {
        targets.iter().enumerate().map(|(row, targets)| choose_classes(&self.row(row)?, targets)).collect()
    }

    /// Runs in reverse once for each of the classes `classes[n]` of each row `n`. Rows may differ in number of classes;
    /// a row without classes takes no part.
    ///
    /// # Errors
    /// Those of the plan: out of memory, interrupted.
    pub fn reverse(self, classes: &[Vec<u32>], interrupt: &dyn Interrupt) -> Result<Reversed, ExplainError> {
        let Enqueued { head, method, pass, size, .. } = &self.enqueued;
        let rounds = classes.iter().map(Vec::len).max().unwrap_or(0);
        let gradients = if method.maps.is_empty() || rounds == 0 {
            Vec::new()
        } else {
            let seed = |round: usize| {
                let chosen: Vec<_> = classes.iter().map(|row| row.get(round).copied()).collect();
                head.seed(pass.logits(), &chosen)
            };
            let seeds = (0..rounds).map(seed).collect::<Result<Vec<_>, _>>()?;
            self.enqueued.reverse_rounds(&seeds, interrupt)?
        };
        let logits = (0..classes.len()).map(|row| self.row(row)).collect::<Result<_, _>>()?;
        let layers = self.enqueued.layer_values();
        let (head, method, size) = (head.clone(), method.clone(), *size);
        Ok(Reversed { logits, head, layers, method, size, classes: classes.to_vec(), gradients })
    }
}
