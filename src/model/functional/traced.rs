//! What the functionaliser knows of a program while it turns in-place writes into values.

use crate::model::node::Node;
use crate::model::node::ValueId;
use crate::model::program::Call;
/// A node with the module calls that it is part of.
pub struct Draft {
    pub node: Node,
    pub calls: Vec<Call>,
    /// Made here, not in the file.
    pub(super) synthetic: bool,
}

/// A node that vanished because its result is its input.
pub struct Ghost {
    /// Before which node it stood.
    pub position: usize,
    pub name: String,
    pub calls: Vec<Call>,
    pub value: ValueId,
}
