//! A batch after its forward run: it chooses classes and runs in reverse.

use tch::Tensor;

use crate::plan::rule::Gradient;
use crate::plan::{Gradients, Interrupt, Pass, Until};
use crate::torch;

use super::reversed::Reversed;
use super::target_layer::TargetLayer;
use super::targets::choose_classes;
use super::{ExplainError, Head, Method, Target};

/// A batch after its forward run.
pub struct Forward<'e> {
    pub(super) logits: Tensor,
    pub(super) head: Head,
    pub(super) layers: Vec<TargetLayer>,
    pub(super) needs_plain_reverse: bool,
    pub(super) method: Method,
    /// Height and width of the input.
    pub(super) size: [i64; 2],
    pub(super) pass: Pass<'e>,
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
        let rounds = classes.iter().map(Vec::len).max().unwrap_or(0);
        let gradients = if self.method.maps.is_empty() || rounds == 0 {
            Vec::new()
        } else {
            let seed = |round: usize| {
                let chosen: Vec<_> = classes.iter().map(|row| row.get(round).copied()).collect();
                self.head.seed(self.pass.logits(), &chosen)
            };
            let seeds = (0..rounds).map(seed).collect::<Result<Vec<_>, _>>()?;
            self.reverse_rounds(&seeds, interrupt)?
        };
        let logits = (0..classes.len()).map(|row| self.row(row)).collect::<Result<_, _>>()?;
        let activations = (0..self.layers.len()).map(|i| self.pass.activations(i).shallow_clone()).collect();
        Ok(Reversed {
            logits,
            head: self.head,
            layers: self.layers,
            method: self.method,
            size: self.size,
            classes: classes.to_vec(),
            activations,
            gradients,
        })
    }

    /// The gradients that the maps need, for each seed.
    fn reverse_rounds(&self, seeds: &[Tensor], interrupt: &dyn Interrupt) -> Result<Vec<Gradients>, ExplainError> {
        let maps = self.method.maps;
        let run = |gradient, until| self.pass.reverse_each(seeds, gradient, until, interrupt);
        Ok(match (maps.needs_cam(), maps.needs_guided_gradient()) {
            (true, false) => run(Gradient::Plain, Until::Targets)?,
            (false, _) => run(Gradient::Guided, Until::Input)?,
            (true, true) if !self.needs_plain_reverse => run(Gradient::Guided, Until::Input)?,
            (true, true) => {
                let plain = run(Gradient::Plain, Until::Targets)?;
                let guided = run(Gradient::Guided, Until::Input)?;
                let both = plain.into_iter().zip(guided);
                both.map(|(plain, guided)| Gradients { targets: plain.targets, input: guided.input }).collect()
            }
        })
    }
}
