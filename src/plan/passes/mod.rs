//! Small passes over a plan's nodes, for the default mode.

use std::collections::BTreeMap;

use tch::Tensor;

use crate::model::graph::{Graph, Node, ValueId};

use super::{PlanError, PlanSpec};

/// Runs every pass.
pub fn run(
    _graph: &Graph,
    _spec: &PlanSpec,
    _nodes: &mut Vec<Node>,
    _constants: &mut BTreeMap<ValueId, Tensor>,
) -> Result<(), PlanError> {
    Ok(())
}
