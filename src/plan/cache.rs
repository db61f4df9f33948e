//! A cache of compiled plans.

use std::sync::{Arc, Mutex, PoisonError};

use crate::model::graph::Graph;

use super::{KernelChoice, Plan, PlanError, PlanSpec, Weights};

/// The plans of one model; the least recently used one is evicted first.
pub struct PlanCache {
    capacity: usize,
    /// In order of use, the most recently used last.
    plans: Vec<Plan>,
    weights: Arc<Mutex<Weights>>,
}

impl PlanCache {
    /// A cache of `capacity` plans, at least one.
    pub fn new(capacity: usize) -> Self {
        PlanCache { capacity: capacity.max(1), plans: Vec::new(), weights: Arc::default() }
    }

    /// A cache whose plans choose kernels as `choice` says.
    pub fn choosing(capacity: usize, choice: KernelChoice) -> Self {
        PlanCache { weights: Arc::new(Mutex::new(Weights::new(choice))), ..PlanCache::new(capacity) }
    }

    /// An empty cache for plans of the same graph on another thread, which shares this one's weights.
    pub fn sharing_weights(&self) -> Self {
        PlanCache { capacity: self.capacity, plans: Vec::new(), weights: Arc::clone(&self.weights) }
    }

    /// The plan for a spec, compiled if it is not in the cache.
    ///
    /// # Errors
    /// As [`Plan::compile`].
    pub fn get_or_compile(&mut self, graph: &Graph, spec: &PlanSpec) -> Result<&Plan, PlanError> {
        match self.plans.iter().position(|plan| plan.spec() == spec) {
            Some(index) => {
                let plan = self.plans.remove(index);
                self.plans.push(plan);
            }
            None => {
                // A panic cannot leave them half-written: each addition is one insertion.
                let mut weights = self.weights.lock().unwrap_or_else(PoisonError::into_inner);
                let plan = Plan::compile_sharing(graph, spec, &mut weights)?;
                if self.plans.len() == self.capacity {
                    self.plans.remove(0);
                    weights.drop_unused();
                    graph.constants.values().for_each(|constant| constant.leave());
                }
                drop(weights);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Mode;
    use crate::plan::test_graphs::{GraphBuilder, random, spec};

    #[test]
    fn the_least_recently_used_plan_is_evicted_first() {
        let mut builder = GraphBuilder::new(&random(&[1, 2, 3, 3]));
        let values = [0; 3].map(|_| builder.relu(builder.input()));
        let sum = builder.add(values[0], values[1]);
        let graph = builder.finish(sum);
        let specs = values.map(|target| spec(&graph, &[target], Mode::Exact));
        let mut cache = PlanCache::new(2);
        let mut use_plan = |i: usize| {
            assert_eq!(cache.get_or_compile(&graph, &specs[i]).unwrap().spec(), &specs[i]);
            let mut kept: Vec<usize> = (0..3).filter(|&i| cache.plans.iter().any(|p| *p.spec() == specs[i])).collect();
            kept.sort();
            kept
        };
        assert_eq!(use_plan(0), [0]);
        assert_eq!(use_plan(1), [0, 1]);
        assert_eq!(use_plan(0), [0, 1]);
        assert_eq!(use_plan(2), [0, 2]);
    }
}
