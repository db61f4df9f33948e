//! The built-in model `identity`: no network, so that only the cost around the model remains.
//!
//! Its program has two nodes: the pixels are averaged over a grid of 7 × 7 cells (the layer `pooled`, as large as the
//! last map of a usual network), and the cells over the grid. With `x` the preprocessed pixels, 0 to 1: `pooled[c, i,
//! j]` is the mean of colour `c` over cell `(i, j)`, and `y[c]` the mean of `pooled[c]`: how red, how green and how
//! blue the picture is. There is no rectifier, so the guided gradient is the exact one. Preprocessing is that of the
//! usual ImageNet networks; a ready tensor may have any height and width.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tch::Kind;

use crate::model::description::{Description, Loaded, OutputDescription, Preprocessing, Resize};
use crate::model::dimension::{Dimension, Sizes};
use crate::model::program::{
    ModuleCall, NoWeights, Program, ProgramArgument, ProgramInput, ProgramNode, ProgramOperation,
};
use crate::model::{LoadLimits, ModelError};
use crate::torch::{Operator, Value};

/// The model's name as a path of models. A directory of that name is `./builtin:identity`.
pub const PLACE: &str = "builtin:identity";
/// The model's name.
pub const NAME: &str = "identity";
/// The layer of 7 × 7 means.
pub const LAYER: &str = "pooled";

/// The text that the digest is made of, in place of a file. It changes whenever the model does.
const DEFINITION: &str = "camlens identity 1: mean over [2, 3] of adaptive_avg_pool2d to [7, 7]";
/// Cells of the grid, in each direction.
const GRID: i64 = 7;
/// Height and width of the preprocessed image.
const SIDE: u32 = 224;
/// The shorter side after resizing, before the crop.
const SHORTER_SIDE: u32 = 256;

/// Whether `path` names a built-in model rather than a path on disk.
pub fn is_builtin(path: &Path) -> bool {
    path.to_str().is_some_and(|text| text.starts_with("builtin:"))
}

/// The path of the only built-in model.
///
/// # Errors
/// When `path` names another.
pub fn place(path: &Path) -> Result<PathBuf, ModelError> {
    if path == Path::new(PLACE) {
        return Ok(path.to_owned());
    }
    let problem = format!("there is no such built-in model; there is {PLACE}");
    Err(ModelError::Repository { path: path.to_owned(), problem })
}

/// The model's digest.
pub(in crate::model) fn digest() -> String {
    Sha256::digest(DEFINITION).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Its description, in place of a `model.toml`.
pub(in crate::model) fn description() -> Loaded {
    let labels: Vec<String> = ["red", "green", "blue"].map(str::to_owned).into();
    let description = Description {
        summary: "No network: how red, green and blue a picture is. For measuring what is around a model".to_owned(),
        input: Preprocessing {
            resize: Some(Resize::Shorter(SHORTER_SIDE)),
            crop: Some([SIDE, SIDE]),
            ..Preprocessing::default()
        },
        output: OutputDescription { labels: labels.clone(), ..OutputDescription::default() },
        ..Description::default()
    };
    Loaded { path: PLACE.into(), description, labels }
}

/// The program.
pub(in crate::model) fn program(limits: &LoadLimits) -> Result<Program, ModelError> {
    let node = |name: &str, operator, arguments, path: Option<&str>| ProgramNode {
        name: name.to_owned(),
        operation: ProgramOperation::Aten(operator),
        arguments,
        outputs: vec![Some(name.to_owned())],
        calls: path.map(|path| ModuleCall { key: path.to_owned(), path: path.to_owned() }).into_iter().collect(),
        no_grad: false,
    };
    let read = |name: &str| ProgramArgument::Use(name.to_owned());
    let pooled = node(
        "adaptive_avg_pool2d",
        Operator::find("aten::adaptive_avg_pool2d", "")?,
        vec![read("pixels"), ProgramArgument::Literal(Value::Ints(vec![GRID, GRID]))],
        Some(LAYER),
    );
    let logits = node(
        "mean",
        Operator::find("aten::mean", "dim")?,
        vec![
            read("adaptive_avg_pool2d"),
            ProgramArgument::Literal(Value::Ints(vec![2, 3])),
            ProgramArgument::Literal(Value::Bool(false)),
            ProgramArgument::Literal(Value::None),
        ],
        None,
    );
    let free = |variable, example| Dimension::Dynamic { example, sizes: Sizes::any(variable) };
    let shape = vec![free(0, 2), Dimension::Fixed(3), free(2, SIDE.into()), free(3, SIDE.into())];
    Ok(Program {
        nodes: vec![pooled, logits],
        constants: BTreeSet::new(),
        weights: Box::new(NoWeights),
        inputs: vec![ProgramInput { name: "pixels".to_owned(), kind: Kind::Float, shape, channels_last: false }],
        outputs: vec![("logits".to_owned(), Some("mean".to_owned()))],
        paths: BTreeSet::from([LAYER.to_owned()]),
        files: Vec::new(),
        notices: Vec::new(),
        limits: limits.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Model, Repository};

    #[test]
    fn identity_is_a_model_like_any_other_and_says_what_it_is() {
        let repository = Repository::open(Path::new(PLACE)).expect("it is built in");
        let [entry] = repository.entries() else { panic!("one model") };
        assert_eq!((entry.name.as_str(), entry.newest()), (NAME, (1, Path::new(PLACE))));
        let model = Model::load(NAME, 1, Path::new(PLACE), &LoadLimits::default()).expect("it loads");
        let metadata = &model.metadata;
        assert_eq!((metadata.class_count(), metadata.labels.join(" ")), (Some(3), "red green blue".to_owned()));
        assert_eq!((metadata.rectifiers, metadata.smooth_activations, metadata.parameter_count), (0, 0, 0));
        assert_eq!(metadata.default_target_layers, [LAYER]);
        assert_eq!(metadata.layer_value(LAYER).expect("a layer").shape, [2, 3, GRID, GRID]);
        assert_eq!(metadata.max_rows, None, "rows run together");
        assert_eq!(metadata.digest.len(), 64);
    }

    #[test]
    fn another_built_in_model_is_refused_with_the_one_there_is() {
        let error = Repository::open(Path::new("builtin:resnet")).expect_err("there is none").to_string();
        assert_eq!(error, "builtin:resnet: there is no such built-in model; there is builtin:identity");
    }
}
