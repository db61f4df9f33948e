//! Compiles a graph for a device and runs it forward and in reverse.
//!
//! A [`Plan`] is a list of steps. Each step runs forward and, through its [`rule::Rule`], computes gradients; there is
//! no autograd tape over the whole graph. Whether a reverse run is plain or guided is an argument of the run. A
//! [`Pass`] is one forward run with what its reverse runs need.
//!
//! A `Backend` brings a device's kernels: it rewrites the graph, packs weights, and makes the rules of the nodes that
//! it claims. All other nodes run by the device-independent [`rules`]. Runs depend on their arguments alone, with one
//! exception: the CPU backend times the kernels of an operation (`tuning`, `autotune`,
//! `cpu::convolution::batch_split`) and keeps the fastest, so the last bits of a result may depend on the machine and
//! change while it tunes. The exact mode times nothing.

mod autotune;
mod backend;
mod cache;
mod compile;
mod constant;
mod convolution;
mod cpu;
mod cuda;
mod device_tensors;
mod devices;
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
mod timing_cache;
mod tuning;
mod weights;

pub use cache::PlanCache;
pub use compile::Plan;
pub use devices::computes_in;
pub use error::PlanError;
pub use interrupt::{Interrupt, Never};
pub use pass::Pass;
pub use reverse::{Gradients, Until};
pub use spec::{Mode, PlanSpec};
pub use timing_cache::TimingCache;
pub use tuning::{KernelChoice, Timing, take_untuned, tuning};
pub use weights::Weights;
