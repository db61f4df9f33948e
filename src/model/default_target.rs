//! The default target layer.

use std::collections::BTreeSet;

use super::LayerError;
use super::graph::Graph;
use super::node::{Argument, Node, ValueId};
use crate::torch::Value;

impl Graph {
    /// The default target layer: the value that enters the last spatial average; without one, the last spatial map
    /// before flattening.
    pub fn default_target(&self, score: ValueId) -> Result<ValueId, LayerError> {
        let upstream = self.ancestors(score);
        let on_the_way = |node: &&Node| node.defines().any(|v| upstream.contains(&v));
        let source = |node: &Node| match node.arguments.first() {
            Some(Argument::Use(value)) if self.is_spatial(*value) => Some(*value),
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

    /// Whether a node is adaptive or average pooling to 1 × 1, or a mean over both spatial axes.
    fn averages_space(&self, node: &Node) -> bool {
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
