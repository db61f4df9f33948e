//! Finds the value that a layer name means, and the names of a value.

use std::collections::{BTreeMap, BTreeSet};

use super::graph::Graph;
use super::node::ValueId;
use super::{LayerError, ModelError};

/// Why a call does not mean one value.
enum Unclear {
    Nothing,
    Several(Vec<ValueId>),
}

/// Most layers that a message lists.
const MAX_CANDIDATES: usize = 16;

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

/// The known name closest to a misspelt one, if one is within a third of its length in edits.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a String>) -> Option<String> {
    known
        .map(|k| (strsim::damerau_levenshtein(name, k), k))
        .min()
        .filter(|(distance, k)| *distance <= k.len() / 3)
        .map(|(_, k)| k.clone())
}

/// The last of `layers`, which are spatial, the last one first: Grad-CAM is asked for at the end of the network.
pub(super) fn candidates<S: AsRef<str>>(layers: &[S]) -> String {
    let shown = layers.iter().rev().take(MAX_CANDIDATES).map(AsRef::as_ref).collect::<Vec<_>>().join(", ");
    match layers.len().checked_sub(MAX_CANDIDATES) {
        Some(more @ 1..) => format!("{shown} and {more} earlier ones"),
        _ => shown,
    }
}

impl Graph {
    /// The value that a layer name means.
    ///
    /// # Errors
    /// Names the layers that exist, or the calls, or the nodes to choose from.
    pub fn layer(&self, name: &str) -> Result<ValueId, LayerError> {
        self.find_layer(name, || self.candidates())
    }

    /// The value of every layer name, or the reason that it means none.
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

    /// Every name that [`Graph::layer`] knows, including those that mean no single value.
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

    /// The value that a call's name means, of the values that it returned.
    fn one_of(&self, returned: &[ValueId]) -> Result<ValueId, Unclear> {
        // Tensors only: sizes computed inside are shared by the whole program. Differentiable tensors are preferred.
        let tensors: Vec<ValueId> = returned.iter().copied().filter(|v| self.value(*v).shape.is_some()).collect();
        let live: Vec<ValueId> = tensors.iter().copied().filter(|v| self.value(*v).differentiable).collect();
        let values = if live.is_empty() { tensors } else { live };
        let Some(first) = values.first() else { return Err(Unclear::Nothing) };
        // One value, or several outputs of one node: the first is meant.
        let maker = |value: &ValueId| self.layers.makers.get(value);
        if values.iter().all(|value| maker(value).is_some() && maker(value) == maker(first)) || values.len() == 1 {
            return Ok(*first);
        }
        let spatial: Vec<ValueId> = values.iter().copied().filter(|v| self.has_shape_of_map(*v)).collect();
        match spatial.as_slice() {
            [one] => Ok(*one),
            _ => Err(Unclear::Several(values)),
        }
    }

    /// Whether the value has the shape of a map, `[N, _, _, _]`.
    fn has_shape_of_map(&self, value: ValueId) -> bool {
        let info = self.value(value);
        info.differentiable && matches!(info.shape.as_deref(), Some([_, _, h, w]) if h * w > 1)
    }

    /// Every layer in the program's order: its value, and the names that mean it.
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
            .filter(|(v, _)| self.layout(*v).is_ok())
            .filter_map(|(_, names)| names.into_iter().min_by_key(String::len))
            .collect()
    }

    pub(super) fn candidates(&self) -> String {
        candidates(&self.spatial_layers())
    }

    /// The shortest name of a value.
    pub fn layer_name(&self, value: ValueId) -> String {
        let layers = self.layers();
        let names = layers.into_iter().find(|(v, _)| *v == value).map(|(_, names)| names).unwrap_or_default();
        names.into_iter().min_by_key(|name| (name.len(), name.clone())).unwrap_or_else(|| self.node_name(value))
    }

    /// The name of the node that makes a value, which [`Graph::layer`] knows: a value may be called otherwise.
    fn node_name(&self, value: ValueId) -> String {
        let own = &self.value(value).name;
        if self.layers.nodes.get(own) == Some(&value) {
            return own.clone();
        }
        let names = self.layers.nodes.iter().filter(|(_, made)| **made == value).map(|(name, _)| name);
        names.min_by_key(|name| name.len()).unwrap_or(own).clone()
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
}
