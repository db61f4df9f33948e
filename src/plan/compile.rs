//! From a graph to a row of steps.

use std::collections::{BTreeMap, HashMap, HashSet};

use tch::{Device, Tensor};

use crate::model::graph::Graph;
use crate::model::node::{Argument, Dimension, Element, Node, Rectifier, ValueId};
use crate::plan::Mode;
use crate::torch::{OperatorError, Value};

use super::constant::Constant;
use super::cpu::convolution::{Geometry, Prepacked};
use super::cpu::linear::PackedLinear;
use super::passes::Draft;
use super::rule::{Rule, Slot};
use super::{PlanError, PlanSpec, Weights, lifetimes, reach, rules};

/// One node, ready to run.
pub(super) struct Step {
    pub name: String,
    pub rule: Box<dyn Rule>,
    pub arguments: Vec<Argument>,
    pub outputs: Vec<Option<ValueId>>,
    /// Where gradients may be asked for, and of which value.
    pub wanted: Vec<(Slot, ValueId)>,
    /// Values that nobody reads after this step.
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
    /// Values through which a gradient reaches a target; a run until the targets takes no others.
    pub(super) below_targets: HashSet<ValueId>,
    /// The first step that such a run has to take back.
    pub(super) first_below_targets: usize,
    needs_plain_reverse: bool,
}

impl Plan {
    /// Compiles a graph.
    ///
    /// # Errors
    /// An operator that this libtorch lacks, or a constant that the device has no memory for.
    pub fn compile(graph: &Graph, spec: &PlanSpec) -> Result<Plan, PlanError> {
        Self::compile_sharing(graph, spec, &mut Weights::default())
    }

    /// As [`Plan::compile`], sharing rewritten weights with other plans of the same graph.
    pub fn compile_sharing(graph: &Graph, spec: &PlanSpec, weights: &mut Weights) -> Result<Plan, PlanError> {
        let mut draft = Draft::new(graph, spec);
        if spec.guide_smooth {
            for node in draft.nodes.iter_mut().filter(|node| node.smooth_activation && node.rectifier.is_none()) {
                node.rectifier = Some(Rectifier { source: 0 });
            }
        }
        if spec.mode != Mode::Exact {
            super::passes::run(&mut draft, spec, weights)?;
        }
        let to_lay_out: Vec<_> = draft.nodes.iter_mut().map(|node| take_weight(node, &draft.constants)).collect();
        draft.drop_unread_constants();

        let mut sources = Vec::new();
        if spec.input_gradient {
            sources.push(graph.input.value);
        }
        if spec.target_gradients {
            sources.extend(&spec.targets);
        }
        let needed_gradients = reach::descendants(&draft, sources);
        let back = reach::on_the_way_to(&draft, spec.score);
        let below_targets = reach::descendants(&draft, spec.targets.iter().copied());
        let needs_plain_reverse = reach::is_guided_between(&draft, &spec.targets, spec.score);
        let produced: HashMap<ValueId, usize> =
            draft.nodes.iter().enumerate().flat_map(|(i, node)| node.defines().map(move |v| (v, i))).collect();
        let first_below_targets =
            spec.targets.iter().map(|target| produced.get(target).map_or(0, |i| i + 1)).min().unwrap_or(0);
        let keep: Vec<ValueId> = spec.targets.iter().copied().chain([spec.score]).collect();
        let releases = lifetimes::releases(&draft.nodes, &keep, |v| draft.constants.contains_key(&v));
        let input_kind = draft.kind(graph.input.value).unwrap_or(graph.input.kind);
        let value_count = draft.value_count();
        let Draft { nodes, constants, .. } = draft;
        let constants = constants
            .iter()
            .map(|(id, constant)| Ok((*id, weights.tensor(constant, spec.device)?)))
            .collect::<Result<BTreeMap<_, _>, PlanError>>()?;
        let steps = nodes
            .into_iter()
            .zip(to_lay_out)
            .zip(releases)
            .map(|((mut node, to_lay_out), release)| {
                let differentiable = !node.no_grad && node.defines().any(|v| back.contains(&v));
                let wanted = if differentiable { wanted(&node, &needed_gradients) } else { Vec::new() };
                place_on(spec.device, &mut node);
                let rule = rule(&node, to_lay_out, spec, &constants, weights)
                    .map_err(|source| PlanError::Node { node: node.name.clone(), source })?;
                Ok(Step { name: node.name, rule, arguments: node.arguments, outputs: node.outputs, wanted, release })
            })
            .collect::<Result<Vec<_>, PlanError>>()?;
        Ok(Plan {
            spec: spec.clone(),
            steps,
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

    /// Whether a guided node lies between a target and the score, so that the gradient at the target must come from a
    /// plain run of its own.
    pub fn needs_plain_reverse(&self) -> bool {
        self.needs_plain_reverse
    }

    pub fn spec(&self) -> &PlanSpec {
        &self.spec
    }

    /// What each step computes, in order: the names of the nodes that it was made of, joined by `+`.
    pub fn step_names(&self) -> impl Iterator<Item = &str> {
        self.steps.iter().map(|step| step.name.as_str())
    }

    /// How many steps a forward run takes.
    pub fn step_count(&self) -> usize {
        self.steps.len()
    }
}

/// What the rule of a convolution that is laid out is made with. The node reads its weight no more then.
fn take_weight(node: &mut Node, constants: &BTreeMap<ValueId, Constant>) -> Option<(Constant, Geometry)> {
    let (position, geometry) = Prepacked::read(node)?;
    let Argument::Use(weight) = node.arguments[position] else { return None };
    let weight = constants.get(&weight)?.clone();
    node.arguments[position] = Argument::Literal(Value::None);
    Some((weight, geometry))
}

/// How a node runs.
fn rule(
    node: &Node,
    to_lay_out: Option<(Constant, Geometry)>,
    spec: &PlanSpec,
    constants: &BTreeMap<ValueId, Tensor>,
    weights: &mut Weights,
) -> Result<Box<dyn Rule>, OperatorError> {
    if let Some((weight, geometry)) = to_lay_out {
        return Ok(Box::new(Prepacked::new(node, geometry, weights.laid_out(weight, geometry))?));
    }
    if spec.mode != Mode::Exact
        && spec.device == Device::Cpu
        && let Some((weight, bias)) = PackedLinear::read(node, |id| constants.get(&id))
    {
        return Ok(Box::new(PackedLinear::new(node, weights.packed(weight), bias)?));
    }
    rules::rule_for(node, spec.mode == Mode::Exact)
}

/// The places of a node where a value with a wanted gradient is read.
fn wanted(node: &Node, needed: &HashSet<ValueId>) -> Vec<(Slot, ValueId)> {
    let mut places = Vec::new();
    for (argument, value) in node.arguments.iter().enumerate() {
        match value {
            Argument::Use(id) if needed.contains(id) => places.push((Slot { argument, element: None }, *id)),
            Argument::List(elements) => {
                for (index, element) in elements.iter().enumerate() {
                    if let Element::Use(id) = element
                        && needed.contains(id)
                    {
                        places.push((Slot { argument, element: Some(index) }, *id));
                    }
                }
            }
            _ => {}
        }
    }
    places
}

/// A file's devices are placeholders: they mean the plan's.
fn place_on(device: Device, node: &mut Node) {
    for argument in &mut node.arguments {
        if let Argument::Literal(Value::Device(place)) = argument {
            *place = device;
        }
    }
}
