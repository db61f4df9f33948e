//! Compile a graph for a device, run it forward and back.
//!
//! A plan is a row of steps. Each step knows how to run forward and, through its [`rule::Rule`], how to take a gradient
//! back; there is no whole-graph autograd tape. Plain or guided is an argument of the reverse run.

pub mod rule;
pub mod rules;
