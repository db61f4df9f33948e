//! The CPU backend: fused convolutions, packed weights, and kernels that are chosen by timing them.

pub mod convolution;
pub mod linear;
mod shared;

use tch::Kind;

use crate::model::node::{Argument, Node};
use crate::plan::backend::Backend;
use crate::plan::convolution::{Candidate, FusedNode, fuse_convolutions};
use crate::plan::device_tensors::Constants;
use crate::plan::draft::Draft;
use crate::plan::rule::Rule;
use crate::plan::{KernelChoice, PlanError};
use crate::torch::{OperatorError, Value, computes_in, has_onednn_kernels, window_may_miss};

use convolution::{ConvolutionRule, PackedConvolution};
use linear::{LinearRule, PackedLinear};
use shared::Shared;

/// Convolutions and linear layers with constant weights, in float32 or in a bfloat16 that the processor has.
#[derive(Default)]
pub struct CpuBackend {
    choice: KernelChoice,
    convolutions: Shared<PackedConvolution>,
    linears: Shared<PackedLinear>,
}

impl CpuBackend {
    pub fn new(choice: KernelChoice) -> Self {
        CpuBackend { choice, ..CpuBackend::default() }
    }
}

impl Backend for CpuBackend {
    fn computes_in(&self, kind: Kind) -> bool {
        computes_in(kind)
    }

    fn rewrite(&self, draft: &mut Draft) -> Result<(), PlanError> {
        // oneDNN's operators (PyTorch 2.11) access memory out of bounds where a window can lie in the padding alone,
        // and are silently wrong for one input channel, a stride above 1 and a result of width 1.
        fuse_convolutions(draft, |&Candidate { kind, input, weight, padding, dilation }| {
            has_onednn_kernels(kind) && input[1] > 1 && !window_may_miss(&input[2..], &weight[2..], &padding, &dilation)
        })
    }

    fn claim(
        &mut self,
        node: &mut Node,
        constants: &mut Constants<'_>,
    ) -> Result<Option<Box<dyn Rule>>, OperatorError> {
        if let Some(rule) = self.convolution(node, constants)? {
            return Ok(Some(Box::new(rule)));
        }
        let Some((weight, bias)) = LinearRule::read(node, constants)? else { return Ok(None) };
        let packed =
            self.linears.find_or(|known| known.is_of(&weight), || PackedLinear::new(&weight, self.choice.clone()));
        Ok(Some(Box::new(LinearRule::new(node, packed, bias)?)))
    }

    fn drop_unused(&mut self) {
        self.convolutions.drop_unused();
        self.linears.drop_unused();
    }
}

impl CpuBackend {
    /// The rule of a fused convolution, which keeps the weight in its packed form alone.
    fn convolution(
        &mut self,
        node: &mut Node,
        constants: &Constants<'_>,
    ) -> Result<Option<ConvolutionRule>, OperatorError> {
        let Some(fused) = FusedNode::read(node)? else { return Ok(None) };
        let Some(weight) = constants.constant(fused.weight).cloned() else { return Ok(None) };
        node.arguments[fused.weight_position] = Argument::Literal(Value::None);
        let (identity, geometry) = (weight.identity(), fused.geometry);
        let is_same = |known: &PackedConvolution| known.are_of(&identity, &geometry);
        let packed =
            self.convolutions.find_or(is_same, || PackedConvolution::new(weight, geometry, self.choice.clone()));
        ConvolutionRule::new(&fused, packed).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::model::graph::Graph;
    use crate::model::node::ValueId;
    use crate::model::stored::Stored;
    use crate::plan::constant::Constant;
    use crate::plan::device_tensors::DeviceTensors;
    use crate::plan::test_graphs::{GraphBuilder, random, spec};
    use crate::plan::{Mode, PlanSpec, Weights, passes};

    /// A network with a convolution and a normalisation, twice, each followed by a rectifier.
    fn network() -> Graph {
        let mut builder = GraphBuilder::new(&random(&[2, 3, 9, 9]));
        let mut y = builder.input();
        for _ in 0..2 {
            y = builder.convolution(y, 8);
            y = builder.batch_norm(y);
            y = builder.relu(y);
        }
        let pooled = builder.pooled(y);
        let score = builder.linear(pooled, 5);
        builder.finish(score)
    }

    /// Rewrites a graph and claims every node; returns the names of the claimed nodes and their rules.
    fn claim_all(
        backend: &mut CpuBackend,
        weights: &mut Weights,
        graph: &Graph,
        spec: &PlanSpec,
    ) -> (Vec<String>, Vec<Box<dyn Rule>>) {
        let mut draft = Draft::new(graph, spec);
        passes::run(&mut draft, spec, weights).unwrap();
        backend.rewrite(&mut draft).unwrap();
        let constants: BTreeMap<ValueId, Constant> = draft.constants.clone();
        let mut tensors = DeviceTensors::default();
        let mut constants = Constants::new(&constants, &mut tensors, spec.device);
        let claims = draft.nodes.iter_mut().filter_map(|node| {
            let rule = backend.claim(node, &mut constants).unwrap()?;
            Some((node.name.clone(), rule))
        });
        claims.unzip()
    }

    #[test]
    fn plans_of_one_model_share_packed_weights_until_the_last_is_dropped() {
        let graph = network();
        let all = spec(&graph, &[], Mode::Default);
        let (mut backend, mut weights) = (CpuBackend::default(), Weights::default());
        let (names, first) = claim_all(&mut backend, &mut weights, &graph, &all);
        assert_eq!(names, ["conv2d_0+batch_norm_1+relu_2", "conv2d_3+batch_norm_4+relu_5", "linear_7"]);
        let (_, second) = claim_all(&mut backend, &mut weights, &graph, &all);
        let counts = |backend: &CpuBackend| [backend.convolutions.len(), backend.linears.len()];
        assert_eq!(counts(&backend), [2, 1]);
        // A convolution that is a target keeps its own weight beside the folded one.
        let results = graph.nodes.iter().filter(|node| node.operator_name() == "conv2d").flat_map(Node::defines);
        let targets: Vec<ValueId> = results.collect();
        let unfolded = spec(&graph, &targets, Mode::Default);
        let (_, third) = claim_all(&mut backend, &mut weights, &graph, &unfolded);
        assert_eq!(counts(&backend), [4, 1]);
        drop((first, third));
        backend.drop_unused();
        assert_eq!(counts(&backend), [2, 1]);
        drop(second);
        backend.drop_unused();
        assert_eq!(counts(&backend), [0, 0]);
    }

    #[test]
    fn a_claimed_convolution_reads_its_weight_from_the_rule_alone() {
        let graph = network();
        let spec = spec(&graph, &[], Mode::Default);
        let mut backend = CpuBackend::default();
        let mut draft = Draft::new(&graph, &spec);
        backend.rewrite(&mut draft).unwrap();
        let constants = draft.constants.clone();
        let mut tensors = DeviceTensors::default();
        let mut constants = Constants::new(&constants, &mut tensors, spec.device);
        let is_weight = |id: ValueId| graph.constants.get(&id).is_some_and(|c: &Arc<Stored>| c.size().len() == 4);
        let reads_weight = |draft: &Draft| draft.nodes.iter().flat_map(Node::uses).filter(|id| is_weight(*id)).count();
        assert_eq!(reads_weight(&draft), 2);
        for node in &mut draft.nodes {
            backend.claim(node, &mut constants).unwrap();
        }
        assert_eq!(reads_weight(&draft), 0);
    }
}
