//! What the functionaliser knows of a program while it turns in-place writes into values.

use crate::model::node::Node;
use crate::model::node::ValueId;
use crate::model::program::ModuleCall;
/// A node with the module calls that it is part of.
pub struct TracedNode {
    pub node: Node,
    pub calls: Vec<ModuleCall>,
    /// Made here, not in the file.
    pub(super) synthetic: bool,
}

/// A node that vanished because its result is its input.
pub struct ElidedNode {
    /// Before which node it stood.
    pub position: usize,
    pub name: String,
    pub calls: Vec<ModuleCall>,
    pub value: ValueId,
}
