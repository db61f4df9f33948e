//! Compile a graph for a device, run it forward and back.
//!
//! A [`Plan`] is a row of steps. Each step knows how to run forward and, through its [`rule::Rule`], how to take a
//! gradient back; there is no whole-graph autograd tape. Plain or guided is an argument of the reverse run. A [`Pass`] is
//! one forward run with what its reverse runs need.

mod cache;
mod compile;
mod constant;
mod cpu;
mod draft;
mod error;
mod interrupt;
mod lifetimes;
mod pass;
mod passes;
mod reach;
mod reverse;
pub mod rule;
pub mod rules;
mod spec;
#[cfg(test)]
mod test_graphs;
mod weights;

pub use cache::PlanCache;
pub use compile::Plan;
pub use error::PlanError;
pub use interrupt::{Interrupt, Never};
pub use pass::Pass;
pub use reverse::{Gradients, Until};
pub use spec::{Mode, PlanSpec};
pub use weights::Weights;
