//! Compiled plans, as many as are worth keeping.

use crate::model::graph::Graph;

use super::{Plan, PlanError, PlanSpec, Weights};

/// The plans of one model, the least recently used one thrown out first.
pub struct PlanCache {
    capacity: usize,
    /// The most recently used one last.
    plans: Vec<Plan>,
    weights: Weights,
}

impl PlanCache {
    /// `capacity` plans are kept; at least one.
    pub fn new(capacity: usize) -> Self {
        PlanCache { capacity: capacity.max(1), plans: Vec::new(), weights: Weights::default() }
    }

    /// The plan for a spec, compiled if it is not there.
    pub fn get_or_compile(&mut self, graph: &Graph, spec: &PlanSpec) -> Result<&Plan, PlanError> {
        match self.plans.iter().position(|plan| plan.spec() == spec) {
            Some(index) => {
                let plan = self.plans.remove(index);
                self.plans.push(plan);
            }
            None => {
                let plan = Plan::compile_sharing(graph, spec, &mut self.weights)?;
                if self.plans.len() == self.capacity {
                    self.plans.remove(0);
                    self.weights.forget_unused();
                }
                self.plans.push(plan);
            }
        }
        self.plans.last().ok_or_else(|| PlanError::Inconsistent("a plan was lost".into()))
    }

    pub fn len(&self) -> usize {
        self.plans.len()
    }

    pub fn is_empty(&self) -> bool {
        self.plans.is_empty()
    }
}
