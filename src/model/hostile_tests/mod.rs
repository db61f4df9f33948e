//! Files that lie: each must give an error that says what is wrong, before it costs memory or time.
//!
//! A case starts from a small file of PyTorch's own and changes one thing.

mod graph;
mod onnx;
mod operators;
mod signature;
mod sizes;
mod weights;
mod zip_container;

use std::io::{Cursor, Read, Write};
use std::path::Path;

use serde_json::{Value as Json, json};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::graph::Graph;
use super::import::pt2::{self, archive::Archive};
use super::{LoadLimits, ModelError};

/// The convolutional model of every fixture directory: conv1, bn1, relu, conv2, act, pool, fc.
const PLAIN: &str = "2.11.0/A.pt2";

const GRAPH: &str = "models/model.json";
const WEIGHTS: &str = "data/weights/model_weights_config.json";

/// The entries of an archive, below its top folder, to be changed and zipped again with right checksums.
struct Forge(Vec<(String, Vec<u8>)>);

impl Forge {
    /// The entries of a fixture under `tests/fixtures/pt2`.
    fn fixture(path: &str) -> Self {
        // As PyTorch writes it: the archive begins where the file does.
        let whole = zip::read::Config { archive_offset: zip::read::ArchiveOffset::Known(0) };
        let mut zip = ZipArchive::with_config(whole, Cursor::new(fixture_bytes(path))).unwrap();
        let entries = (0..zip.len()).map(|index| {
            let mut entry = zip.by_index(index).unwrap();
            let name = entry.name().unwrap().split_once('/').unwrap().1.to_owned();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            (name, bytes)
        });
        Forge(entries.collect())
    }

    fn plain() -> Self {
        Self::fixture(PLAIN)
    }

    fn entry(&mut self, name: &str) -> &mut Vec<u8> {
        &mut self.0.iter_mut().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no entry {name}")).1
    }

    fn without(mut self, name: &str) -> Self {
        let before = self.0.len();
        self.0.retain(|(n, _)| n != name);
        assert_eq!(self.0.len() + 1, before, "{name}");
        self
    }

    fn with(mut self, name: &str, bytes: impl Into<Vec<u8>>) -> Self {
        self.0.push((name.to_owned(), bytes.into()));
        self
    }

    fn edit(mut self, name: &str, change: impl FnOnce(&mut Json)) -> Self {
        let entry = self.entry(name);
        let mut json = serde_json::from_slice(entry).unwrap();
        change(&mut json);
        *entry = serde_json::to_vec(&json).unwrap();
        self
    }

    /// Changes the graph's module.
    fn module(self, change: impl FnOnce(&mut Json)) -> Self {
        self.edit(GRAPH, |json| change(&mut json["graph_module"]))
    }

    /// Changes the graph's nodes.
    fn nodes(self, change: impl FnOnce(&mut Vec<Json>)) -> Self {
        self.module(|module| change(module["graph"]["nodes"].as_array_mut().unwrap()))
    }

    /// Puts a node that reads `conv2d` before the others that do, under the name `forged`.
    fn node(self, target: &str, inputs: Json) -> Self {
        self.nodes(|nodes| nodes.insert(1, node(target, inputs, "forged")))
    }

    fn zipped(&self, method: CompressionMethod) -> Vec<u8> {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        for (name, bytes) in &self.0 {
            let options = SimpleFileOptions::default().compression_method(method);
            zip.start_file(format!("A/{name}"), options).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap().into_inner()
    }

    fn load(&self) -> Result<Graph, ModelError> {
        load(self.zipped(CompressionMethod::Stored), &LoadLimits::default())
    }

    /// What loading says, which must be an error.
    fn error(&self) -> String {
        self.load().expect_err("the file was loaded").to_string()
    }

    /// Loading must fail, and say all of `words`.
    #[track_caller]
    fn is_refused(&self, words: &[&str]) {
        let error = self.error();
        assert!(words.iter().all(|word| error.contains(word)), "{words:?} are not all in: {error}");
    }
}

fn load(bytes: Vec<u8>, limits: &LoadLimits) -> Result<Graph, ModelError> {
    Graph::from_program(&pt2::read(Archive::read(Box::new(Cursor::new(bytes)), limits)?)?)
}

fn fixture_bytes(path: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pt2").join(path)).unwrap()
}

/// A node of one output. `inputs` is `{"name": argument, …}`; names that are numbers stand for a position.
fn node(target: &str, inputs: Json, output: &str) -> Json {
    let inputs: Vec<Json> = inputs
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, argument)| {
            let name = if name.parse::<usize>().is_ok() { "" } else { name };
            json!({"name": name, "arg": argument, "kind": 1})
        })
        .collect();
    json!({
        "target": format!("torch.ops.{target}"),
        "name": output,
        "inputs": inputs,
        "outputs": [{"as_tensor": {"name": output}}],
        "metadata": {},
    })
}

/// The argument that uses a tensor.
fn tensor(name: &str) -> Json {
    json!({"as_tensor": {"name": name}})
}

#[test]
fn a_file_that_is_only_zipped_again_loads() {
    for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
        let graph = load(Forge::plain().zipped(method), &LoadLimits::default()).unwrap();
        assert_eq!(graph.nodes.len(), 8);
    }
}
