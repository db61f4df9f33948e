//! The nodes of a program while it becomes functional.

use crate::model::node::Node;
use crate::model::node::ValueId;
use crate::model::program::ModuleCall;
/// A node with the module calls that it is part of.
pub struct TracedNode {
    pub node: Node,
    pub calls: Vec<ModuleCall>,
    /// Made by the functionaliser, not by the file.
    pub(super) synthetic: bool,
}

/// A node that was dropped because its result is its input.
pub struct ElidedNode {
    /// Index of the node that it stood before.
    pub position: usize,
    pub name: String,
    pub calls: Vec<ModuleCall>,
    pub value: ValueId,
}
