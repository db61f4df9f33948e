//! Layer names: which value a module path means.

/// The names of a graph's layers.
#[derive(Debug, Default)]
pub struct Layers {}
