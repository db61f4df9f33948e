//! Bounds on what loading a model may cost.

/// What loading a model may cost at most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadLimits {
    /// All weights and constants together.
    pub max_weight_bytes: u64,
    /// The graph's JSON.
    pub max_graph_bytes: u64,
    pub max_nodes: u64,
    /// All values of one run at load, with the size that the model was exported with.
    pub max_value_bytes: u64,
}

impl Default for LoadLimits {
    fn default() -> Self {
        LoadLimits {
            max_weight_bytes: 8 << 30,
            max_graph_bytes: 256 << 20,
            max_nodes: 200_000,
            max_value_bytes: 8 << 30,
        }
    }
}
