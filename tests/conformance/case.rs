//! `case.json` and `arrays.npz` (`tests/fixtures/conformance/README.md`), and how maps are compared.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tch::{Kind, Tensor};

use crate::npy;

#[derive(Clone, Deserialize)]
pub struct Case {
    pub name: String,
    pub refused: Option<String>,
    #[serde(default)]
    dtype: Option<String>,
    #[serde(default)]
    pub classes: u32,
    #[serde(default)]
    pub targets: Vec<u32>,
    #[serde(default)]
    pub rectifiers: u32,
    pub default_target: Option<String>,
    pub layers: Vec<Layer>,
    #[serde(default)]
    pub ambiguous_layers: Vec<String>,
    pub no_positive_evidence: Option<Vec<bool>>,
    pub scaled: Option<Scaled>,
    pub randomised: Option<Twin>,
    #[serde(skip)]
    pub references: Vec<Reference>,
}

#[derive(Clone, Deserialize)]
pub struct Layer {
    pub name: String,
    pub directory: String,
    pub reverses: u32,
}

#[derive(Clone, Deserialize)]
pub struct Scaled {
    pub model: String,
    pub factor: f64,
}

#[derive(Clone, Deserialize)]
pub struct Twin {
    pub model: String,
}

impl Case {
    /// A float16 or bfloat16 model.
    pub fn is_reduced(&self) -> bool {
        matches!(self.dtype.as_deref(), Some("float16" | "bfloat16"))
    }
}

/// The `arrays.npz` of one input size. An array is read when it is requested.
#[derive(Clone)]
pub struct Reference(PathBuf);

impl Reference {
    pub fn array(&self, name: &str) -> Tensor {
        self.find(name).unwrap_or_else(|| panic!("{} has no {name}", self.0.display()))
    }

    pub fn find(&self, name: &str) -> Option<Tensor> {
        if name.ends_with("64") { self.read::<f64>(name) } else { self.read::<f32>(name) }
    }

    fn read<T: npy::Element + tch::kind::Element>(&self, name: &str) -> Option<Tensor> {
        let npy::Array { shape, values } = npy::find::<T>(&self.0, name)?;
        let shape: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
        Some(Tensor::from_slice(&values).reshape(shape))
    }
}

/// Every case under a root, by name.
pub fn all(root: &Path) -> Vec<Case> {
    let mut names: Vec<_> = fs::read_dir(root)
        .unwrap_or_else(|error| panic!("{}: {error}", root.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("reference/case.json").exists())
        .collect();
    names.sort();
    names
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(path.join("reference/case.json")).unwrap();
            let mut case: Case =
                serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let mut directories: Vec<_> = fs::read_dir(&path)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .filter(|p| p.file_name().unwrap().to_string_lossy().starts_with("reference"))
                .map(|p| p.join("arrays.npz"))
                .collect();
            directories.sort();
            case.references = directories.into_iter().map(Reference).collect();
            case
        })
        .collect()
}

fn double(tensor: &Tensor) -> Tensor {
    tensor.to_kind(Kind::Double).flatten(0, -1)
}

/// `‖a − b‖ / ‖b‖`; the plain norm when `b` is zero.
pub fn relative_l2(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (double(a), double(b));
    let size = b.norm().double_value(&[]);
    let difference = (a - b).norm().double_value(&[]);
    if size > 0.0 { difference / size } else { difference }
}

/// `max|a − b| / max|b|`.
pub fn largest_relative_to_largest(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (double(a), double(b));
    let size = b.abs().max().double_value(&[]);
    let difference = (a - b).abs().max().double_value(&[]);
    if size > 0.0 { difference / size } else { difference }
}

pub fn cosine(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (double(a), double(b));
    let norms = a.norm().double_value(&[]) * b.norm().double_value(&[]);
    a.dot(&b).double_value(&[]) / norms
}

/// Spearman's rank correlation; ties are ordered arbitrarily.
pub fn spearman(a: &Tensor, b: &Tensor) -> f64 {
    let rank = |t: &Tensor| {
        let ranks = double(t).argsort(0, false).argsort(0, false).to_kind(Kind::Double);
        let mean = ranks.mean(Kind::Double);
        ranks - mean
    };
    cosine(&rank(a), &rank(b))
}
