//! What a device brings to a plan: fused nodes, kernels and packed weights.

use tch::Kind;

use crate::model::node::Node;
use crate::torch::OperatorError;

use super::PlanError;
use super::device_tensors::Constants;
use super::draft::Draft;
use super::rule::Rule;

/// The kernels of one device, with the weights packed for them.
///
/// One backend serves all plans of one model on its device. [`Weights`](super::Weights) keeps it, so that two plans
/// that read a weight share its packed form. Plans in [`Mode::Exact`](super::Mode::Exact) do not ask the backend: they
/// run operator by operator.
pub trait Backend: Send {
    /// Whether a model of that dtype runs in it. If not, it runs in float32.
    fn computes_in(&self, _: Kind) -> bool {
        true
    }

    /// Rewrites the draft for the device's kernels, for example fuses a convolution with the activation that follows
    /// it. Targets and the score must keep their values, except for rounding.
    ///
    /// # Errors
    /// An operator that this libtorch lacks.
    fn rewrite(&self, draft: &mut Draft) -> Result<(), PlanError>;

    /// The rule of a node that one of the device's kernels runs; `None` leaves the node to the [default
    /// rules](super::rules). A backend must claim every node that its [`rewrite`](Backend::rewrite) made of an operator
    /// outside `aten`, because the default rules do not cover it.
    ///
    /// A rule that keeps a constant itself, such as a packed weight, replaces that argument by `None`: then the plan
    /// does not hold the constant for this node.
    ///
    /// # Errors
    /// What an operator says, or a constant that the device has no memory for.
    fn claim(&mut self, node: &mut Node, constants: &mut Constants<'_>)
    -> Result<Option<Box<dyn Rule>>, OperatorError>;

    /// Drops packed weights that no plan reads any more.
    fn drop_unused(&mut self);
}

/// A device without kernels of its own: every node runs by the default rules, through ATen.
pub struct AtenBackend;

impl Backend for AtenBackend {
    fn rewrite(&self, _: &mut Draft) -> Result<(), PlanError> {
        Ok(())
    }

    fn claim(&mut self, _: &mut Node, _: &mut Constants<'_>) -> Result<Option<Box<dyn Rule>>, OperatorError> {
        Ok(None)
    }

    fn drop_unused(&mut self) {}
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tch::{Device, Tensor};

    use super::*;
    use crate::model::graph::Graph;
    use crate::model::node::ValueId;
    use crate::model::operation::Operation;
    use crate::plan::rule::{Gradient, RuleOutput, Saved, Slot};
    use crate::plan::test_graphs::{GraphBuilder, branching, random, spec};
    use crate::plan::{Mode, Never, Plan, PlanSpec, Until, Weights};
    use crate::torch::{Operator, Value};

    #[derive(Default)]
    struct Calls {
        forward: AtomicUsize,
        reverse: AtomicUsize,
    }

    /// A backend that packs nothing and has one kernel, for ReLU.
    struct CountingBackend(Arc<Calls>);

    impl Backend for CountingBackend {
        fn rewrite(&self, _: &mut Draft) -> Result<(), PlanError> {
            Ok(())
        }

        fn claim(&mut self, node: &mut Node, _: &mut Constants<'_>) -> Result<Option<Box<dyn Rule>>, OperatorError> {
            let rule = || Box::new(CountingRelu(Arc::clone(&self.0))) as Box<dyn Rule>;
            Ok((node.operator_name() == "relu").then(rule))
        }

        fn drop_unused(&mut self) {}
    }

    /// `max(x, 0)`, whose gradient passes where the result is positive, as do positive gradients alone when guided.
    struct CountingRelu(Arc<Calls>);

    impl Rule for CountingRelu {
        fn forward(&self, arguments: &[Value], _: &[Slot]) -> Result<RuleOutput, OperatorError> {
            self.0.forward.fetch_add(1, Ordering::Relaxed);
            let result = arguments[0].tensor().unwrap().f_clamp_min(0)?;
            let (saved, calls) = (result.f_gt(0.0)?, Arc::clone(&self.0));
            let reverse = move |gradients: &[Option<Tensor>], gradient: Gradient| {
                calls.reverse.fetch_add(1, Ordering::Relaxed);
                let Some(grad_output) = &gradients[0] else { return Ok(vec![None]) };
                let passed = grad_output.f_mul(&saved)?;
                Ok(vec![Some(if gradient == Gradient::Guided { passed.f_clamp_min(0)? } else { passed })])
            };
            Ok((vec![Value::Tensor(result)], Some(Box::new(reverse) as Box<dyn Saved>)))
        }
    }

    fn compile_on(backend: Box<dyn Backend>, graph: &Graph, spec: &PlanSpec) -> Result<Plan, PlanError> {
        Plan::compile_sharing(graph, spec, &mut Weights::default().with_backend(Device::Cpu, backend))
    }

    /// Activations of the targets, logits, and gradients of a plain and a guided run.
    fn run(plan: &Plan, x: &Tensor, seed: &Tensor) -> Vec<Tensor> {
        let pass = plan.forward(x.shallow_clone(), &Never).unwrap();
        let mut found = vec![pass.logits().shallow_clone()];
        for gradient in [Gradient::Plain, Gradient::Guided] {
            let reversed = pass.reverse(seed, gradient, Until::Input, &Never).unwrap();
            found.extend(reversed.targets.into_iter().chain(reversed.input));
        }
        found
    }

    #[test]
    fn a_plan_runs_forward_and_reverse_on_the_rules_of_its_backend() {
        let (graph, targets) = branching();
        let spec = spec(&graph, &targets, Mode::Default);
        let calls = Arc::new(Calls::default());
        let plan = compile_on(Box::new(CountingBackend(Arc::clone(&calls))), &graph, &spec).unwrap();
        let default_rules = compile_on(Box::new(AtenBackend), &graph, &spec).unwrap();
        assert_eq!(plan.step_names().collect::<Vec<_>>(), default_rules.step_names().collect::<Vec<_>>());
        let (x, seed) = (random(&[2, 3, 6, 6]), random(&[2, 4]));
        let (found, expected) = (run(&plan, &x, &seed), run(&default_rules, &x, &seed));
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            assert!(found.equal(expected));
        }
        // Two rectifiers; one forward run, a plain and a guided reverse run.
        let counts = [&calls.forward, &calls.reverse].map(|count| count.load(Ordering::Relaxed));
        assert_eq!(counts, [2, 4]);
    }

    #[test]
    fn the_exact_mode_asks_no_backend() {
        let (graph, targets) = branching();
        let calls = Arc::new(Calls::default());
        let spec = spec(&graph, &targets, Mode::Exact);
        let plan = compile_on(Box::new(CountingBackend(Arc::clone(&calls))), &graph, &spec).unwrap();
        run(&plan, &random(&[2, 3, 6, 6]), &random(&[2, 4]));
        assert_eq!(calls.forward.load(Ordering::Relaxed), 0);
    }

    /// Rewrites a node to an operator of oneDNN and claims nothing.
    struct ForgetfulBackend;

    impl Backend for ForgetfulBackend {
        fn rewrite(&self, draft: &mut Draft) -> Result<(), PlanError> {
            let operator = Operator::find("mkldnn::_linear_pointwise", "")?;
            draft.nodes[0].operation = Operation::Aten(operator);
            Ok(())
        }

        fn claim(&mut self, _: &mut Node, _: &mut Constants<'_>) -> Result<Option<Box<dyn Rule>>, OperatorError> {
            Ok(None)
        }

        fn drop_unused(&mut self) {}
    }

    #[test]
    fn a_rewritten_node_that_its_backend_does_not_claim_has_no_kernel() {
        let mut builder = GraphBuilder::new(&random(&[1, 2, 3, 3]));
        let y: ValueId = builder.relu(builder.input());
        let graph = builder.finish(y);
        let error = compile_on(Box::new(ForgetfulBackend), &graph, &spec(&graph, &[], Mode::Default)).err().unwrap();
        assert!(matches!(&error, PlanError::NoKernel { node, .. } if node == "relu_0"), "{error}");
        assert_eq!(error.to_string(), "node relu_0: Cpu has no kernel for mkldnn._linear_pointwise.default");
    }
}
