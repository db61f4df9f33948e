//! A model as a list of operator nodes, whatever file it came from.
//!
//! The graph is functional: each value is computed once and never changes. `functional` has turned in-place writes into
//! new values.

use crate::model::dimension::Dimension;
use crate::model::node::Node;
use crate::model::node::ValueId;
use crate::model::node::ValueInfo;
use std::collections::BTreeMap;
use std::sync::Arc;

use tch::Kind;

use super::map_layout::{LayoutProblem, MapLayout};
use super::stored::Stored;

/// The input, `[N, C, H, W]`.
#[derive(Debug, Clone)]
pub struct Input {
    pub value: ValueId,
    pub kind: Kind,
    pub shape: [Dimension; 4],
    /// The file's own order is [N, H, W, C]: a first node permutes the input.
    pub channels_last: bool,
}

/// One output.
#[derive(Debug, Clone)]
pub struct Output {
    /// Its name in the result: `logits`, `nested.1.k`, or its number.
    pub name: String,
    /// None when it is no tensor.
    pub value: Option<ValueId>,
}

/// A whole model.
#[derive(Debug)]
pub struct Graph {
    /// By [`ValueId`].
    pub values: Vec<ValueInfo>,
    /// In topological order: each node reads only the results of earlier ones.
    pub nodes: Vec<Node>,
    /// Weights, and everything else that does not depend on the input.
    pub constants: BTreeMap<ValueId, Arc<Stored>>,
    pub input: Input,
    pub outputs: Vec<Output>,
    /// Layer names.
    pub layers: super::layers::Layers,
    /// By [`ValueId`]: how each value is read as a map, or why it is none.
    pub layouts: Vec<Result<MapLayout, LayoutProblem>>,
}

impl Graph {
    /// The same graph for another thread. Constants are shared.
    pub fn share(&self) -> Self {
        Graph {
            values: self.values.clone(),
            nodes: self.nodes.clone(),
            constants: self.constants.clone(),
            input: self.input.clone(),
            outputs: self.outputs.clone(),
            layers: self.layers.clone(),
            layouts: self.layouts.clone(),
        }
    }

    /// How a value is read as a map.
    ///
    /// # Errors
    /// Why it is no map.
    pub fn layout(&self, id: ValueId) -> Result<MapLayout, LayoutProblem> {
        self.layouts.get(id.index()).copied().unwrap_or(Err(LayoutProblem::NotKnown))
    }

    pub fn value(&self, id: ValueId) -> &ValueInfo {
        &self.values[id.index()]
    }
}
