//! Constants of a model that can leave memory and be read again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tch::{Kind, Tensor};

use super::ModelError;
use super::program::WeightSource;
use crate::torch::is_exclusive;

/// Constants of fewer bytes stay in memory.
const MIN_BYTES: usize = 64 << 10;

/// A tensor that does not depend on the input. With a source it can leave memory, and is read again on demand.
#[derive(Debug)]
pub struct Stored {
    size: Vec<i64>,
    kind: Kind,
    tensor: Mutex<Option<Tensor>>,
    source: Option<Arc<dyn WeightSource>>,
}

/// The identity of a constant within a model: constants with equal identities have equal values.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    memory: Memory,
    kind: Kind,
    size: Vec<i64>,
    stride: Vec<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Memory {
    Address(usize),
    /// The name of the weight's source.
    Source(String),
}

impl Stored {
    /// A constant that is in memory now. With a `source`, and at least [`MIN_BYTES`] bytes, it can leave memory.
    pub fn new(tensor: Tensor, source: Option<Arc<dyn WeightSource>>) -> Result<Self, ModelError> {
        let (size, kind) = (tensor.size(), tensor.f_kind()?);
        let mut stored = Stored { size, kind, tensor: Mutex::new(Some(tensor)), source };
        if stored.bytes() < MIN_BYTES {
            stored.source = None;
        }
        Ok(stored)
    }

    pub fn size(&self) -> &[i64] {
        &self.size
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn numel(&self) -> usize {
        self.size.iter().product::<i64>() as usize
    }

    /// Bytes of its elements.
    pub fn bytes(&self) -> usize {
        self.numel() * self.kind.elt_size_in_bytes()
    }

    /// The tensor, read from its source if it had left memory. It stays in memory until [`Stored::leave`].
    ///
    /// # Errors
    /// The tensor had left memory, and its source cannot be read any more.
    pub fn tensor(&self) -> Result<Tensor, ModelError> {
        let mut tensor = lock(&self.tensor);
        if let Some(tensor) = &*tensor {
            return Ok(tensor.shallow_clone());
        }
        let source =
            self.source.as_ref().ok_or_else(|| ModelError::malformed("a constant", "it is lost".to_owned()))?;
        Ok(tensor.insert(source.read()?).shallow_clone())
    }

    /// Frees the tensor, unless somebody else holds it or it has no source.
    pub fn leave(&self) {
        let mut tensor = lock(&self.tensor);
        if self.source.is_some() && tensor.as_ref().is_some_and(is_exclusive) {
            *tensor = None;
        }
    }

    #[cfg(test)]
    pub fn is_in_memory(&self) -> bool {
        lock(&self.tensor).is_some()
    }

    pub fn identity(&self) -> Identity {
        let (memory, stride) = match (&self.source, &*lock(&self.tensor)) {
            (Some(source), _) => (Memory::Source(source.name().to_owned()), source.stride().to_vec()),
            (None, Some(tensor)) => (Memory::Address(tensor.data_ptr() as usize), tensor.stride()),
            (None, None) => (Memory::Address(0), Vec::new()),
        };
        Identity { memory, kind: self.kind, size: self.size.clone(), stride }
    }
}

/// A panic under the lock leaves a whole value: the tensor is replaced in one step.
fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::{Read, Seek, SeekFrom, Write};
    use std::path::PathBuf;

    use super::*;
    use crate::model::LoadLimits;
    use crate::model::graph::Graph;

    /// A model in a file of its own, and its largest constant.
    fn model() -> (tempfile::TempDir, PathBuf, Arc<Stored>) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model.pt2");
        fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/models/efficientnet-lite0/1/model.pt2"), &file).unwrap();
        let graph = Graph::load(&file, &LoadLimits::default()).unwrap();
        let largest = graph.constants.values().max_by_key(|constant| constant.bytes()).unwrap();
        assert!(largest.is_in_memory());
        (folder, file, Arc::clone(largest))
    }

    #[test]
    fn what_has_left_is_read_again_though_its_file_was_replaced() {
        let (_folder, file, constant) = model();
        let (before, identity) = (constant.tensor().unwrap().copy(), constant.identity());
        for replace in [false, true] {
            constant.leave();
            assert!(!constant.is_in_memory());
            if replace {
                let other = file.with_extension("new");
                fs::write(&other, b"another model").unwrap();
                fs::rename(&other, &file).unwrap();
            }
            assert_eq!(constant.identity(), identity);
            let again = constant.tensor().unwrap();
            assert!(again.equal(&before));
            constant.leave();
            assert!(constant.is_in_memory(), "somebody holds it");
            assert_eq!(constant.tensor().unwrap().data_ptr(), again.data_ptr());
        }
        fs::remove_file(&file).unwrap();
        constant.leave();
        assert!(constant.tensor().unwrap().equal(&before));
    }

    #[test]
    fn a_file_that_was_written_into_is_found_out() {
        let (_folder, file, constant) = model();
        let bytes = constant.tensor().unwrap().f_contiguous().unwrap();
        let mut first = vec![0u8; 64];
        bytes
            .f_view_dtype(Kind::Uint8)
            .unwrap()
            .f_flatten(0, -1)
            .unwrap()
            .f_slice(0, 0, 64, 1)
            .unwrap()
            .copy_data_u8(&mut first, 64);
        drop(bytes);
        constant.leave();
        let mut content = Vec::new();
        File::open(&file).unwrap().read_to_end(&mut content).unwrap();
        let at =
            content.windows(64).position(|window| window == first).expect("the weights lie in the file as they are");
        let mut written = File::options().write(true).open(&file).unwrap();
        written.seek(SeekFrom::Start(at as u64)).unwrap();
        written.write_all(&[!first[0]]).unwrap();
        let error = constant.tensor().unwrap_err().to_string();
        assert!(error.contains("written into") && error.contains("checksum"), "{error}");
        written.set_len(1000).unwrap();
        assert!(constant.tensor().unwrap_err().to_string().contains("cannot be read again"));
    }

    #[test]
    fn what_is_small_or_lies_in_no_file_stays() {
        let tensor = || Tensor::zeros([1 << 20], (Kind::Float, tch::Device::Cpu));
        let of_no_file = Stored::new(tensor(), None).unwrap();
        let (_folder, _, constant) = model();
        let small = Stored::new(tensor().slice(0, 0, 9, 1), constant.source.clone()).unwrap();
        for stays in [of_no_file, small] {
            stays.leave();
            assert!(stays.is_in_memory() && stays.tensor().is_ok());
        }
    }
}
