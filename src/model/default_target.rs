//! The default target layer: the map that the classifier reads.
//!
//! The search goes from the logits towards the input, and stops where positions of the picture are summed up, pooled,
//! flattened or attended to: the map that is read there is the candidate. What only weighs a map, such as the gate of
//! squeeze-and-excitation, is never reached.

use std::collections::{BTreeMap, BTreeSet};

use super::LayerError;
use super::axes::{Axes, Axis, Call, Contraction, Factor, Operand, position};
use super::graph::Graph;
use super::map_layout::MapLayout;
use super::node::{Node, ValueId};

impl Graph {
    /// The default target layer of the output that holds the logits.
    ///
    /// # Errors
    /// [`LayerError::NoDefault`] with the step that could not be proved.
    pub fn default_target(&self, axes: &Axes, logits: ValueId) -> Result<ValueId, LayerError> {
        Search::new(self, axes)
            .find(logits)
            .map_err(|problem| LayerError::NoDefault { problem, candidates: self.candidates() })
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

/// What later nodes need of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Need {
    /// All of it.
    Whole,
    /// The tokens beside the grid: a class token.
    ExtraTokens,
}

/// A map that is read on the way to the logits.
struct Source {
    value: ValueId,
    /// It is an operand of attention: features that a linear layer has projected from the map.
    is_projected: bool,
}

/// Whether an operator changes the order or the shape of its elements, and none of their values.
fn moves_elements(operator: &str) -> bool {
    matches!(
        operator,
        "permute"
            | "transpose"
            | "swapaxes"
            | "movedim"
            | "moveaxis"
            | "view"
            | "_unsafe_view"
            | "reshape"
            | "flatten"
            | "unflatten"
            | "contiguous"
            | "clone"
            | "alias"
            | "squeeze"
            | "unsqueeze"
            | "to"
            | "_to_copy"
            | "dropout"
            | "detach"
    )
}

struct Search<'a> {
    graph: &'a Graph,
    axes: &'a Axes,
    makers: BTreeMap<ValueId, &'a Node>,
}

impl<'a> Search<'a> {
    fn new(graph: &'a Graph, axes: &'a Axes) -> Self {
        let makers = graph.nodes.iter().flat_map(|node| node.defines().map(move |value| (value, node))).collect();
        Search { graph, axes, makers }
    }

    fn find(&self, logits: ValueId) -> Result<ValueId, String> {
        let sources = self.sources(logits)?;
        let mut found = BTreeSet::new();
        for source in sources {
            found.insert(self.map_of(source, logits)?);
        }
        // Of several maps, the one whose positions are computed from all others is the last.
        let is_last = |value: &&ValueId| {
            let ancestors = self.map_ancestors(**value);
            found.iter().all(|other| ancestors.contains(other))
        };
        match found.iter().find(is_last).copied().or_else(|| self.shared(&found)) {
            Some(last) => Ok(self.named(last)),
            None if found.is_empty() => Err("no map of the picture leads to the logits".into()),
            None => {
                let names: Vec<String> = found.iter().map(|&value| self.graph.layer_name(value)).collect();
                Err(format!(
                    "the logits are read from several maps, and none is computed from the others: {}",
                    names.join(", ")
                ))
            }
        }
    }

    /// Every value that the positions of `value` are computed from, itself included. What holds no positions, such as
    /// a class token, is not followed.
    fn map_ancestors(&self, value: ValueId) -> BTreeSet<ValueId> {
        let mut found = BTreeSet::from([value]);
        let mut waiting = vec![value];
        while let Some(node) = waiting.pop().map(|value| self.makers.get(&value)) {
            let inputs = node.into_iter().flat_map(|node| self.inputs(node));
            let maps: Vec<ValueId> = inputs.filter(|&input| self.axes.holds_map(input)).collect();
            waiting.extend(maps.into_iter().filter(|&map| found.insert(map)));
        }
        found
    }

    /// The map from which several others differ in a normalisation, a shift, or the tokens beside the grid: class
    /// tokens read the same map in several blocks.
    fn shared(&self, found: &BTreeSet<ValueId>) -> Option<ValueId> {
        let origins = |value: ValueId| -> Vec<ValueId> {
            let before = |&value: &ValueId| self.makers.get(&value).and_then(|node| self.shifted(node));
            std::iter::successors(Some(value), before).collect()
        };
        let mut origins = found.iter().map(|&value| origins(value));
        let (first, others) = (origins.next()?, origins.collect::<Vec<_>>());
        let is_shared = |value: &ValueId| others.iter().all(|origins| origins.contains(value));
        first.into_iter().find(|value| is_shared(value) && self.layout(*value).is_ok())
    }

    /// The same map under a module's name: what a module returns may be the map with its axes in another order. Without
    /// one, the named map from which it differs by a constant or by the tokens beside the grid.
    fn named(&self, map: ValueId) -> ValueId {
        let layers = self.graph.layers();
        let length = |value: ValueId| {
            let names = layers.iter().find(|(layer, _)| *layer == value).map(|(_, names)| names);
            names.and_then(|names| names.iter().map(String::len).min())
        };
        // What has another reader is more than what the module returns.
        let moved = |&value: &ValueId| {
            let mut readers = self.graph.nodes.iter().filter(|node| node.uses().any(|used| used == value));
            let (reader, None) = (readers.next()?, readers.next()) else { return None };
            let is_moved = matches!(self.call(reader).name(), "permute" | "transpose");
            reader.defines().next().filter(|&to| is_moved && self.layout(to).is_ok())
        };
        let before = |&value: &ValueId| {
            let node = self.makers.get(&value)?;
            self.shifted(node).filter(|_| !matches!(self.call(node).name(), "layer_norm" | "rms_norm"))
        };
        let has_name = |&value: &ValueId| length(value).is_some();
        let is_map =
            |&value: &ValueId| has_name(&value) && self.layout(value).is_ok() && value != self.graph.input.value;
        let same = std::iter::successors(Some(map), moved).filter(has_name).min_by_key(|&value| length(value));
        same.or_else(|| std::iter::successors(Some(map), before).find(is_map)).unwrap_or(map)
    }

    /// The maps that are read on the way to the logits.
    fn sources(&self, logits: ValueId) -> Result<Vec<Source>, String> {
        if self.axes.holds_map(logits) {
            return Err(if self.axes.is_lost(logits) {
                self.lost(logits)
            } else {
                "the logits hold a class for each position of the picture".into()
            });
        }
        let mut sources = Vec::new();
        let mut waiting = vec![(logits, Need::Whole)];
        let mut seen = BTreeSet::new();
        while let Some((value, need)) = waiting.pop() {
            if !seen.insert((value, need)) {
                continue;
            }
            let Some(node) = self.makers.get(&value) else { continue };
            if need == Need::ExtraTokens && self.adds_tokens(node) {
                // The tokens come from the other operands; the grid's are not needed.
                let others = self.inputs(node).filter(|&input| !self.axes.holds_map(input));
                waiting.extend(others.map(|input| (input, Need::Whole)));
                continue;
            }
            if let Some(operands) = self.attended(node) {
                sources.extend(operands.into_iter().map(|value| Source { value, is_projected: true }));
                // A class token goes on beside attention, as the query.
                continue;
            }
            for input in self.inputs(node) {
                if !self.axes.holds_map(input) {
                    waiting.push((input, Need::Whole));
                } else if self.axes.is_lost(input) {
                    return Err(self.lost(input));
                } else if need == Need::ExtraTokens || self.takes_extra_tokens(node, input, value) {
                    waiting.push((input, Need::ExtraTokens));
                } else if self.joins_maps(input) {
                    waiting.push((input, Need::Whole));
                } else {
                    sources.push(Source { value: input, is_projected: false });
                }
            }
        }
        Ok(sources)
    }

    /// The tensors that a node reads and that are computed from the picture.
    fn inputs(&self, node: &'a Node) -> impl Iterator<Item = ValueId> + use<'_, 'a> {
        let is_read = |value: &ValueId| self.axes.depends(*value) && self.graph.value(*value).differentiable;
        node.uses().filter(is_read)
    }

    fn call(&self, node: &'a Node) -> Call<'a> {
        Call { graph: self.graph, node, axes: self.axes }
    }

    /// Of attention and other products that sum over positions: the operands whose features are summed.
    fn attended(&self, node: &'a Node) -> Option<Vec<ValueId>> {
        let call = self.call(node);
        if call.name() == "scaled_dot_product_attention" {
            let key = call.input("key")?;
            let tokens = key.len().checked_sub(2)?;
            return key[tokens].is_spatial().then(|| call.value("value").into_iter().collect());
        }
        let contraction = Contraction::of(&call)?;
        let is_attended =
            |operand: &&Operand| contraction.sums_positions(operand) && contraction.keeps_channels(operand);
        let operands: Vec<ValueId> = contraction.operands.iter().filter(is_attended).map(|o| o.value).collect();
        (!operands.is_empty()).then_some(operands)
    }

    /// Whether a node puts tokens beside a grid.
    fn adds_tokens(&self, node: &Node) -> bool {
        matches!(node.operator_name(), "cat" | "concat" | "concatenate" | "hstack" | "pad" | "constant_pad_nd")
    }

    /// Whether a value is several flattened maps, one after the other.
    fn joins_maps(&self, value: ValueId) -> bool {
        self.layout(value).is_err() && self.makers.get(&value).is_some_and(|node| self.adds_tokens(node))
    }

    /// Whether `output`, which a node cuts from `input`, holds tokens beside the grid alone.
    fn takes_extra_tokens(&self, node: &'a Node, input: ValueId, output: ValueId) -> bool {
        let call = self.call(node);
        let Some(axes) = self.axes.get(input) else { return false };
        let Some(dim) = call.axis("dim", axes.len()).or((call.node.argument("dim").is_none()).then_some(0)) else {
            return false;
        };
        let Some(Factor::Tokens { before, rows, columns, .. }) = axes[dim].tokens() else { return false };
        match call.name() {
            "select" => {
                let index = call.int("index").and_then(|index| position(index, axes[dim].size() as usize));
                index.is_some_and(|index| !(before..before + rows * columns).contains(&(index as i64)))
            }
            "slice" | "narrow" | "split" | "split_with_sizes" | "chunk" | "tensor_split" => {
                !self.axes.holds_map(output)
                    && axes[dim].size() > rows * columns
                    && self.axes.get(output).is_some_and(|axes| !axes.iter().any(Axis::is_unknown))
            }
            _ => false,
        }
    }

    /// The layer that a source is read from.
    fn map_of(&self, source: Source, logits: ValueId) -> Result<ValueId, String> {
        let value = self.read(source.value, source.is_projected, logits);
        let mut found = value;
        while let Err(problem) = self.layout(found) {
            let before = self.makers.get(&found).and_then(|node| self.shifted(node));
            found = before.ok_or_else(|| {
                format!("the classifier reads {}, which is no map: {problem}", self.graph.layer_name(value))
            })?;
            found = self.read(found, false, logits);
        }
        if found == self.graph.input.value {
            return Err("the classifier reads the picture itself".into());
        }
        Ok(found)
    }

    fn layout(&self, value: ValueId) -> Result<MapLayout, String> {
        if !self.graph.value(value).differentiable {
            return Err("no gradient reaches it".into());
        }
        let axes = self.axes.get(value).ok_or("it is a number")?;
        MapLayout::of(axes).map_err(|problem| problem.to_string())
    }

    /// Goes from a value towards the input, past what only moves, weighs or projects the map that was read.
    fn read(&self, source: ValueId, is_projected: bool, logits: ValueId) -> ValueId {
        let (mut value, mut may_project) = (source, is_projected);
        let mut is_class_map = self.is_read_as_logits(source, logits);
        while let Some(node) = self.makers.get(&value) {
            let next = if may_project && node.operator_name() == "linear" {
                may_project = false;
                self.inputs(node).next()
            } else if is_class_map && self.is_pointwise_layer(node) {
                self.inputs(node).next()
            } else {
                self.moved(node, value, may_project).or_else(|| self.weighed(node))
            };
            is_class_map &= next.is_some_and(|_| !self.is_pointwise_layer(node));
            match next {
                Some(next)
                    if next != self.graph.input.value && self.axes.holds_map(next) && !self.axes.is_lost(next) =>
                {
                    value = next;
                }
                _ => break,
            }
        }
        value
    }

    /// The operand of a node that moves elements, adds or cuts off tokens beside the grid, or pools adaptively.
    fn moved(&self, node: &'a Node, value: ValueId, may_project: bool) -> Option<ValueId> {
        let call = self.call(node);
        let first = self.inputs(node).next()?;
        let is_worth = self.layout(first).is_ok() || self.layout(value).is_err();
        match call.name() {
            "adaptive_avg_pool2d" | "adaptive_max_pool2d" => is_worth.then_some(first),
            name if moves_elements(name) => is_worth.then_some(first),
            // An average of rows before that of columns.
            "mean" | "sum" | "amax" => self.layout(first).is_ok().then_some(first),
            // Generalised mean: the power of what is above zero is averaged.
            "pow" => self.layout(first).is_ok().then_some(first),
            "clamp" | "clamp_min" if node.rectifier.is_none() => self.layout(first).is_ok().then_some(first),
            // Queries, keys and values, or heads.
            "select" | "chunk" | "split" | "split_with_sizes" | "unbind" | "slice" if may_project => Some(first),
            "slice" | "narrow" | "split" | "split_with_sizes" => {
                let grid = |value: ValueId| self.axes.get(value)?.iter().find_map(Axis::tokens);
                (is_worth && grid(first).is_some()).then_some(first)
            }
            _ if self.adds_tokens(node) && self.layout(value).is_err() => self.only_map(node),
            _ => None,
        }
    }

    /// The one operand of a node that holds positions of the picture; none when several do.
    fn only_map(&self, node: &'a Node) -> Option<ValueId> {
        let mut maps = self.inputs(node).filter(|&input| self.axes.holds_map(input));
        let map = maps.next()?;
        maps.next().is_none().then_some(map)
    }

    /// The operand of a node that moves elements, normalises them, or adds what does not depend on the picture, such as
    /// the positions' embedding.
    fn shifted(&self, node: &'a Node) -> Option<ValueId> {
        let mut inputs = self.inputs(node);
        let first = inputs.next()?;
        let is_constant_beside = inputs.next().is_none();
        match self.call(node).name() {
            "add" | "sub" | "mul" | "div" if is_constant_beside => Some(first),
            "layer_norm" | "rms_norm" => Some(first),
            _ if self.adds_tokens(node) => self.only_map(node),
            name if moves_elements(name) => Some(first),
            _ => None,
        }
        .filter(|&input| self.axes.holds_map(input))
    }

    /// The map of a product of a map with one weight for each of its positions, as in attention pooling.
    fn weighed(&self, node: &'a Node) -> Option<ValueId> {
        if !matches!(node.operator_name(), "mul" | "multiply") {
            return None;
        }
        let has_channels = |value: ValueId| {
            self.axes.get(value).is_some_and(|axes| axes.iter().any(|axis| axis.size() > 1 && axis.is_channel()))
        };
        let maps: Vec<ValueId> = self.inputs(node).filter(|&input| self.axes.holds_map(input)).collect();
        match *maps.as_slice() {
            [a, b] if has_channels(a) && !has_channels(b) => Some(a),
            [a, b] if has_channels(b) && !has_channels(a) => Some(b),
            _ => None,
        }
    }

    /// Whether the logits are the value, moved and averaged over its positions: it holds the classes' scores at each.
    fn is_read_as_logits(&self, source: ValueId, logits: ValueId) -> bool {
        let mut value = logits;
        while value != source {
            let Some(node) = self.makers.get(&value) else { return false };
            let name = self.call(node).name();
            let averages =
                matches!(name, "mean" | "sum" | "amax" | "adaptive_avg_pool2d" | "avg_pool2d" | "adaptive_max_pool2d");
            let passes = averages || moves_elements(name);
            match self.inputs(node).next() {
                Some(input) if passes => value = input,
                _ => return false,
            }
        }
        true
    }

    /// A linear layer, or a convolution of one position.
    fn is_pointwise_layer(&self, node: &'a Node) -> bool {
        let call = self.call(node);
        let is_of_one_position = || {
            let kernel = call.value("weight").and_then(|weight| self.graph.value(weight).shape.as_deref());
            kernel.is_some_and(|kernel| kernel.len() > 2 && kernel[2..].iter().all(|&size| size == 1))
        };
        match call.name() {
            "linear" => true,
            "conv2d" | "convolution" | "_convolution" => is_of_one_position(),
            _ => false,
        }
    }

    /// Why nothing is known of a value's axes.
    fn lost(&self, value: ValueId) -> String {
        let ancestors = self.graph.ancestors(value);
        let loses = |node: &&Node| node.defines().any(|made| ancestors.contains(&made) && self.axes.is_lost(made));
        match self.graph.nodes.iter().find(loses) {
            Some(node) => {
                let operator = if node.operator_name().is_empty() { "an operation" } else { node.operator_name() };
                format!("where the picture's rows and columns are is not known after {operator} (node {})", node.name)
            }
            None => "where the picture's rows and columns are is not known".into(),
        }
    }
}
