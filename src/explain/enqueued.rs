//! A batch after its forward run, before anything of it is read: on a device that works asynchronously, the run may not
//! have begun.

use tch::{Kind, Tensor};

use crate::plan::rule::Gradient;
use crate::plan::{Gradients, Interrupt, Pass, Until};

use super::batch_maps::{BatchMaps, LayerValue, batch_maps};
use super::target_layer::TargetLayer;
use super::{ExplainError, Head, Method};

/// A batch whose forward run is queued on the device.
pub struct Enqueued<'e> {
    pub(super) head: Head,
    pub(super) layers: Vec<TargetLayer>,
    pub(super) needs_plain_reverse: bool,
    pub(super) method: Method,
    /// Height and width of the input.
    pub(super) size: [i64; 2],
    pub(super) pass: Pass<'e>,
}

/// The classes of a batch, chosen on the device.
pub struct ChosenThere {
    /// `[N, classes]` of f32.
    pub logits: Tensor,
    /// `[N, rounds]` of i64; negative where a row has fewer classes.
    pub classes: Tensor,
}

/// The code of a row that has no class in a round.
pub const NO_TARGET: i64 = i64::MIN;

/// The code of a row's `rank`-th highest logit, from 0.
pub const fn ranked(rank: u32) -> i64 {
    -1 - rank as i64
}

impl Enqueued<'_> {
    /// The classes that `codes` name, `[N, rounds]` of i64 on the device: a class by its index, the highest logits by
    /// [`ranked`], none by [`NO_TARGET`]. Nothing is read by the host. Of equal logits the lower class comes first.
    ///
    /// # Errors
    /// [`ExplainError::Output`], and those of the operators.
    pub fn choose(&self, codes: &Tensor) -> Result<ChosenThere, ExplainError> {
        let logits = self.head.logits_there(self.pass.logits())?;
        // NaN ranks last, and a code beyond the last class is refused by the host.
        let (_, order) = logits.f_nan_to_num(f64::NEG_INFINITY, None, None)?.f_sort_stable(true, 1, true)?;
        let last = logits.size()[1] - 1;
        let ranks = codes.f_neg()?.f_sub_scalar(1)?.f_clamp(0, last)?;
        let classes = codes.f_where_self(&codes.f_ge(0i64)?, &order.f_gather(1, &ranks, false)?)?;
        let classes = classes.f_clamp_max(last)?;
        let classes = classes.f_masked_fill(&codes.f_eq(NO_TARGET)?, -1i64)?;
        Ok(ChosenThere { logits, classes })
    }

    /// The maps of the chosen classes, one list per round. Nothing is read by the host.
    ///
    /// # Errors
    /// Those of the plan and of the operators.
    pub fn maps(&self, chosen: &ChosenThere, interrupt: &dyn Interrupt) -> Result<Vec<Vec<BatchMaps>>, ExplainError> {
        let rounds = chosen.classes.size()[1];
        if self.method.maps.is_empty() {
            return Ok((0..rounds).map(|_| Vec::new()).collect());
        }
        let classes = |round: i64| chosen.classes.f_select(1, round);
        let seed = |round: i64| self.head.seed_there(self.pass.logits(), &classes(round)?);
        let seeds = (0..rounds).map(seed).collect::<Result<Vec<_>, _>>()?;
        let gradients = self.reverse_rounds(&seeds, interrupt)?;
        let values = self.layer_values();
        let maps = |(round, gradients): (i64, &Gradients)| {
            let scores = || -> Result<Tensor, ExplainError> {
                let class = classes(round)?.f_unsqueeze(1)?;
                let score = chosen.logits.f_gather(1, &class.f_clamp_min(0)?, false)?;
                Ok(score.f_mul(&class.f_ge(0i64)?.f_to_kind(Kind::Float)?)?.f_squeeze_dim(1)?)
            };
            batch_maps(&self.method, self.method.cam.cam(), &values, self.size, gradients, &scores)
        };
        (0..rounds).zip(&gradients).map(maps).collect()
    }

    /// The target layers with their values.
    pub(super) fn layer_values(&self) -> Vec<LayerValue> {
        let value = |(index, layer): (usize, &TargetLayer)| LayerValue {
            layer: layer.clone(),
            activations: self.pass.activations(index).shallow_clone(),
        };
        self.layers.iter().enumerate().map(value).collect()
    }

    /// The gradients that the maps need, for each seed.
    pub(super) fn reverse_rounds(
        &self,
        seeds: &[Tensor],
        interrupt: &dyn Interrupt,
    ) -> Result<Vec<Gradients>, ExplainError> {
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
