//! Models as data: the graph, its importers, its description, layer names, the repository.

pub mod description;
pub mod graph;
pub mod layers;
pub mod operation;
