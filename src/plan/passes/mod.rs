//! Device-independent passes over a draft, for all modes except the exact one. Each keeps the values of the targets and
//! the score, except for rounding.

mod fold_batch_norm;
mod fold_padding;
mod relax_views;
mod sensitive_layers;
mod use_bfloat16;
mod use_float32;

use tch::Kind;

pub use relax_views::relax_views;

use super::draft::Draft;
use super::{Mode, PlanError, PlanSpec, Weights};

/// Runs every pass.
pub fn run(draft: &mut Draft, spec: &PlanSpec, weights: &mut Weights) -> Result<(), PlanError> {
    for kind in [Kind::Half, Kind::BFloat16] {
        if !weights.backend(spec.device).0.computes_in(kind) {
            use_float32::use_float32(draft, kind);
        }
    }
    relax_views(draft)?;
    fold_batch_norm::fold_batch_norm(draft, weights)?;
    fold_padding::fold_padding(draft)?;
    if spec.mode == Mode::Bfloat16 {
        use_bfloat16::use_bfloat16(draft, spec.score)?;
    }
    Ok(())
}
