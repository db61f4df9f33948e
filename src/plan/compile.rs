//! From a graph to steps that are ready to run.

use std::collections::{BTreeMap, HashMap, HashSet};

use tch::{Device, Tensor};

use crate::model::dimension::Dimension;
use crate::model::graph::Graph;
use crate::model::node::{Argument, Element, Node, Rectifier, ValueId};
use crate::torch::Value;

use super::device_tensors::Constants;
use super::draft::Draft;
use super::rule::{Rule, Slot};
use super::{Mode, PlanError, PlanSpec, Weights, lifetimes, passes, reach, rules};

/// One node with the rule that runs it.
pub(super) struct Step {
    /// The names of the nodes that it was made of, joined by `+`.
    pub name: String,
    pub rule: Box<dyn Rule>,
    pub arguments: Vec<Argument>,
    pub outputs: Vec<Option<ValueId>>,
    /// The argument slots whose gradient a reverse run may ask for, with the value that each reads.
    pub wanted: Vec<(Slot, ValueId)>,
    /// Values that no later step reads.
    pub release: Vec<ValueId>,
}

/// A graph compiled for a [`PlanSpec`].
pub struct Plan {
    pub(super) spec: PlanSpec,
    pub(super) steps: Vec<Step>,
    pub(super) constants: BTreeMap<ValueId, Tensor>,
    pub(super) input: ValueId,
    pub(super) input_kind: tch::Kind,
    pub(super) input_shape: [Dimension; 4],
    pub(super) value_count: usize,
    /// The values on a path from a target to the score; a reverse run until the targets computes no other gradients.
    pub(super) below_targets: HashSet<ValueId>,
    /// Index of the first step that such a run reverses.
    pub(super) first_below_targets: usize,
    needs_plain_reverse: bool,
}

impl Plan {
    /// Compiles a graph.
    ///
    /// # Errors
    /// An operator that this libtorch or the device's backend lacks, or a constant that the device has no memory for.
    pub fn compile(graph: &Graph, spec: &PlanSpec) -> Result<Plan, PlanError> {
        Self::compile_sharing(graph, spec, &mut Weights::default())
    }

    /// As [`Plan::compile`], sharing folded and packed weights with other plans of the same graph.
    pub fn compile_sharing(graph: &Graph, spec: &PlanSpec, weights: &mut Weights) -> Result<Plan, PlanError> {
        let mut draft = Draft::new(graph, spec);
        if spec.guide_smooth {
            guide_smooth_activations(&mut draft);
        }
        rewrite(&mut draft, spec, weights)?;
        set_devices(&mut draft, spec.device);
        let rules = make_rules(&mut draft, spec, weights)?;
        draft.drop_unread_constants();

        let needs_plain_reverse = reach::is_guided_between(&draft, &spec.targets, spec.score);
        let below_targets = reach::descendants(&draft, spec.targets.iter().copied());
        let first_below_targets = first_step_below(&draft, &spec.targets);
        let input_kind = draft.kind(graph.input.value).unwrap_or(graph.input.kind);
        let value_count = draft.value_count();
        let constants = load_constants(&draft, spec.device, weights)?;
        Ok(Plan {
            spec: spec.clone(),
            steps: make_steps(draft, spec, rules),
            constants,
            input: graph.input.value,
            input_kind,
            input_shape: graph.input.shape,
            value_count,
            below_targets,
            first_below_targets,
            needs_plain_reverse,
        })
    }

    /// Whether a guided node lies between a target and the score, so that a target's plain gradient needs a plain
    /// reverse run of its own.
    pub fn needs_plain_reverse(&self) -> bool {
        self.needs_plain_reverse
    }

    pub fn spec(&self) -> &PlanSpec {
        &self.spec
    }

    /// The name of each step, in order: the names of the nodes that it was made of, joined by `+`.
    pub fn step_names(&self) -> impl Iterator<Item = &str> {
        self.steps.iter().map(|step| step.name.as_str())
    }

    /// The number of steps of a forward run.
    pub fn step_count(&self) -> usize {
        self.steps.len()
    }
}

/// Makes every smooth activation a rectifier of its first argument, which a guided reverse then guides.
fn guide_smooth_activations(draft: &mut Draft) {
    for node in draft.nodes.iter_mut().filter(|node| node.smooth_activation && node.rectifier.is_none()) {
        node.rectifier = Some(Rectifier { source: 0 });
    }
}

/// Runs the passes, then those of the device's backend. The exact mode runs the nodes as they are; on another device
/// than the one that the program was traced on, results may have other strides.
fn rewrite(draft: &mut Draft, spec: &PlanSpec, weights: &mut Weights) -> Result<(), PlanError> {
    if spec.mode == Mode::Exact {
        return if spec.device == Device::Cpu { Ok(()) } else { passes::relax_views(draft) };
    }
    passes::run(draft, spec, weights)?;
    weights.backend(spec.device).0.rewrite(draft)
}

/// Replaces the devices that the model's file names, which are placeholders, by the plan's.
fn set_devices(draft: &mut Draft, device: Device) {
    for argument in draft.nodes.iter_mut().flat_map(|node| &mut node.arguments) {
        if let Argument::Literal(Value::Device(named)) = argument {
            *named = device;
        }
    }
}

/// The rule of each node: the backend's where it claims the node, else the default one.
fn make_rules(draft: &mut Draft, spec: &PlanSpec, weights: &mut Weights) -> Result<Vec<Box<dyn Rule>>, PlanError> {
    let exact = spec.mode == Mode::Exact;
    let (backend, tensors) = weights.backend(spec.device);
    let Draft { nodes, constants, .. } = draft;
    let mut constants = Constants::new(constants, tensors, spec.device);
    let mut make = |node: &mut Node| {
        let claimed = if exact { Ok(None) } else { backend.claim(node, &mut constants) };
        let of_node = |source| PlanError::Node { node: node.name.clone(), source };
        match claimed.map_err(of_node)? {
            Some(rule) => Ok(rule),
            None if exact || has_default_rule(node) => rules::rule_for(node, exact).map_err(of_node),
            None => Err(PlanError::NoKernel {
                node: node.name.clone(),
                operator: node.operation.aten().map(ToString::to_string).unwrap_or_default(),
                device: spec.device,
            }),
        }
    };
    nodes.iter_mut().map(&mut make).collect()
}

/// Whether the default rules run the node. A model has `aten` operators only; others come from a backend and have no
/// derivative in ATen.
fn has_default_rule(node: &Node) -> bool {
    node.operation.aten().is_none_or(|operator| operator.name().starts_with("aten::"))
}

/// The constants that steps read, as tensors on `device`.
fn load_constants(
    draft: &Draft,
    device: Device,
    weights: &mut Weights,
) -> Result<BTreeMap<ValueId, Tensor>, PlanError> {
    let mut constants = BTreeMap::new();
    for (id, constant) in &draft.constants {
        constants.insert(*id, weights.tensors.tensor(constant, device)?);
    }
    Ok(constants)
}

/// Index of the first step after the earliest of `values`; 0 for the input.
fn first_step_below(draft: &Draft, values: &[ValueId]) -> usize {
    let producers: HashMap<ValueId, usize> =
        draft.nodes.iter().enumerate().flat_map(|(i, node)| node.defines().map(move |v| (v, i))).collect();
    values.iter().map(|value| producers.get(value).map_or(0, |i| i + 1)).min().unwrap_or(0)
}

/// Joins each node with its rule, the gradients that may be asked of it, and the values that it reads last.
fn make_steps(draft: Draft, spec: &PlanSpec, rules: Vec<Box<dyn Rule>>) -> Vec<Step> {
    let mut sources = Vec::new();
    if spec.input_gradient {
        sources.push(draft.input);
    }
    if spec.target_gradients {
        sources.extend(&spec.targets);
    }
    let needed = reach::descendants(&draft, sources);
    let reaches_score = reach::ancestors(&draft, spec.score);
    let keep: Vec<ValueId> = spec.targets.iter().copied().chain([spec.score]).collect();
    let releases = lifetimes::releases(&draft.nodes, &keep, |v| draft.constants.contains_key(&v));
    let step = |((node, rule), release): ((Node, Box<dyn Rule>), Vec<ValueId>)| {
        let differentiable = !node.no_grad && node.defines().any(|v| reaches_score.contains(&v));
        let wanted = if differentiable { wanted_slots(&node, &needed) } else { Vec::new() };
        Step { name: node.name, rule, arguments: node.arguments, outputs: node.outputs, wanted, release }
    };
    draft.nodes.into_iter().zip(rules).zip(releases).map(step).collect()
}

/// The slots of a node that read a value with a needed gradient.
fn wanted_slots(node: &Node, needed: &HashSet<ValueId>) -> Vec<(Slot, ValueId)> {
    let mut slots = Vec::new();
    for (argument, value) in node.arguments.iter().enumerate() {
        match value {
            Argument::Use(id) if needed.contains(id) => slots.push((Slot { argument, element: None }, *id)),
            Argument::List(elements) => {
                for (index, element) in elements.iter().enumerate() {
                    if let Element::Use(id) = element
                        && needed.contains(id)
                    {
                        slots.push((Slot { argument, element: Some(index) }, *id));
                    }
                }
            }
            _ => {}
        }
    }
    slots
}
