//! Where a frame's time goes: stages and, around them, spans, metrics and exporters.

pub mod stage;

pub use stage::{Stage, StageTiming, Timings};
