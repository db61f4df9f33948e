//! The importer of `.pt2`: reads an exported program from its JSON and checks it before anything runs.
//!
//! A file is untrusted. `document` reads what is needed and skips the rest; `signature` and `nodes` turn it into a
//! [`Program`]. Every operator is one of `allowed_operators`, and `names` has checked that every value is defined once,
//! and before it is read.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};

use document::{Document, Edition, GraphModule};
use names::Definitions;
use nodes::Reader;

use self::archive::Archive;
use self::weights::{FileWeights, Payload};
use super::{Importer, PictureSize};
use crate::model::program::Program;
use crate::model::{LoadLimits, ModelError};

/// Exported programs of PyTorch, `.pt2`.
pub struct Pt2;

impl Importer for Pt2 {
    fn file_name(&self) -> &'static str {
        "model.pt2"
    }

    fn import(&self, file: &Path, _: PictureSize, limits: &LoadLimits) -> Result<Program, ModelError> {
        read(Archive::open(file, limits)?)
    }
}

/// Reads the program that an archive holds.
pub fn read(mut archive: Archive) -> Result<Program, ModelError> {
    let text = archive.graph()?;
    check_edition(&text.parse()?)?;
    let Document { graph_module, range_constraints } = text.parse()?;
    let GraphModule { graph, signature, module_call_graph } = graph_module;
    drop(text);
    let paths: BTreeSet<String> = module_call_graph.iter().filter_map(|call| call.fqn.clone()).collect();
    let mut definitions = Definitions::default();
    let (constants, inputs) =
        signature::inputs(&signature, &graph.tensor_values, &range_constraints, &mut definitions)?;
    let outputs = signature::outputs(&signature, &module_call_graph)?;
    let limits = archive.limits().clone();
    let dependent = inputs.iter().map(|input| input.name.clone()).collect();
    let mut reader = Reader { paths: &paths, definitions, max_nodes: limits.max_nodes, nodes: Vec::new(), dependent };
    reader.program(graph)?;
    let Reader { nodes, definitions, .. } = reader;
    for name in outputs.iter().filter_map(|(_, name)| name.as_ref()) {
        definitions.require(name, "the signature")?;
    }
    let weights = Payload::read(&mut archive, "weights")?;
    let tensors = Payload::read(&mut archive, "constants")?;
    Ok(Program {
        nodes,
        constants: constants.keys().cloned().collect(),
        weights: Box::new(FileWeights { constants, weights, tensors, archive: Arc::new(Mutex::new(archive)) }),
        inputs,
        outputs,
        paths,
        files: Vec::new(),
        notices: Vec::new(),
        limits,
    })
}

fn check_edition(edition: &Edition) -> Result<(), ModelError> {
    let version = &edition.schema_version;
    if version.major != 8 {
        return Err(ModelError::Format {
            what: format!("the file has schema {}.{}, and camlens reads schema 8", version.major, version.minor),
            advice: "export the model again with PyTorch 2.9 to 2.15".into(),
        });
    }
    if edition.verifiers != ["TRAINING"] {
        return Err(ModelError::refused(
            format!("the graph was decomposed (dialect {}), which dissolves rectifiers", edition.verifiers.join(", ")),
            "save the program that torch.export.export returned, without run_decompositions()",
        ));
    }
    Ok(())
}
pub mod archive;
pub mod document;
pub mod names;
pub mod nodes;
pub mod signature;
mod sizes;
pub mod tagged;
pub mod weights;
