//! Target for `.onnx` files: the input as it is.
//!
//! The outline, the lowering and the run at load see whatever the bytes say. A file that loads has a graph whose nodes
//! have run.

use std::fs;
use std::sync::LazyLock;

use camlens::model::{LoadLimits, Model};
use tempfile::TempDir;

/// Limits that keep one input short.
const LIMITS: LoadLimits =
    LoadLimits { max_weight_bytes: 16 << 20, max_graph_bytes: 1 << 20, max_nodes: 2000, max_value_bytes: 64 << 20 };

pub fn run(data: &[u8]) {
    static FOLDER: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a folder for the file"));
    let file = FOLDER.path().join("model.onnx");
    fs::write(&file, data).expect("the file can be written");
    match Model::load("model", 1, &file, &LIMITS) {
        Ok(model) => assert!(!model.graph.nodes.is_empty() || !model.graph.outputs.is_empty()),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
