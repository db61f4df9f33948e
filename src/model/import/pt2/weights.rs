//! The storages of a `.pt2`, and the tensors in them.
//!
//! A file in the archive is a whole storage. Tensors may share one (tied weights, slices of a buffer): sizes, strides
//! and offset select each tensor's part. Parts may overlap, with each other and with themselves (an expanded tensor has
//! strides of 0): that is sound, because every element of every part is checked to be inside the storage, and nothing
//! writes into a storage. A program that writes into a weight runs on a copy in which parts overlap in the same way.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Deserialize;
use tch::{Kind, Tensor};

use super::archive::Archive;
use crate::model::program::{WeightSource, Weights};
use crate::model::{ModelError, dtype};

/// The part of a storage that is a tensor.
#[derive(Debug, Clone)]
struct Placement {
    /// Index of its storage; none for an empty tensor.
    storage: Option<usize>,
    kind: Kind,
    size: Vec<i64>,
    stride: Vec<i64>,
    /// In elements.
    offset: i64,
}

impl Placement {
    /// The tensor in its storage's bytes.
    pub fn view(&self, bytes: &Tensor) -> Result<Tensor, ModelError> {
        let width = self.kind.elt_size_in_bytes() as i64;
        let whole = bytes.f_slice(0, 0, bytes.numel() as i64 / width * width, 1)?;
        let typed = if self.kind == Kind::Uint8 { whole } else { whole.f_view_dtype(self.kind)? };
        // Not a view: a view would keep its base alive.
        let mut tensor = Tensor::f_empty([0i64], (self.kind, tch::Device::Cpu))?;
        Ok(tensor.f_set_source_tensor_storage_offset_(&typed, self.offset, &self.size, &self.stride)?)
    }
}

/// The weights or the constants of a program.
pub struct Payload {
    /// `weights` or `constants`.
    part: &'static str,
    storages: Vec<Tensor>,
    /// The file name of each storage.
    files: Vec<String>,
    placements: BTreeMap<String, Result<Placement, String>>,
}

impl Payload {
    /// Reads every storage of a part (`weights` or `constants`) once.
    pub fn read(archive: &mut Archive, part: &'static str) -> Result<Self, ModelError> {
        let Config { config } = archive.payload_config(part)?.parse()?;
        let mut storages = Vec::new();
        let mut files: BTreeMap<String, usize> = BTreeMap::new();
        let mut placements = BTreeMap::new();
        for (name, entry) in config {
            if entry.use_pickle != Some(false) {
                return Err(ModelError::Format {
                    what: format!("{name} is stored as a pickle, which camlens never opens"),
                    advice: "turn tensor subclasses and custom objects into plain tensors before exporting".into(),
                });
            }
            let file = entry.path_name.ok_or_else(|| ModelError::malformed(&name, "no path_name"))?;
            let meta = entry.tensor_meta.ok_or_else(|| ModelError::malformed(&name, "no tensor_meta"))?;
            let storage = match files.get(&file) {
                Some(&index) => index,
                None => {
                    storages.push(archive.storage(part, &file)?);
                    files.insert(file, storages.len() - 1);
                    storages.len() - 1
                }
            };
            let bytes = storages[storage].numel() as u64;
            let placement = match placement(&name, &meta, storage, bytes) {
                Ok(placement) => Ok(placement),
                // An unknown dtype matters only when the tensor is used.
                Err(ModelError::Refused { what, advice }) => Err(format!("{what}; {advice}")),
                Err(error) => return Err(error),
            };
            placements.insert(name, placement);
        }
        let mut in_order: Vec<(String, usize)> = files.into_iter().collect();
        in_order.sort_by_key(|(_, index)| *index);
        let files = in_order.into_iter().map(|(file, _)| file).collect();
        Ok(Payload { part, storages, files, placements })
    }

    /// Where the tensor of that name can be read again: it must fill its storage. Of tensors that share a storage, each
    /// would have to read it whole.
    fn source(&self, name: &str, archive: &Arc<Mutex<Archive>>) -> Option<Arc<dyn WeightSource>> {
        let placement = self.placements.get(name)?.as_ref().ok()?.clone();
        let storage = placement.storage?;
        let bytes = placement.size.iter().product::<i64>() * placement.kind.elt_size_in_bytes() as i64;
        if bytes as usize != self.storages.get(storage)?.numel() || placement.stride.contains(&0) {
            return None;
        }
        let file = self.files.get(storage)?;
        Some(Arc::new(StoredWeight {
            archive: Arc::clone(archive),
            part: self.part,
            file: file.clone(),
            name: format!("{}/{file}", self.part),
            placement,
        }))
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Result<Tensor, ModelError> {
        self.view(name, &self.storages)
    }

    /// A copy in memory of its own, in which tied tensors are still tied.
    pub fn copy(&self) -> Result<Self, ModelError> {
        let storages = self.storages.iter().map(Tensor::f_detach_copy).collect::<Result<_, tch::TchError>>()?;
        Ok(Payload { part: self.part, storages, files: self.files.clone(), placements: self.placements.clone() })
    }

    fn view(&self, name: &str, storages: &[Tensor]) -> Result<Tensor, ModelError> {
        let placement = self
            .placements
            .get(name)
            .ok_or_else(|| ModelError::malformed(name, "the graph uses it, and the file does not hold it"))?;
        let placement = placement.as_ref().map_err(|problem| ModelError::refused(name, problem.clone()))?;
        let Some(storage) = placement.storage else {
            return Ok(Tensor::f_empty_strided(
                &placement.size,
                &placement.stride,
                (placement.kind, tch::Device::Cpu),
            )?);
        };
        placement.view(&storages[storage])
    }
}

/// Which part of the file a placeholder's tensor is in, and its name there.
#[derive(Debug, Clone)]
pub enum Constant {
    Weight(String),
    Constant(String),
}

/// The tensors of a program read from a `.pt2`.
pub struct FileWeights {
    /// Placeholder → its tensor's name in the file.
    pub constants: BTreeMap<String, Constant>,
    pub weights: Payload,
    pub tensors: Payload,
    /// The file, for as long as weights may be read again.
    pub archive: Arc<Mutex<Archive>>,
}

impl FileWeights {
    fn find(&self, constant: &str) -> Option<(&Payload, &str)> {
        Some(match self.constants.get(constant)? {
            Constant::Weight(name) => (&self.weights, name),
            Constant::Constant(name) => (&self.tensors, name),
        })
    }
}

impl Weights for FileWeights {
    fn tensor(&self, constant: &str) -> Result<Tensor, ModelError> {
        let (payload, name) = self
            .find(constant)
            .ok_or_else(|| ModelError::malformed("graph", format!("{constant} is no constant of the file")))?;
        payload.tensor(name)
    }

    fn source(&self, constant: &str) -> Option<Arc<dyn WeightSource>> {
        let (payload, name) = self.find(constant)?;
        payload.source(name, &self.archive)
    }

    fn copied(&self) -> Result<Box<dyn Weights>, ModelError> {
        Ok(Box::new(FileWeights {
            constants: self.constants.clone(),
            weights: self.weights.copy()?,
            tensors: self.tensors.copy()?,
            archive: Arc::clone(&self.archive),
        }))
    }
}

/// A tensor that fills a storage of the file. The file stays open: it may be replaced or removed meanwhile.
struct StoredWeight {
    archive: Arc<Mutex<Archive>>,
    /// `weights` or `constants`.
    part: &'static str,
    file: String,
    name: String,
    placement: Placement,
}

impl WeightSource for StoredWeight {
    fn read(&self) -> Result<Tensor, ModelError> {
        // A panic while it was locked leaves nothing behind: an archive finds each entry anew.
        let mut archive = self.archive.lock().unwrap_or_else(PoisonError::into_inner);
        self.placement.view(&archive.storage_again(self.part, &self.file)?)
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn stride(&self) -> &[i64] {
        &self.placement.stride
    }
}

impl fmt::Debug for StoredWeight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StoredWeight").field(&self.name).field(&self.placement).finish()
    }
}

/// `<name>_weights_config.json`.
#[derive(Deserialize)]
struct Config {
    config: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    path_name: Option<String>,
    use_pickle: Option<bool>,
    tensor_meta: Option<Meta>,
}

#[derive(Deserialize)]
struct Meta {
    dtype: Option<i64>,
    sizes: Option<Vec<Number>>,
    strides: Option<Vec<Number>>,
    storage_offset: Option<Number>,
}

/// A number that was fixed at export; any other has no `as_int`.
#[derive(Deserialize)]
struct Number {
    as_int: Option<i64>,
}

/// Most axes of a tensor.
const MAX_AXES: usize = 64;
/// Most elements of a tensor with more elements than its storage (strides of 0): it may be copied in full.
const MAX_EXPANDED: i64 = 1 << 26;

/// Reads and checks the placement of a tensor: every element must be inside the storage of `bytes` bytes.
fn placement(name: &str, meta: &Meta, storage: usize, bytes: u64) -> Result<Placement, ModelError> {
    let bad = |problem: &str| ModelError::malformed(name, problem.to_owned());
    let natural = |number: &Number| number.as_int.filter(|&v| v >= 0);
    let ints = |key: &str, numbers: &Option<Vec<Number>>| -> Result<Vec<i64>, ModelError> {
        let numbers = numbers.as_ref().ok_or_else(|| bad(&format!("no {key}")))?;
        if numbers.len() > MAX_AXES {
            return Err(bad(&format!("{} {key}, and {MAX_AXES} are allowed", numbers.len())));
        }
        let all: Option<Vec<i64>> = numbers.iter().map(natural).collect();
        all.ok_or_else(|| bad(&format!("{key} is not a list of sizes")))
    };
    let (size, stride) = (ints("sizes", &meta.sizes)?, ints("strides", &meta.strides)?);
    if size.len() != stride.len() {
        return Err(bad("sizes and strides differ in number"));
    }
    let offset = meta.storage_offset.as_ref().and_then(natural).ok_or_else(|| bad("no storage_offset"))?;
    let kind = dtype::kind(meta.dtype.ok_or_else(|| bad("no dtype"))?)?;
    let elements = size.iter().try_fold(1i64, |n, &s| n.checked_mul(s)).ok_or_else(|| bad("its size overflows"))?;
    if elements == 0 {
        // No element is read, whatever the strides are.
        let stride = vec![1; size.len()];
        return Ok(Placement { storage: None, kind, size, stride, offset: 0 });
    }
    let last = size
        .iter()
        .zip(&stride)
        .try_fold(offset, |at, (&s, &step)| at.checked_add((s - 1).checked_mul(step)?))
        .ok_or_else(|| bad("its strides overflow"))?;
    let available = bytes / kind.elt_size_in_bytes() as u64;
    if last as u64 >= available {
        return Err(bad(&format!("it reaches element {last} of a storage that has {available}")));
    }
    if elements as u64 > available && elements > MAX_EXPANDED {
        return Err(bad(&format!("{elements} elements lie in a storage of {available}; {MAX_EXPANDED} are allowed")));
    }
    Ok(Placement { storage: Some(storage), kind, size, stride, offset })
}
