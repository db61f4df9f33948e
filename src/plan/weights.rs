//! What the plans of one model share.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use tch::Device;

use crate::model::node::ValueId;

use super::KernelChoice;
use super::backend::Backend;
use super::constant::Constant;
use super::device_tensors::DeviceTensors;
use super::devices::backend_of;

/// Folded and packed weights and tensors on devices, shared by the plans of one model, so that a weight takes memory
/// once however many plans read it.
///
/// All plans compiled with one `Weights` must be of the same graph, which must outlive it.
#[derive(Default)]
pub struct Weights {
    /// The folded weight and bias of a convolution, by the result of the batch normalisation folded into it.
    folded: HashMap<ValueId, [Constant; 2]>,
    pub(super) tensors: DeviceTensors,
    choice: KernelChoice,
    backends: HashMap<Device, Box<dyn Backend>>,
}

impl Weights {
    /// Weights for plans whose devices choose kernels so.
    pub fn new(choice: KernelChoice) -> Self {
        Weights { choice, ..Weights::default() }
    }

    /// Plans on `device` run on `backend` instead of its [own](backend_of).
    #[cfg(test)]
    pub(super) fn with_backend(mut self, device: Device, backend: Box<dyn Backend>) -> Self {
        self.backends.insert(device, backend);
        self
    }

    /// The folded weight and bias; `fold` computes them for the first plan that needs them.
    pub(super) fn folded<E>(
        &mut self,
        norm: ValueId,
        fold: impl FnOnce() -> Result<Option<[Constant; 2]>, E>,
    ) -> Result<Option<[Constant; 2]>, E> {
        Ok(match self.folded.entry(norm) {
            Entry::Occupied(known) => Some(known.get().clone()),
            Entry::Vacant(entry) => fold()?.map(|folded| entry.insert(folded).clone()),
        })
    }

    /// The backend of a device, and the tensors that it reads.
    pub(super) fn backend(&mut self, device: Device) -> (&mut dyn Backend, &mut DeviceTensors) {
        let choice = &self.choice;
        let backend = self.backends.entry(device).or_insert_with(|| backend_of(device, choice.clone()));
        (backend.as_mut(), &mut self.tensors)
    }

    /// Drops packed weights that no plan reads any more.
    pub(super) fn drop_unused(&mut self) {
        self.backends.values_mut().for_each(|backend| backend.drop_unused());
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tch::Kind;

    use super::*;
    use crate::model::LoadLimits;
    use crate::model::graph::Graph;
    use crate::plan::rule::Gradient;
    use crate::plan::test_graphs::{GraphBuilder, compile, distance, random, spec};
    use crate::plan::{Mode, Never, Plan, PlanSpec, Until};
    use crate::torch::has_onednn_kernels;

    /// Convolution, normalisation and rectifier, twice; with the values of the convolutions and normalisations, which
    /// may be targets.
    fn network() -> (Graph, [ValueId; 4]) {
        let mut builder = GraphBuilder::new(&random(&[2, 3, 9, 9]));
        let a = builder.convolution(builder.input(), 8);
        let b = builder.batch_norm(a);
        let y = builder.relu(b);
        let c = builder.convolution(y, 8);
        let d = builder.batch_norm(c);
        let z = builder.relu(d);
        let score = builder.pooled(z);
        (builder.finish(score), [a, b, c, d])
    }

    fn modes_with_packed_weights() -> impl Iterator<Item = Mode> {
        [Mode::Default].into_iter().chain(has_onednn_kernels(Kind::BFloat16).then_some(Mode::Bfloat16))
    }

    fn run(plan: &Plan) {
        let pass = plan.forward(random(&[2, 3, 9, 9]), &Never).unwrap();
        pass.reverse(&pass.logits().ones_like(), Gradient::Guided, Until::Input, &Never).unwrap();
    }

    #[test]
    fn a_folded_weight_is_held_neither_before_nor_after_it_is_packed() {
        let (graph, _) = network();
        for mode in modes_with_packed_weights() {
            let mut weights = Weights::default();
            let plan = Plan::compile_sharing(&graph, &spec(&graph, &[], mode), &mut weights).unwrap();
            let held_is_small = || plan.constants.values().chain(weights.tensors.values()).all(|t| t.dim() == 1);
            assert!(held_is_small());
            run(&plan);
            assert!(held_is_small());
        }
    }

    #[test]
    fn a_models_weights_leave_memory_once_they_are_packed() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/models/efficientnet-lite0/1/model.pt2");
        let graph = Graph::load(Path::new(file), &LoadLimits::default()).unwrap();
        let score = graph.score(None).unwrap();
        let of = |mode| PlanSpec { score, input_size: [224, 224], ..spec(&graph, &[], mode) };
        let large =
            || graph.constants.values().filter(|constant| constant.size().len() == 4 && constant.bytes() >= 64 << 10);
        let mut weights = Weights::default();
        let plan = Plan::compile_sharing(&graph, &of(Mode::Default), &mut weights).unwrap();
        let x = random(&[1, 3, 224, 224]);
        assert!(large().count() > 20 && large().all(|constant| constant.is_in_memory()));
        let pass = plan.forward(x.shallow_clone(), &Never).unwrap();
        assert!(large().all(|constant| !constant.is_in_memory()));
        pass.reverse(&pass.logits().ones_like(), Gradient::Guided, Until::Input, &Never).unwrap();
        assert!(large().all(|constant| !constant.is_in_memory()));
        let exact = Plan::compile_sharing(&graph, &of(Mode::Exact), &mut weights).unwrap();
        assert!(large().all(|constant| constant.is_in_memory()));
        let expected = exact.forward(x, &Never).unwrap();
        assert!(distance(pass.logits(), expected.logits()) < 1e-4);
    }

    #[test]
    fn plans_of_one_graph_share_computed_constants() {
        let (graph, [_, target, ..]) = network();
        for mode in modes_with_packed_weights() {
            let mut weights = Weights::default();
            let mut compile = || Plan::compile_sharing(&graph, &spec(&graph, &[target], mode), &mut weights).unwrap();
            let [a, b] = [compile(), compile()];
            let addresses = |plan: &Plan| plan.constants.values().map(|t| t.data_ptr() as usize).collect::<Vec<_>>();
            assert_eq!(addresses(&a), addresses(&b));
        }
    }

    #[test]
    fn rounded_copies_are_shared_on_any_processor() {
        let (graph, _) = network();
        let mut weights = Weights::default();
        let mut compile =
            || Plan::compile_sharing(&graph, &spec(&graph, &[], Mode::Bfloat16), &mut weights).unwrap().constants;
        let [a, b] = [compile(), compile()];
        assert!(a.values().all(|constant| constant.kind() == Kind::BFloat16));
        assert!(a.values().zip(b.values()).all(|(a, b)| a.data_ptr() == b.data_ptr()));
    }

    #[test]
    fn plans_that_fold_and_plans_that_do_not_agree_whatever_was_packed_before() {
        let (graph, [a, b, c, d]) = network();
        let x = random(&[2, 3, 9, 9]);
        let mut weights = Weights::default();
        // A target between a convolution and its normalisation keeps both.
        for targets in [vec![], vec![a], vec![b, d], vec![c], vec![a, c], vec![]] {
            let folding = Plan::compile_sharing(&graph, &spec(&graph, &targets, Mode::Default), &mut weights).unwrap();
            let exact = compile(&graph, &targets, Mode::Exact);
            let [exact, found] = [&exact, &folding].map(|plan| plan.forward(x.shallow_clone(), &Never).unwrap());
            assert!(distance(found.logits(), exact.logits()) < 1e-5);
            let seed = random(&[2, 8]);
            let [exact, found] =
                [&exact, &found].map(|pass| pass.reverse(&seed, Gradient::Plain, Until::Input, &Never).unwrap());
            assert!(distance(&found.input.unwrap(), &exact.input.unwrap()) < 1e-5);
            for (found, exact) in found.targets.iter().zip(&exact.targets) {
                assert!(distance(found, exact) < 1e-5);
            }
        }
    }
}
