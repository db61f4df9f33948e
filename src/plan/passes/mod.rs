//! Small passes over a plan's nodes, for all modes but the exact one. Each leaves every target and the score what they were, but for
//! rounding.

mod fold_batch_norm;
mod fold_padding;
mod relax_views;
mod sensitive_layers;
mod use_bfloat16;
mod use_float32;

use tch::Device;

use super::{Mode, PlanError, PlanSpec, Weights};
use crate::plan::cpu::fuse_convolutions;

pub use crate::plan::draft::Draft;

/// Runs every pass.
pub fn run(draft: &mut Draft, spec: &PlanSpec, weights: &mut Weights) -> Result<(), PlanError> {
    if spec.device == Device::Cpu {
        use_float32::use_float32(draft);
    }
    relax_views::free_views(draft)?;
    fold_batch_norm::fold_batch_norm(draft, weights)?;
    fold_padding::fold_padding(draft)?;
    if spec.mode == Mode::Bfloat16 {
        use_bfloat16::use_bfloat16(draft, spec.score)?;
    }
    if spec.device == Device::Cpu {
        fuse_convolutions::fuse_convolutions(draft)?;
    }
    Ok(())
}
