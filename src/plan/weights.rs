//! Weights that were rewritten for plans.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use tch::{Device, TchError, Tensor};

use crate::model::node::ValueId;

use super::constant::{Constant, Identity};
use super::cpu::convolution::{Geometry, LaidOut};
use super::cpu::linear::PackedWeight;

/// What the plans of one model share, so that weights take their memory once however many plans there are.
///
/// All plans that are compiled with one of these must be of the same graph, which must outlive it.
#[derive(Default)]
pub struct Weights {
    /// By the value that a batch normalisation gives: the weight and bias of the convolution that it was folded into.
    folded: HashMap<ValueId, [Constant; 2]>,
    laid_out: Vec<Arc<Mutex<LaidOut>>>,
    packed: Vec<Arc<Mutex<PackedWeight>>>,
    /// Tensors that steps read, where they are not the model's own: computed, or on another device.
    made: HashMap<(Identity, Device), Tensor>,
}

impl Weights {
    /// The folded weight and bias, found out when no plan has needed them before.
    pub(super) fn folded<E>(
        &mut self,
        norm: ValueId,
        fold: impl FnOnce() -> Result<Option<[Constant; 2]>, E>,
    ) -> Result<Option<[Constant; 2]>, E> {
        Ok(match self.folded.entry(norm) {
            Entry::Occupied(known) => Some(known.get().clone()),
            Entry::Vacant(place) => fold()?.map(|folded| place.insert(folded).clone()),
        })
    }

    /// The layouts of a convolution's weight.
    pub(super) fn laid_out(&mut self, weight: Constant, geometry: Geometry) -> Arc<Mutex<LaidOut>> {
        let identity = weight.identity();
        shared(&mut self.laid_out, |known| known.are_of(&identity, &geometry), || LaidOut::new(weight, geometry))
    }

    /// The layouts of a linear layer's weight.
    pub(super) fn packed(&mut self, weight: &Tensor) -> Arc<Mutex<PackedWeight>> {
        shared(&mut self.packed, |known| known.is_of(weight), || PackedWeight::new(weight))
    }

    /// A constant as steps on a device read it.
    pub(super) fn tensor(&mut self, constant: &Constant, device: Device) -> Result<Tensor, TchError> {
        let is_there = match constant {
            Constant::Whole(tensor) => tensor.device() == device,
            Constant::Stored(_) => device == Device::Cpu,
            _ => false,
        };
        if is_there {
            return constant.tensor();
        }
        Ok(match self.made.entry((constant.identity(), device)) {
            Entry::Occupied(known) => known.get().shallow_clone(),
            Entry::Vacant(place) => {
                let made = place.insert(constant.tensor()?.f_to_device(device)?).shallow_clone();
                constant.leave();
                made
            }
        })
    }

    /// Forgets layouts that no plan uses any more.
    pub(super) fn forget_unused(&mut self) {
        self.laid_out.retain(|laid_out| Arc::strong_count(laid_out) > 1);
        self.packed.retain(|packed| Arc::strong_count(packed) > 1);
    }
}

/// The one that is known, or a new one.
fn shared<T>(all: &mut Vec<Arc<Mutex<T>>>, is_it: impl Fn(&T) -> bool, make: impl FnOnce() -> T) -> Arc<Mutex<T>> {
    if let Some(found) = all.iter().find(|one| is_it(&one.lock().unwrap_or_else(PoisonError::into_inner))) {
        return Arc::clone(found);
    }
    let new = Arc::new(Mutex::new(make()));
    all.push(Arc::clone(&new));
    new
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tch::Kind;

    use super::*;
    use crate::model::LoadLimits;
    use crate::model::graph::Graph;
    use crate::plan::rule::Gradient;
    use crate::plan::test_graphs::{Sketch, compile, distance, random, spec};
    use crate::plan::{Mode, Never, Plan, PlanSpec, Until};
    use crate::torch::has_onednn_kernels;

    /// Convolution, normalisation and rectifier, twice. The values that convolutions and normalisations give are targets to be.
    fn network() -> (Graph, [ValueId; 4]) {
        let mut sketch = Sketch::new(&random(&[2, 3, 9, 9]));
        let a = sketch.convolution(sketch.input(), 8);
        let b = sketch.batch_norm(a);
        let y = sketch.relu(b);
        let c = sketch.convolution(y, 8);
        let d = sketch.batch_norm(c);
        let z = sketch.relu(d);
        let score = sketch.pooled(z);
        (sketch.finish(score), [a, b, c, d])
    }

    fn modes_with_layouts() -> impl Iterator<Item = Mode> {
        [Mode::Default].into_iter().chain(has_onednn_kernels(Kind::BFloat16).then_some(Mode::Bfloat16))
    }

    fn run(plan: &Plan) {
        let pass = plan.forward(random(&[2, 3, 9, 9]), &Never).unwrap();
        pass.reverse(&pass.logits().ones_like(), Gradient::Guided, Until::Input, &Never).unwrap();
    }

    #[test]
    fn a_folded_weight_is_held_neither_before_nor_after_it_is_laid_out() {
        let (graph, _) = network();
        for mode in modes_with_layouts() {
            let mut weights = Weights::default();
            let plan = Plan::compile_sharing(&graph, &spec(&graph, &[], mode), &mut weights).unwrap();
            assert_eq!(weights.laid_out.len(), 2);
            let held_is_small = || plan.constants.values().chain(weights.made.values()).all(|t| t.dim() == 1);
            assert!(held_is_small());
            run(&plan);
            assert!(held_is_small());
        }
    }

    #[test]
    fn a_models_weights_leave_memory_once_they_are_laid_out() {
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
    fn plans_of_one_graph_share_layouts_and_whatever_was_computed() {
        let (graph, [_, target, ..]) = network();
        for mode in modes_with_layouts() {
            let mut weights = Weights::default();
            let mut compile = || Plan::compile_sharing(&graph, &spec(&graph, &[target], mode), &mut weights).unwrap();
            let [a, b] = [compile(), compile()];
            let addresses = |plan: &Plan| plan.constants.values().map(|t| t.data_ptr() as usize).collect::<Vec<_>>();
            assert_eq!(addresses(&a), addresses(&b));
            assert_eq!(weights.laid_out.len(), 2);
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
    fn plans_that_fold_and_plans_that_do_not_agree_whatever_was_laid_out_before() {
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
        // Two folded, two not.
        assert_eq!(weights.laid_out.len(), 4);
        weights.forget_unused();
        assert!(weights.laid_out.is_empty());
    }
}
