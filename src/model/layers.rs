//! Layer names: which value a module path means.
//!
//! `layer4.2.relu` is what the module's last call hands to the outside, `layer4.2.relu@0` its first call. A value without
//! a module is named by its node. Several names may mean one value.

use std::collections::{BTreeMap, BTreeSet};

use super::functional::traced::{Draft, Ghost};
use super::graph::Graph;
use super::import::pt2::Call;
use super::node::{Node, ValueId};
use super::{LayerError, ModelError};

/// The names of a graph's layers.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    /// Module path → what each of its calls returned, in order.
    calls: BTreeMap<String, Vec<Vec<ValueId>>>,
    /// Node name → its value.
    nodes: BTreeMap<String, ValueId>,
    /// Every module path, called or not.
    paths: BTreeSet<String>,
    /// Value → which node of the program computed it.
    makers: BTreeMap<ValueId, usize>,
}

/// Why a call does not mean one value.
enum Unclear {
    Nothing,
    Several(Vec<ValueId>),
}

/// A message lists this many layers at most.
const MAX_CANDIDATES: usize = 48;

impl Layers {
    /// Reads names off the nodes' module calls, before any node is folded away.
    pub fn new(drafts: &[Draft], ghosts: &[Ghost], outputs: &[ValueId], paths: &BTreeSet<String>) -> Self {
        let mut order = Order::default();
        let mut members: BTreeMap<&Call, Vec<usize>> = BTreeMap::new();
        let mut next_ghost = ghosts.iter().peekable();
        for (index, draft) in drafts.iter().enumerate() {
            while let Some(ghost) = next_ghost.next_if(|g| g.position <= index) {
                order.note(&ghost.calls);
            }
            order.note(&draft.calls);
            for call in &draft.calls {
                members.entry(call).or_default().push(index);
            }
        }
        for ghost in next_ghost {
            order.note(&ghost.calls);
        }
        let mut users: BTreeMap<ValueId, Vec<usize>> = BTreeMap::new();
        for (index, draft) in drafts.iter().enumerate() {
            for value in draft.node.uses() {
                users.entry(value).or_default().push(index);
            }
        }
        let outputs: BTreeSet<ValueId> = outputs.iter().copied().collect();
        let vanished: BTreeMap<&Call, ValueId> =
            ghosts.iter().flat_map(|ghost| ghost.calls.iter().map(|call| (call, ghost.value))).collect();
        let returned = |call: &Call| -> Vec<ValueId> {
            let Some(inside) = members.get(call) else {
                // A module that is nothing but an identity.
                return vanished.get(call).copied().into_iter().collect();
            };
            let set: BTreeSet<usize> = inside.iter().copied().collect();
            let is_read_outside =
                |value: ValueId| users.get(&value).is_some_and(|u| u.iter().any(|i| !set.contains(i)));
            let out: Vec<ValueId> = inside
                .iter()
                .flat_map(|&i| drafts[i].node.defines())
                .filter(|v| outputs.contains(v) || is_read_outside(*v))
                .collect();
            if out.is_empty() {
                inside.last().map(|&i| drafts[i].node.defines().collect()).unwrap_or_default()
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
        for draft in drafts {
            let mut values = draft.node.defines();
            if let (Some(value), None) = (values.next(), values.next()) {
                nodes.entry(draft.node.name.clone()).or_insert(value);
            }
        }
        for ghost in ghosts {
            nodes.entry(ghost.name.clone()).or_insert(ghost.value);
        }
        let makers = drafts
            .iter()
            .enumerate()
            .flat_map(|(index, draft)| draft.node.defines().map(move |v| (v, index)))
            .collect();
        Layers { calls, nodes, paths: paths.clone(), makers }
    }
}

/// The calls of each module, in the order in which they are met.
#[derive(Default)]
struct Order<'a> {
    by_path: BTreeMap<String, Vec<&'a Call>>,
    seen: BTreeSet<&'a Call>,
}

impl<'a> Order<'a> {
    fn note(&mut self, calls: &'a [Call]) {
        for call in calls {
            if self.seen.insert(call) {
                self.by_path.entry(call.path.clone()).or_default().push(call);
            }
        }
    }
}

/// `name@2` → (`name`, 2).
fn split_call(name: &str) -> (&str, Option<usize>) {
    match name.rsplit_once('@') {
        Some((path, number)) => match number.parse() {
            Ok(number) => (path, Some(number)),
            Err(_) => (name, None),
        },
        None => (name, None),
    }
}

/// The known name that is closest to a mistaken one, if any is close.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a String>) -> Option<String> {
    known
        .map(|k| (strsim::damerau_levenshtein(name, k), k))
        .min()
        .filter(|(distance, k)| *distance <= k.len() / 3)
        .map(|(_, k)| k.clone())
}

impl Graph {
    /// The value that a layer name means.
    ///
    /// # Errors
    /// Names the layers that exist, or the calls, or the nodes to choose from.
    pub fn layer(&self, name: &str) -> Result<ValueId, LayerError> {
        self.find_layer(name, || self.candidates())
    }

    /// What every layer name means, or why it means nothing.
    pub fn layer_values(&self) -> BTreeMap<String, Result<ValueId, LayerError>> {
        let candidates = self.candidates();
        let value = |name: String| {
            let value = self.find_layer(&name, || candidates.clone());
            (name, value)
        };
        self.layer_names().into_iter().map(value).collect()
    }

    fn find_layer(&self, name: &str, candidates: impl Fn() -> String) -> Result<ValueId, LayerError> {
        let (path, call) = split_call(name);
        if let Some(calls) = self.layers.calls.get(path).filter(|_| !path.is_empty()) {
            let index = call.unwrap_or(calls.len() - 1);
            let returned =
                calls.get(index).ok_or(LayerError::NoSuchCall { name: path.to_owned(), calls: calls.len() })?;
            return self.one_of(returned).map_err(|unclear| match unclear {
                Unclear::Nothing => LayerError::NoNode { name: name.to_owned(), candidates: candidates() },
                Unclear::Several(values) => {
                    let names = values.iter().map(|v| self.value(*v).name.clone());
                    LayerError::Ambiguous { name: name.to_owned(), nodes: names.take(MAX_CANDIDATES).collect() }
                }
            });
        }
        if let Some(value) = self.layers.nodes.get(name) {
            return Ok(*value);
        }
        if self.layers.paths.contains(path) && !path.is_empty() {
            return Err(LayerError::NoNode { name: name.to_owned(), candidates: candidates() });
        }
        let suggestion = nearest(name, self.layer_names().iter());
        Err(LayerError::Unknown { name: name.to_owned(), suggestion, candidates: candidates() })
    }

    /// Every name that [`Graph::layer`] knows, right or wrong.
    pub fn layer_names(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for (path, calls) in self.layers.calls.iter().filter(|(path, _)| !path.is_empty()) {
            names.insert(path.clone());
            names.extend((0..calls.len()).map(|index| format!("{path}@{index}")));
        }
        names.extend(self.layers.nodes.keys().cloned());
        names.extend(self.layers.paths.iter().filter(|path| !path.is_empty()).cloned());
        names
    }

    /// Of the values that a call handed out, the one that is meant.
    fn one_of(&self, returned: &[ValueId]) -> Result<ValueId, Unclear> {
        // Tensors only: sizes that were computed inside are shared by the whole program. Differentiable ones first.
        let tensors: Vec<ValueId> = returned.iter().copied().filter(|v| self.value(*v).shape.is_some()).collect();
        let live: Vec<ValueId> = tensors.iter().copied().filter(|v| self.value(*v).differentiable).collect();
        let values = if live.is_empty() { tensors } else { live };
        let Some(first) = values.first() else { return Err(Unclear::Nothing) };
        // One value, or several outputs of one node: the first.
        let maker = |value: &ValueId| self.layers.makers.get(value);
        if values.iter().all(|value| maker(value).is_some() && maker(value) == maker(first)) || values.len() == 1 {
            return Ok(*first);
        }
        let spatial: Vec<ValueId> = values.iter().copied().filter(|v| self.is_spatial(*v)).collect();
        match spatial.as_slice() {
            [one] => Ok(*one),
            _ => Err(Unclear::Several(values)),
        }
    }

    /// Whether the value is a map: `[N, K, h, w]` with more than one position, depending on the input.
    pub fn is_spatial(&self, value: ValueId) -> bool {
        let info = self.value(value);
        info.differentiable && matches!(info.shape.as_deref(), Some([_, _, h, w]) if h * w > 1)
    }

    /// Every layer: its value, with the names that mean it, in the program's order.
    pub fn layers(&self) -> Vec<(ValueId, Vec<String>)> {
        let mut names: BTreeMap<ValueId, Vec<String>> = BTreeMap::new();
        for (path, calls) in self.layers.calls.iter().filter(|(path, _)| !path.is_empty()) {
            for (index, returned) in calls.iter().enumerate() {
                let name = if index + 1 == calls.len() { path.clone() } else { format!("{path}@{index}") };
                if let Ok(value) = self.one_of(returned) {
                    names.entry(value).or_default().push(name);
                }
            }
        }
        let position: BTreeMap<ValueId, usize> =
            self.nodes.iter().enumerate().flat_map(|(i, node)| node.defines().map(move |v| (v, i))).collect();
        let mut layers: Vec<_> = names.into_iter().filter(|(value, _)| self.value(*value).differentiable).collect();
        layers.sort_by_key(|(value, _)| position.get(value).copied());
        layers
    }

    /// The names of the layers that are spatial, in the program's order, one for each value.
    pub fn spatial_layers(&self) -> Vec<String> {
        let layers = self.layers();
        layers
            .into_iter()
            .filter(|(v, _)| self.is_spatial(*v))
            .filter_map(|(_, names)| names.into_iter().min_by_key(String::len))
            .collect()
    }

    fn candidates(&self) -> String {
        let layers = self.spatial_layers();
        let shown = layers.iter().take(MAX_CANDIDATES).map(String::as_str).collect::<Vec<_>>().join(", ");
        match layers.len().checked_sub(MAX_CANDIDATES) {
            Some(more @ 1..) => format!("{shown} and {more} more"),
            _ => shown,
        }
    }

    /// The shortest name of a value.
    pub fn layer_name(&self, value: ValueId) -> String {
        let layers = self.layers();
        let names = layers.into_iter().find(|(v, _)| *v == value).map(|(_, names)| names).unwrap_or_default();
        names
            .into_iter()
            .min_by_key(|name| (name.len(), name.clone()))
            .unwrap_or_else(|| self.value(value).name.clone())
    }

    /// The output that holds the logits: by name, else the first tensor.
    pub fn score(&self, head: Option<&str>) -> Result<ValueId, ModelError> {
        let tensors: Vec<_> = self.outputs.iter().filter_map(|o| Some((o.name.clone(), o.value?))).collect();
        let found = match head {
            Some(name) => tensors.iter().find(|(n, _)| n == name),
            None => tensors.first(),
        };
        found.map(|(_, value)| *value).ok_or_else(|| ModelError::NoOutput {
            name: head.unwrap_or("that is a tensor").to_owned(),
            outputs: tensors.into_iter().map(|(name, _)| name).collect(),
        })
    }

    /// The target layer when nobody names one: the value that enters the last spatial average; if there is none, the last
    /// spatial map before flattening.
    pub fn default_target(&self, score: ValueId) -> Result<ValueId, LayerError> {
        let upstream = self.ancestors(score);
        let on_the_way = |node: &&Node| node.defines().any(|v| upstream.contains(&v));
        let source = |node: &Node| match node.arguments.first() {
            Some(super::node::Argument::Use(value)) if self.is_spatial(*value) => Some(*value),
            _ => None,
        };
        let averaged = self.nodes.iter().rev().filter(on_the_way).find_map(|node| {
            let value = source(node)?;
            self.averages_space(node).then_some(value)
        });
        if let Some(value) = averaged {
            return Ok(value);
        }
        let rank = |v: ValueId| self.value(v).shape.as_ref().map(Vec::len);
        let flattened = self.nodes.iter().rev().filter(on_the_way).find_map(|node| {
            let value = source(node)?;
            node.defines().any(|v| rank(v) == Some(2)).then_some(value)
        });
        flattened.ok_or_else(|| LayerError::NoDefault {
            problem: "the model has no spatial average and flattens no feature map, so no target layer can be guessed"
                .into(),
            candidates: self.candidates(),
        })
    }

    /// Adaptive or average pooling, or a mean over both spatial axes.
    fn averages_space(&self, node: &Node) -> bool {
        use crate::torch::Value;
        match node.operator_name() {
            "adaptive_avg_pool2d" => true,
            "avg_pool2d" => node.defines().any(|v| matches!(self.value(v).shape.as_deref(), Some([_, _, 1, 1]))),
            "mean" | "sum" => match node.literal("dim") {
                Some(Value::Ints(axes)) => {
                    let mut axes: Vec<i64> = axes.iter().map(|a| a.rem_euclid(4)).collect();
                    axes.sort_unstable();
                    axes == [2, 3]
                }
                _ => false,
            },
            _ => false,
        }
    }

    /// Every value that `value` is computed from, itself included.
    pub fn ancestors(&self, value: ValueId) -> BTreeSet<ValueId> {
        let mut set = BTreeSet::from([value]);
        for node in self.nodes.iter().rev() {
            if node.defines().any(|v| set.contains(&v)) {
                set.extend(node.uses());
            }
        }
        set
    }
}
