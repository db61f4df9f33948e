//! The tensors of a file: in it, beside it, or in the fields of a message.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, OnceLock};

use tch::{Device, Kind, Tensor};

use super::message::TensorProto;
use crate::model::program::{WeightSource, Weights};
use crate::model::{LoadLimits, ModelError};
use crate::torch;

/// Most files beside the model's own.
const MAX_FILES: usize = 512;
/// Most axes of a tensor.
const MAX_AXES: usize = 64;

/// ONNX's number of bfloat16, the only dtype whose elements `int32_data` holds as bits besides float16.
const BFLOAT16: i32 = 16;
const FLOAT16: i32 = 10;

/// How the elements of a dtype of ONNX lie in memory, and the dtype that they become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dtype {
    /// The dtype in which the bytes are read.
    stored: Kind,
    /// The dtype that the model computes with.
    pub kind: Kind,
}

/// The dtype with this number (`TensorProto.DataType`).
///
/// # Errors
/// A dtype that no computation of a network is made in.
pub fn dtype(number: i32) -> Result<Dtype, ModelError> {
    let same = |kind| Dtype { stored: kind, kind };
    Ok(match number {
        1 => same(Kind::Float),
        2 => same(Kind::Uint8),
        3 => same(Kind::Int8),
        // libtorch computes with no unsigned integers but bytes: the next wider signed ones hold the same numbers.
        4 => Dtype { stored: Kind::Int16, kind: Kind::Int },
        5 => same(Kind::Int16),
        6 => same(Kind::Int),
        7 | 13 => same(Kind::Int64),
        9 => Dtype { stored: Kind::Uint8, kind: Kind::Bool },
        FLOAT16 => same(Kind::Half),
        11 => same(Kind::Double),
        12 => Dtype { stored: Kind::Int, kind: Kind::Int64 },
        BFLOAT16 => same(Kind::BFloat16),
        other => {
            let name = match other {
                8 => "strings",
                14 | 15 => "complex numbers",
                17..=20 | 23 | 24 => "8-bit floats",
                21 | 22 | 25 | 26 => "packed numbers of 4 or 2 bits",
                _ => "an unknown dtype",
            };
            return Err(ModelError::refused(
                format!("the model uses a tensor of {name} (dtype {other} of ONNX)"),
                "export it with tensors of float32, float16, bfloat16 or integers",
            ));
        }
    })
}

/// The elements of a tensor's bytes, in the dtype that the model computes with.
fn typed(bytes: &Tensor, number: i32, size: &[i64]) -> Result<Tensor, ModelError> {
    let Dtype { stored, kind } = dtype(number)?;
    let tensor = match stored {
        Kind::Uint8 => bytes.f_view(size)?,
        // A view, but one that owns its memory: nothing keeps `bytes`.
        _ => {
            let mut tensor = Tensor::f_empty([0i64], (stored, Device::Cpu))?;
            let stride = strides(size);
            tensor.f_set_source_tensor_storage_offset_(&bytes.f_view_dtype(stored)?, 0, size, &stride)?
        }
    };
    Ok(match number {
        4 => tensor.f_to_kind(kind)?.f_bitwise_and(0xFFFF)?,
        9 => tensor.f_ne(0)?,
        12 => tensor.f_to_kind(kind)?.f_bitwise_and(0xFFFF_FFFF)?,
        _ => tensor,
    })
}

/// The strides of a contiguous tensor.
fn strides(size: &[i64]) -> Vec<i64> {
    let mut stride = vec![1; size.len()];
    for axis in (1..size.len()).rev() {
        stride[axis - 1] = stride[axis] * size[axis].max(1);
    }
    stride
}

/// A tensor's size, and its number of elements.
fn size_of(tensor: &TensorProto) -> Result<(Vec<i64>, u64), ModelError> {
    let name = tensor.name();
    let bad = |problem: String| ModelError::malformed(name, problem);
    if tensor.dims.len() > MAX_AXES {
        return Err(bad(format!("{} axes, and {MAX_AXES} are allowed", tensor.dims.len())));
    }
    let count = tensor
        .dims
        .iter()
        .try_fold(1u64, |count, &size| count.checked_mul(u64::try_from(size).ok()?))
        .filter(|&count| count <= i64::MAX as u64 / 16)
        .ok_or_else(|| bad(format!("its size {:?} is negative or overflows", tensor.dims)))?;
    Ok((tensor.dims.clone(), count))
}

/// The tensor of a message that holds its own data, as an attribute does.
///
/// # Errors
/// The data does not fit the size; the data lies elsewhere.
pub fn inline(tensor: &TensorProto) -> Result<Tensor, ModelError> {
    let name = if tensor.name().is_empty() { "a tensor of a node" } else { tensor.name() };
    let bad = |problem: String| ModelError::malformed(name, problem);
    if tensor.data_location() == 1 {
        return Err(bad("only the main graph's initializers may lie in another file".to_owned()));
    }
    let (size, count) = size_of(tensor)?;
    let number = tensor.data_type();
    let Dtype { stored, kind } = dtype(number)?;
    let width = stored.elt_size_in_bytes() as u64;
    if let Some(raw) = &tensor.raw_data {
        if raw.len() as u64 != count * width {
            return Err(bad(format!("{} bytes for {size:?} elements of {width} bytes", raw.len())));
        }
        let bytes = torch::byte_tensor(raw.len(), |bytes| {
            bytes.copy_from_slice(raw);
            Ok::<_, tch::TchError>(())
        })?;
        return typed(&bytes, number, &size);
    }
    let flat = match number {
        1 => Tensor::f_from_slice(&tensor.float_data)?,
        11 => Tensor::f_from_slice(&tensor.double_data)?,
        7 => Tensor::f_from_slice(&tensor.int64_data)?,
        12 | 13 => {
            let all: Vec<i64> = tensor.uint64_data.iter().map(|&v| v as i64).collect();
            Tensor::f_from_slice(&all)?
        }
        // The bits of the number, in the low half.
        FLOAT16 | BFLOAT16 => {
            let bits: Vec<u8> = tensor.int32_data.iter().flat_map(|&v| (v as u16).to_le_bytes()).collect();
            Tensor::f_from_slice(&bits)?.f_view_dtype(kind)?
        }
        9 => Tensor::f_from_slice(&tensor.int32_data)?.f_ne(0)?,
        _ => Tensor::f_from_slice(&tensor.int32_data)?.f_to_kind(kind)?,
    };
    if flat.numel() as u64 != count {
        return Err(bad(format!("{} elements for a size of {size:?}", flat.numel())));
    }
    Ok(flat.f_view(size.as_slice())?)
}

/// A file that holds weights.
#[derive(Debug)]
struct Opened {
    file: File,
    length: u64,
    /// For messages, and to tell one file's bytes from another's.
    name: String,
}

/// Where a tensor's bytes lie.
#[derive(Debug, Clone)]
struct Place {
    file: Arc<Opened>,
    offset: u64,
    length: u64,
}

/// The files of a model: its own, and those beside it that hold weights.
pub struct Files {
    own: Arc<Opened>,
    own_path: PathBuf,
    beside: BTreeMap<String, (Arc<Opened>, PathBuf)>,
    /// The directories that a file beside the model may lie in.
    roots: Vec<PathBuf>,
    /// What is left of [`LoadLimits::max_weight_bytes`].
    bytes_left: u64,
    limit: u64,
}

impl Files {
    /// Opens a model's own file.
    pub fn open(path: &Path, limits: &LoadLimits) -> Result<Self, ModelError> {
        let read = |source| ModelError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(read)?;
        let length = file.metadata().map_err(read)?.len();
        let own_path = fs::canonicalize(path).map_err(read)?;
        // As it is named, and as it is found behind symbolic links, which Kubernetes and git-sync swap.
        let named = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut roots = vec![fs::canonicalize(named).map_err(read)?];
        roots.extend(own_path.parent().map(Path::to_owned));
        let name = path.file_name().map(OsStr::to_string_lossy).unwrap_or_default().into_owned();
        let own = Arc::new(Opened { file, length, name });
        let limit = limits.max_weight_bytes;
        Ok(Files { own, own_path, beside: BTreeMap::new(), roots, bytes_left: limit, limit })
    }

    pub fn own(&self) -> &File {
        &self.own.file
    }

    /// The files beside the model's own that were read: the path that the model names each by, and where it is.
    pub fn others(&self) -> Vec<(PathBuf, PathBuf)> {
        self.beside.iter().map(|(location, (_, path))| (location.into(), path.clone())).collect()
    }

    /// The tensor of an initializer, with where it can be read again. `place` is where its raw data lies in the model's
    /// own file.
    ///
    /// # Errors
    /// Its data does not fit its size, or lies where it may not be read.
    pub fn initializer(
        &mut self,
        tensor: &TensorProto,
        place: Option<(u64, u64)>,
    ) -> Result<(Tensor, Option<Arc<dyn WeightSource>>), ModelError> {
        let name = tensor.name();
        let bad = |problem: String| ModelError::malformed(name, problem);
        let (size, count) = size_of(tensor)?;
        let number = tensor.data_type();
        let stored = dtype(number)?.stored;
        let bytes = count * stored.elt_size_in_bytes() as u64;
        self.charge(bytes)?;
        let place = match (tensor.data_location(), place) {
            (0, Some((offset, length))) => Place { file: Arc::clone(&self.own), offset, length },
            (0, None) => return Ok((inline(tensor)?, None)),
            (1, _) => self.external(tensor, bytes)?,
            (other, _) => return Err(bad(format!("its data is at location {other}, which ONNX does not have"))),
        };
        if place.length != bytes {
            return Err(bad(format!("{} bytes for a size of {size:?}, which takes {bytes}", place.length)));
        }
        let stored = StoredWeight {
            name: format!("{}@{}", place.file.name, place.offset),
            place,
            number,
            stride: strides(&size),
            size,
            checksum: OnceLock::new(),
        };
        let tensor = stored.read()?;
        Ok((tensor, Some(Arc::new(stored))))
    }

    fn charge(&mut self, bytes: u64) -> Result<(), ModelError> {
        self.bytes_left = self.bytes_left.checked_sub(bytes).ok_or_else(|| ModelError::Limit {
            what: "the weights".to_owned(),
            got: (self.limit - self.bytes_left).saturating_add(bytes),
            limit: self.limit,
            option: "max_weight_bytes",
        })?;
        Ok(())
    }

    fn external(&mut self, tensor: &TensorProto, bytes: u64) -> Result<Place, ModelError> {
        let name = tensor.name();
        let bad = |problem: String| ModelError::malformed(name, problem);
        let value = |key: &str| {
            tensor.external_data.iter().find(|entry| entry.key() == key).map(|entry| entry.value().to_owned())
        };
        let number = |key: &str| match value(key) {
            None => Ok(None),
            Some(text) => {
                text.parse::<u64>().map(Some).map_err(|_| bad(format!("{key} = {text:?} is no number of bytes")))
            }
        };
        let location = value("location").ok_or_else(|| bad("its data lies in another file without a name".into()))?;
        let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
        let file = self.file(&location).map_err(|problem| bad(format!("its data lies in {location:?}: {problem}")))?;
        let rest = file.length.checked_sub(offset);
        let length = match (length, rest) {
            (Some(length), Some(rest)) if length <= rest => length,
            (None, Some(rest)) if rest >= bytes => bytes,
            _ => {
                let wanted = length.unwrap_or(bytes);
                return Err(bad(format!(
                    "{wanted} bytes at {offset} of {location:?} were asked for, which has {}",
                    file.length
                )));
            }
        };
        Ok(Place { file, offset, length })
    }

    /// A file beside the model.
    fn file(&mut self, location: &str) -> Result<Arc<Opened>, String> {
        if let Some((file, _)) = self.beside.get(location) {
            return Ok(Arc::clone(file));
        }
        let relative = Path::new(location);
        let inside = relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if location.is_empty() || location.contains('\0') || !inside {
            return Err("only files in the model's own directory are read".to_owned());
        }
        if self.beside.len() == MAX_FILES {
            return Err(format!("it is one of more than {MAX_FILES} files: save the weights in one file"));
        }
        let candidates = self.roots.iter().map(|root| root.join(relative));
        let Some(path) = candidates.filter_map(|path| fs::canonicalize(path).ok()).next() else {
            return Err("it is not there: copy it beside the model".to_owned());
        };
        if !self.roots.iter().any(|root| path.starts_with(root)) {
            return Err("a symbolic link leads out of the model's own directory".to_owned());
        }
        if path == self.own_path {
            return Err("this is the model's own file".to_owned());
        }
        let metadata = fs::metadata(&path).map_err(|error| error.to_string())?;
        if !metadata.is_file() {
            return Err("it is no regular file".to_owned());
        }
        let file = File::open(&path).map_err(|error| error.to_string())?;
        let opened = Arc::new(Opened { file, length: metadata.len(), name: location.to_owned() });
        self.beside.insert(location.to_owned(), (Arc::clone(&opened), path));
        Ok(opened)
    }
}

/// A tensor that fills a part of a file. The file stays open: it may be replaced or removed meanwhile.
struct StoredWeight {
    name: String,
    place: Place,
    number: i32,
    size: Vec<i64>,
    stride: Vec<i64>,
    /// Of its bytes when they were first read.
    checksum: OnceLock<u32>,
}

impl WeightSource for StoredWeight {
    fn read(&self) -> Result<Tensor, ModelError> {
        let Place { file, offset, length } = &self.place;
        let bad = |problem: String| ModelError::malformed(&file.name, problem);
        let length = usize::try_from(*length).map_err(|_| bad(format!("no memory for {length} bytes")))?;
        let bytes = torch::byte_tensor(length, |bytes| {
            file.file
                .read_exact_at(bytes, *offset)
                .map_err(|error| bad(format!("{length} bytes at {offset} cannot be read: {error}")))?;
            let mut crc = flate2::Crc::new();
            crc.update(bytes);
            if *self.checksum.get_or_init(|| crc.sum()) == crc.sum() {
                return Ok(());
            }
            Err(bad(format!("the file was written into while the model is served: {length} bytes at {offset} differ")))
        })?;
        typed(&bytes, self.number, &self.size)
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn stride(&self) -> &[i64] {
        &self.stride
    }
}

impl fmt::Debug for StoredWeight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StoredWeight").field(&self.name).field(&self.size).finish()
    }
}

/// A tensor, and where it can be read again.
type Held = (Tensor, Option<Arc<dyn WeightSource>>);

/// The tensors of a program, and where they can be read again.
pub struct Tensors(pub BTreeMap<String, Held>);

impl Weights for Tensors {
    fn tensor(&self, constant: &str) -> Result<Tensor, ModelError> {
        let found = self.0.get(constant).map(|(tensor, _)| tensor.shallow_clone());
        found.ok_or_else(|| ModelError::malformed("graph", format!("{constant} is no constant of the file")))
    }

    fn source(&self, constant: &str) -> Option<Arc<dyn WeightSource>> {
        self.0.get(constant)?.1.clone()
    }

    fn copied(&self) -> Result<Box<dyn Weights>, ModelError> {
        let copy =
            |(name, (tensor, source)): (&String, &Held)| Ok((name.clone(), (tensor.f_detach_copy()?, source.clone())));
        Ok(Box::new(Tensors(self.0.iter().map(copy).collect::<Result<_, ModelError>>()?)))
    }
}
