//! Models as data: the graph, its importers, its description, layer names, the repository.
//!
//! A `.pt2` goes through `archive` (the zip), `weights` and `pt2` (names and in-place writes, as exported), `functional`
//! (each value computed once), `load` (checks, folding, shapes) and is then a [`graph::Graph`] with [`layers`] that have
//! names. What the file cannot say is in [`description`] (`model.toml`); what is told to users in [`Metadata`].
//! [`identity`] is a model without a file: its program is made in code and takes the same way from `functional` on.
//!
//! Files are untrusted. `archive` bounds what is unpacked, `pt2` which operators may be named and what may be read,
//! `functional` how far aliases are followed; and every call at load passes `guard`, which bounds its results by
//! `footprint` before it runs. [`LoadLimits`] has the numbers.

mod allowed_operators;
mod assembly;
mod default_target;
pub mod description;
pub(crate) mod dtype;
mod error;
mod functional;
pub mod graph;
mod guard;
#[cfg(test)]
mod hostile_tests;
pub mod import;
mod interpret;
mod layer_names;
pub mod layers;
mod limits;
mod load;
mod loaded;
mod metadata;
pub mod node;
pub mod operation;
mod program;
mod rectifier;
mod repository;
pub mod stored;

pub use error::{LayerError, ModelError};
pub use limits::LoadLimits;
pub use loaded::Model;
pub use metadata::{InputInfo, LabelError, LayerInfo, Metadata, OutputInfo};
pub use repository::{Entry, Repository};
