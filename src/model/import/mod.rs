//! Importers: each turns one kind of model file into a [`Program`]. A new format is a folder here and a line in
//! [`IMPORTERS`].

pub mod identity;
pub mod onnx;
pub mod other_formats;
pub mod pt2;

use std::path::{Path, PathBuf};

use super::program::Program;
use super::{LoadLimits, ModelError, channels_last};

/// The height and width of the pictures that a model is used with, as far as its description says so. It stands in for
/// what a file leaves open.
pub type PictureSize = Option<[u32; 2]>;

/// Reads one kind of model file.
pub trait Importer: Sync {
    /// The name of the file in a version's directory; its extension is that of the format.
    fn file_name(&self) -> &'static str;

    /// Reads a file. Files are untrusted: what they may cost is bounded by `limits`. Where the file takes any size of a
    /// picture, `picture` is that of the example.
    ///
    /// # Errors
    /// What is wrong with the file, and what would help.
    fn import(&self, file: &Path, picture: PictureSize, limits: &LoadLimits) -> Result<Program, ModelError>;
}

/// The formats that are read. The first one also takes files of an unknown extension, and says what they are instead.
const IMPORTERS: [&dyn Importer; 2] = [&pt2::Pt2, &onnx::Onnx];

/// The model's file in a version's directory, if there is one.
pub fn model_file(directory: &Path) -> Option<PathBuf> {
    IMPORTERS.iter().map(|importer| directory.join(importer.file_name())).find(|file| file.is_file())
}

/// Whether a file's extension is that of a format that is read.
pub fn is_read(file: &Path) -> bool {
    IMPORTERS.iter().any(|importer| Path::new(importer.file_name()).extension() == file.extension())
}

/// The names that a model's file may have in a version's directory, for messages: `model.pt2 or model.onnx`.
pub fn file_names() -> String {
    IMPORTERS.map(Importer::file_name).join(" or ")
}

/// What a model consists of on disk.
#[derive(Debug)]
pub struct ModelFiles {
    /// The name that the model's file has in a version's directory.
    pub name: &'static str,
    /// The files beside it that hold its weights: the path that the file names each by, and where it is.
    pub weights: Vec<(PathBuf, PathBuf)>,
}

/// The files of a model.
///
/// # Errors
/// Those of [`Importer::import`].
pub fn files(file: &Path, limits: &LoadLimits) -> Result<ModelFiles, ModelError> {
    let importer = of(file);
    let program = importer.import(file, None, limits)?;
    Ok(ModelFiles { name: importer.file_name(), weights: program.files })
}

/// The importer of a file's extension.
fn of(file: &Path) -> &'static dyn Importer {
    let reads = |importer: &&&dyn Importer| Path::new(importer.file_name()).extension() == file.extension();
    *IMPORTERS.iter().find(reads).unwrap_or(&IMPORTERS[0])
}

/// Reads a model's file, by the importer of its extension. An input of [N, H, W, C] becomes one of [N, C, H, W].
///
/// # Errors
/// Those of [`Importer::import`].
pub fn import(file: &Path, picture: PictureSize, limits: &LoadLimits) -> Result<Program, ModelError> {
    let mut program = of(file).import(file, picture, limits)?;
    channels_last::turn(&mut program)?;
    Ok(program)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use tch::{Device, Kind, Tensor};

    use crate::model::axes::Axes;
    use crate::model::dimension::{Dimension, Sizes};
    use crate::model::graph::Graph;
    use crate::model::program::{
        ModuleCall, Program, ProgramArgument, ProgramInput, ProgramNode, ProgramOperation, WeightSource, Weights,
    };
    use crate::model::{LoadLimits, ModelError};
    use crate::torch::{Operator, Value};

    const FILTERS: i64 = 256;
    const WEIGHT: [i64; 4] = [FILTERS, 3, 5, 5];

    /// A weight that is made anew each time that it is read; reading fails while `is_lost`.
    #[derive(Debug, Default)]
    struct Made {
        reads: AtomicUsize,
        is_lost: AtomicBool,
    }

    impl WeightSource for Made {
        fn read(&self) -> Result<Tensor, ModelError> {
            self.reads.fetch_add(1, Ordering::Relaxed);
            if self.is_lost.load(Ordering::Relaxed) {
                return Err(ModelError::malformed("filters", "the shelf is empty"));
            }
            let count = WEIGHT.iter().product::<i64>();
            // Not a view, which would keep its base and so its memory.
            Ok(Tensor::f_arange(count, (Kind::Float, Device::Cpu))?.f_sin()?.f_view(WEIGHT)?.f_detach_copy()?)
        }

        fn name(&self) -> &str {
            "filters"
        }

        fn stride(&self) -> &[i64] {
            &[75, 25, 5, 1]
        }
    }

    struct InMemory(Arc<Made>);

    impl Weights for InMemory {
        fn tensor(&self, constant: &str) -> Result<Tensor, ModelError> {
            assert_eq!(constant, "filters");
            self.0.read()
        }

        fn source(&self, _: &str) -> Option<Arc<dyn WeightSource>> {
            Some(Arc::<Made>::clone(&self.0))
        }

        fn copied(&self) -> Result<Box<dyn Weights>, ModelError> {
            Ok(Box::new(InMemory(Arc::clone(&self.0))))
        }
    }

    /// A convolution, a rectifier in place, and the mean over both spatial axes.
    fn program(weights: &Arc<Made>) -> Program {
        let node = |name: &str, operator: (&str, &str), arguments, module: &str| ProgramNode {
            name: name.to_owned(),
            operation: ProgramOperation::Aten(Operator::find(operator.0, operator.1).unwrap()),
            arguments,
            outputs: vec![Some(name.to_owned())],
            calls: vec![ModuleCall { key: module.to_owned(), path: module.to_owned() }],
            no_grad: false,
        };
        let read = |name: &str| ProgramArgument::Use(name.to_owned());
        let ints = |values: &[i64]| ProgramArgument::Literal(Value::Ints(values.to_vec()));
        let literal = ProgramArgument::Literal;
        let convolution = vec![
            read("pixels"),
            read("filters"),
            literal(Value::None),
            ints(&[1, 1]),
            ints(&[0, 0]),
            ints(&[1, 1]),
            literal(Value::Int(1)),
        ];
        let mean = vec![read("rectified"), ints(&[2, 3]), literal(Value::Bool(false)), literal(Value::None)];
        let free = |variable, example| Dimension::Dynamic { example, sizes: Sizes::any(variable) };
        Program {
            nodes: vec![
                node("convolved", ("aten::conv2d", ""), convolution, "trunk.convolution"),
                node("rectified", ("aten::relu_", ""), vec![read("convolved")], "trunk.rectifier"),
                node("mean", ("aten::mean", "dim"), mean, "head"),
            ],
            constants: BTreeSet::from(["filters".to_owned()]),
            weights: Box::new(InMemory(Arc::clone(weights))),
            inputs: vec![ProgramInput {
                name: "pixels".to_owned(),
                kind: Kind::Float,
                shape: vec![free(0, 2), Dimension::Fixed(3), free(2, 9), free(3, 9)],
                channels_last: false,
            }],
            outputs: vec![("logits".to_owned(), Some("mean".to_owned()))],
            paths: ["trunk.convolution", "trunk.rectifier", "head"].map(str::to_owned).into(),
            files: Vec::new(),
            notices: Vec::new(),
            limits: LoadLimits::default(),
        }
    }

    #[test]
    fn a_program_of_any_importer_becomes_a_graph() {
        let graph = Graph::from_program(&program(&Arc::default())).unwrap();
        let score = graph.score(None).unwrap();
        assert_eq!(graph.value(score).shape.as_deref(), Some(&[2, FILTERS][..]));
        assert_eq!(graph.default_target(&Axes::of(&graph), score).unwrap(), graph.layer("trunk.rectifier").unwrap());
        assert_ne!(graph.layer("trunk.convolution").unwrap(), graph.layer("trunk.rectifier").unwrap());
        assert_eq!(graph.nodes.iter().filter(|node| node.rectifier.is_some()).count(), 1);
    }

    #[test]
    fn a_weight_leaves_memory_and_is_read_again_from_its_own_source() {
        let made = Arc::new(Made::default());
        let graph = Graph::from_program(&program(&made)).unwrap();
        let weight = graph.constants.values().next().unwrap();
        let before = weight.tensor().unwrap().copy();
        let reads = made.reads.load(Ordering::Relaxed);
        weight.leave();
        assert!(!weight.is_in_memory());
        assert!(weight.tensor().unwrap().equal(&before));
        assert_eq!(made.reads.load(Ordering::Relaxed), reads + 1);
        weight.leave();
        made.is_lost.store(true, Ordering::Relaxed);
        assert!(weight.tensor().unwrap_err().to_string().contains("the shelf is empty"));
        made.is_lost.store(false, Ordering::Relaxed);
        assert!(weight.tensor().unwrap().equal(&before), "a failure is not kept");
    }

    #[test]
    fn a_directory_has_a_models_file_only_under_an_importers_name() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("model.txt"), b"").unwrap();
        assert_eq!(super::model_file(folder.path()), None);
        let file = folder.path().join("model.pt2");
        std::fs::write(&file, b"").unwrap();
        assert_eq!(super::model_file(folder.path()), Some(file));
    }

    #[test]
    fn a_file_of_an_unknown_extension_is_told_apart_by_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("weights.bin");
        std::fs::write(&file, [0x80, 2, 3, 4]).unwrap();
        let error = super::import(&file, None, &LoadLimits::default()).err().unwrap().to_string();
        assert!(error.contains("pickle"), "{error}");
    }
}
