//! Models as data: the graph, its importers, its description, layer names, the repository.
//!
//! An importer ([`import`]) reads a file into a `program` (nodes that read and define names, in-place writes included).
//! `functional` gives it values that are computed once; `load` checks it, folds constants and finds shapes. The result
//! is a [`graph::Graph`] with named [`layers`]. [`description`] is `model.toml`, and [`facts`] drafts one; [`Metadata`]
//! is the model's description for users. A [`repository`] is a directory of models. The built-in model,
//! [`import::identity`], has no file: its program is made in code.
//!
//! Files are untrusted. Importers bound what they unpack, `allowed_operators` bounds what may be called, `functional`
//! how far aliases are followed, and `guard` checks every call at load and the size of its results before it runs.
//! [`LoadLimits`] has the numbers.

mod allowed_operators;
mod assembly;
mod axes;
mod channels_last;
mod default_target;
pub mod description;
pub mod dimension;
pub(crate) mod dtype;
mod error;
pub mod facts;
mod functional;
pub mod graph;
mod guard;
#[cfg(test)]
mod hostile_tests;
pub mod import;
mod interpret;
mod last_activation;
mod layer_names;
pub mod layers;
mod layouts;
mod limits;
mod load;
mod loaded;
mod map_layout;
mod metadata;
pub mod node;
pub mod operation;
mod program;
mod rectifier;
pub mod repository;
mod scores;
pub mod stored;
mod unguided;

pub use description::Activation;
pub use error::{LayerError, ModelError};
pub use last_activation::{Final, logits_in};
pub use limits::LoadLimits;
pub use loaded::Model;
pub use map_layout::{LayoutProblem, MapLayout};
pub use metadata::{InputInfo, LabelError, LayerInfo, LayerValue, Metadata, OutputInfo};
pub use repository::{Entry, Repository};
pub use scores::Scores;
