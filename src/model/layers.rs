//! The names of a graph's layers.
//!
//! `layer4.2.relu` is what the module's last call hands to the outside, `layer4.2.relu@0` its first call. A value
//! without a module is named by its node. Several names may mean one value.

use std::collections::{BTreeMap, BTreeSet};

use super::functional::traced::{ElidedNode, TracedNode};
use super::node::ValueId;
use super::program::ModuleCall;

/// The names of a graph's layers.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    /// Module path → what each of its calls returned, in order.
    pub(super) calls: BTreeMap<String, Vec<Vec<ValueId>>>,
    /// Node name → its value.
    pub(super) nodes: BTreeMap<String, ValueId>,
    /// Every module path, called or not.
    pub(super) paths: BTreeSet<String>,
    /// Value → which node of the program computed it.
    pub(super) makers: BTreeMap<ValueId, usize>,
}

impl Layers {
    /// Reads names off the nodes' module calls, before any node is folded away.
    pub fn new(traced: &[TracedNode], elided: &[ElidedNode], outputs: &[ValueId], paths: &BTreeSet<String>) -> Self {
        let mut order = Order::default();
        let mut members: BTreeMap<&ModuleCall, Vec<usize>> = BTreeMap::new();
        let mut next_elided = elided.iter().peekable();
        for (index, traced_node) in traced.iter().enumerate() {
            while let Some(elided_node) = next_elided.next_if(|g| g.position <= index) {
                order.note(&elided_node.calls);
            }
            order.note(&traced_node.calls);
            for call in &traced_node.calls {
                members.entry(call).or_default().push(index);
            }
        }
        for elided_node in next_elided {
            order.note(&elided_node.calls);
        }
        let mut users: BTreeMap<ValueId, Vec<usize>> = BTreeMap::new();
        for (index, traced_node) in traced.iter().enumerate() {
            for value in traced_node.node.uses() {
                users.entry(value).or_default().push(index);
            }
        }
        let outputs: BTreeSet<ValueId> = outputs.iter().copied().collect();
        let vanished: BTreeMap<&ModuleCall, ValueId> = elided
            .iter()
            .flat_map(|elided_node| elided_node.calls.iter().map(|call| (call, elided_node.value)))
            .collect();
        let returned = |call: &ModuleCall| -> Vec<ValueId> {
            let Some(inside) = members.get(call) else {
                // A module that is nothing but an identity.
                return vanished.get(call).copied().into_iter().collect();
            };
            let set: BTreeSet<usize> = inside.iter().copied().collect();
            let is_read_outside =
                |value: ValueId| users.get(&value).is_some_and(|u| u.iter().any(|i| !set.contains(i)));
            let out: Vec<ValueId> = inside
                .iter()
                .flat_map(|&i| traced[i].node.defines())
                .filter(|v| outputs.contains(v) || is_read_outside(*v))
                .collect();
            if out.is_empty() {
                inside.last().map(|&i| traced[i].node.defines().collect()).unwrap_or_default()
            } else {
                out
            }
        };
        let calls = order
            .by_path
            .iter()
            .map(|(path, calls)| (path.clone(), calls.iter().map(|c| returned(c)).collect()))
            .collect();
        let mut nodes = BTreeMap::new();
        for traced_node in traced {
            let mut values = traced_node.node.defines();
            if let (Some(value), None) = (values.next(), values.next()) {
                nodes.entry(traced_node.node.name.clone()).or_insert(value);
            }
        }
        for elided_node in elided {
            nodes.entry(elided_node.name.clone()).or_insert(elided_node.value);
        }
        let makers = traced
            .iter()
            .enumerate()
            .flat_map(|(index, traced_node)| traced_node.node.defines().map(move |v| (v, index)))
            .collect();
        Layers { calls, nodes, paths: paths.clone(), makers }
    }
}

/// The calls of each module, in the program's order.
#[derive(Default)]
struct Order<'a> {
    by_path: BTreeMap<String, Vec<&'a ModuleCall>>,
    seen: BTreeSet<&'a ModuleCall>,
}

impl<'a> Order<'a> {
    fn note(&mut self, calls: &'a [ModuleCall]) {
        for call in calls {
            if self.seen.insert(call) {
                self.by_path.entry(call.path.clone()).or_default().push(call);
            }
        }
    }
}
