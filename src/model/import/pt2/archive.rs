//! The zip around an exported program: entries are found by structure and read within limits; nothing is unpacked to
//! disk, and nothing pickled is ever opened.
//!
//! What an entry says of its own size is believed only as far as the file's length and its packed size allow it
//! ([`MAX_RATIO`]), so a file of `n` bytes makes no buffer of more than `100 n` bytes plus 1 MiB, and all of them
//! together stay within [`LoadLimits`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::Path;

use serde::de::DeserializeOwned;
use tch::Tensor;
use zip::ZipArchive;

use crate::model::import::other_formats;
use crate::model::{LoadLimits, ModelError};
use crate::torch;

/// Most entries of an archive.
const MAX_ENTRIES: usize = 200_000;
/// An entry of more than [`RATIO_FREE_BYTES`] may be this many times as large as it is packed. Weights hardly shrink,
/// and JSON shrinks by a factor of 10 to 30; a deflated run of zeros, by 1000.
const MAX_RATIO: u64 = 100;
const RATIO_FREE_BYTES: u64 = 1 << 20;
/// Longest name of an entry; PyTorch writes shorter ones.
const MAX_NAME_BYTES: usize = 4096;

const EXPORT_ADVICE: &str =
    "export it with torch.export.export and torch.export.save of PyTorch 2.9 or later (deploy/export does)";
const RESAVE_ADVICE: &str =
    "save it again with PyTorch 2.9 or later: torch.export.save(torch.export.load(\"old.pt2\"), \"new.pt2\")";

/// A file, or bytes in memory.
pub trait Source: Read + Seek + Send {}
impl<T: Read + Seek + Send> Source for T {}

/// An opened `.pt2`.
pub struct Archive {
    zip: ZipArchive<Box<dyn Source>>,
    /// Entry name below the top folder → index.
    entries: BTreeMap<String, usize>,
    /// The program's name: `model` in `models/model.json`.
    name: String,
    limits: LoadLimits,
    /// Bytes of the whole file.
    length: u64,
    /// Bytes of weights that may still be read.
    weight_budget: u64,
}

fn format(what: impl Into<String>, advice: &str) -> ModelError {
    ModelError::Format { what: what.into(), advice: advice.to_owned() }
}

impl Archive {
    pub fn open(path: &Path, limits: &LoadLimits) -> Result<Self, ModelError> {
        let read = |source| ModelError::Read { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(read)?;
        if !file.metadata().map_err(read)?.is_file() {
            return Err(read(io::Error::new(io::ErrorKind::InvalidInput, "is not a file")));
        }
        let mut start = Vec::new();
        (&mut file).take(other_formats::START_BYTES).read_to_end(&mut start).map_err(read)?;
        file.rewind().map_err(read)?;
        if start.len() < 4 || !start.starts_with(b"PK") {
            let advice = other_formats::advice(&start).unwrap_or(EXPORT_ADVICE);
            return Err(format(other_formats::what_is(&start), advice));
        }
        Self::read(Box::new(io::BufReader::with_capacity(64 << 10, file)), limits)
    }

    pub fn read(mut source: Box<dyn Source>, limits: &LoadLimits) -> Result<Self, ModelError> {
        let unreadable = |error: io::Error| ModelError::malformed("zip", error.to_string());
        let length = source.seek(io::SeekFrom::End(0)).map_err(unreadable)?;
        source.rewind().map_err(unreadable)?;
        // The archive begins where the file does: a search for its start would find the zips that lie inside it.
        let whole = zip::read::Config { archive_offset: zip::read::ArchiveOffset::Known(0) };
        let mut zip = ZipArchive::with_config(whole, source)
            .map_err(|error| ModelError::malformed("zip", format!("{error} (cut off while copying?)")))?;
        if zip.len() > MAX_ENTRIES {
            return Err(ModelError::malformed("zip", format!("{} entries", zip.len())));
        }
        if zip.has_duplicate_names() {
            return Err(ModelError::malformed("zip", "two entries have the same name"));
        }
        let names = names(&mut zip)?;
        let top = recognise(&names)?;
        let mut entries = BTreeMap::new();
        for (index, name) in names.iter().enumerate() {
            let Some(inner) = name.strip_prefix(top) else { continue };
            if entries.insert(inner.to_owned(), index).is_some() {
                return Err(ModelError::malformed("zip", format!("two entries are called {name}")));
            }
        }
        let programs: Vec<&str> = entries
            .keys()
            .filter_map(|name| name.strip_prefix("models/")?.strip_suffix(".json"))
            .filter(|name| !name.contains('/'))
            .collect();
        let name = match programs.as_slice() {
            [one] => (*one).to_owned(),
            [] => return Err(no_program(&entries)),
            many => {
                return Err(format(
                    format!("the file holds {} programs: {}", many.len(), many.join(", ")),
                    "save each one in a file of its own",
                ));
            }
        };
        let mut archive =
            Archive { zip, entries, name, limits: limits.clone(), length, weight_budget: limits.max_weight_bytes };
        archive.check_layout()?;
        Ok(archive)
    }

    /// The graph's JSON.
    pub fn graph(&mut self) -> Result<Text, ModelError> {
        let name = format!("models/{}.json", self.name);
        let bytes = self.entry(&name, self.limits.max_graph_bytes, "the graph", "max_graph_bytes")?;
        Ok(Text { name, bytes })
    }

    /// The description of the weights (`kind` is `weights`) or of the constants (`constants`).
    pub fn payload_config(&mut self, kind: &str) -> Result<Text, ModelError> {
        let name = format!("data/{kind}/{}_{kind}_config.json", self.name);
        if !self.entries.contains_key(&name) {
            return Err(format(format!("the file has no {name}"), RESAVE_ADVICE));
        }
        let bytes = self.entry(&name, self.limits.max_graph_bytes, "the weights' description", "max_graph_bytes")?;
        Ok(Text { name, bytes })
    }

    /// Reads one storage into memory that the tensor owns.
    pub fn storage(&mut self, kind: &str, file: &str) -> Result<Tensor, ModelError> {
        let storage = self.storage_within(kind, file, self.weight_budget)?;
        self.weight_budget -= storage.numel() as u64;
        Ok(storage)
    }

    /// Reads a storage again.
    ///
    /// # Errors
    /// The file was written into meanwhile, which the checksum of the zip shows.
    pub fn storage_again(&mut self, kind: &str, file: &str) -> Result<Tensor, ModelError> {
        self.storage_within(kind, file, self.limits.max_weight_bytes).map_err(|error| {
            let advice = "if it was written into while it was served, restart the server, and replace the file instead \
                 of writing into it";
            format(format!("a weight cannot be read again: {error}"), advice)
        })
    }

    fn storage_within(&mut self, kind: &str, file: &str, limit: u64) -> Result<Tensor, ModelError> {
        let name = format!("data/{kind}/{file}");
        let (entry, size) = self.open_entry(&name, limit, "the weights", "max_weight_bytes")?;
        torch::byte_tensor(size, |bytes| fill(entry, &name, bytes))
    }

    pub fn limits(&self) -> &LoadLimits {
        &self.limits
    }

    fn check_layout(&mut self) -> Result<(), ModelError> {
        if self.entries.keys().any(|name| {
            name.strip_prefix("data/weights/").is_some_and(|file| file.ends_with(".pt") && !file.contains('/'))
        }) {
            return Err(format("the file was saved by PyTorch 2.8, with its weights in a pickle", RESAVE_ADVICE));
        }
        if self.entries.contains_key("byteorder") {
            let order = self.entry("byteorder", 64, "byteorder", "fixed")?;
            if order != b"little" {
                return Err(format("the weights are big-endian", "save the model on a little-endian machine"));
            }
        }
        Ok(())
    }

    /// Reads a whole entry of at most `limit` bytes, whatever its header says.
    fn entry(&mut self, name: &str, limit: u64, what: &str, option: &'static str) -> Result<Vec<u8>, ModelError> {
        let (entry, size) = self.open_entry(name, limit, what, option)?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(size).map_err(|_| no_memory(name))?;
        bytes.resize(size, 0);
        fill(entry, name, &mut bytes)?;
        Ok(bytes)
    }

    /// Opens an entry, with its size. The size is at most `limit` bytes, and plausible for the packed size.
    fn open_entry(
        &mut self,
        name: &str,
        limit: u64,
        what: &str,
        option: &'static str,
    ) -> Result<(impl Read, usize), ModelError> {
        let index = *self.entries.get(name).ok_or_else(|| ModelError::malformed(name, "the entry is missing"))?;
        let bad = |problem: String| ModelError::malformed(name, problem);
        let entry = self.zip.by_index(index).map_err(|error| bad(error.to_string()))?;
        let (size, packed) = (entry.size(), entry.compressed_size());
        if size > limit {
            return Err(ModelError::Limit { what: what.to_owned(), got: size, limit, option });
        }
        if packed > self.length {
            return Err(bad(format!("it says that it takes {packed} bytes of a file of {}", self.length)));
        }
        if size > RATIO_FREE_BYTES && size / MAX_RATIO > packed {
            return Err(bad(format!(
                "{packed} bytes unpack to {size}: {MAX_RATIO} times as much is allowed, and nothing in a model \
                 shrinks that well"
            )));
        }
        Ok((entry, usize::try_from(size).map_err(|_| no_memory(name))?))
    }
}

fn no_memory(name: &str) -> ModelError {
    ModelError::malformed(name, "no memory for it".to_owned())
}

/// Fills `bytes` from an entry, which must have exactly that many.
fn fill(mut entry: impl Read, name: &str, bytes: &mut [u8]) -> Result<(), ModelError> {
    let bad = |error: io::Error| ModelError::malformed(name, error.to_string());
    let length = bytes.len();
    let wrong =
        |has: &str| ModelError::malformed(name, format!("it says that it has {length} bytes, and it has {has}"));
    entry.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => wrong("fewer"),
        _ => bad(error),
    })?;
    // The zip reader compares the checksum at the end of the entry.
    match entry.read(&mut [0]).map_err(bad)? {
        0 => Ok(()),
        _ => Err(wrong("more")),
    }
}

/// An entry that holds JSON.
pub struct Text {
    name: String,
    bytes: Vec<u8>,
}

impl Text {
    /// Parses the fields that `T` names.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, ModelError> {
        serde_json::from_slice(&self.bytes).map_err(|error| ModelError::malformed(&self.name, error.to_string()))
    }
}

/// The entries' names, in order. Nothing is written to disk under them; one that would lead out of the archive is
/// refused all the same, because no writer of models makes it.
fn names(zip: &mut ZipArchive<Box<dyn Source>>) -> Result<Vec<String>, ModelError> {
    (0..zip.len())
        .map(|index| {
            let entry = zip.by_index_raw(index).map_err(|error| ModelError::malformed("zip", error.to_string()))?;
            let name = entry.name().map_err(|error| ModelError::malformed("zip", error.to_string()))?.into_owned();
            let leads_out =
                name.starts_with('/') || name.contains(['\\', '\0']) || name.split('/').any(|part| part == "..");
            if leads_out || name.len() > MAX_NAME_BYTES {
                return Err(ModelError::malformed("zip", format!("an entry is called {name:?}, which no model has")));
            }
            Ok(name)
        })
        .collect()
}

/// The top folder, with its slash.
///
/// # Errors
/// The zip is no exported program; the message says what it is.
fn recognise(names: &[String]) -> Result<&str, ModelError> {
    let has = |suffix: &str| names.iter().any(|name| name.ends_with(suffix));
    if has("serialized_exported_program.json") {
        return Err(format("the file was saved by PyTorch 2.7 or earlier", RESAVE_ADVICE));
    }
    if has("/constants.pkl") || names.iter().any(|name| name.contains("/code/")) {
        return Err(format("the file is TorchScript, which camlens does not read yet", EXPORT_ADVICE));
    }
    if has("/data.pkl") {
        return Err(format("the file is a checkpoint of torch.save, with a pickle and no graph", EXPORT_ADVICE));
    }
    if has("model.weights.h5") {
        return Err(format("the file is of Keras, with its layers as Python objects", EXPORT_ADVICE));
    }
    let top = names.first().and_then(|name| name.find('/').map(|at| &name[..=at]));
    top.ok_or_else(|| format("the zip has no top folder, so it is no exported program", EXPORT_ADVICE))
}

fn no_program(entries: &BTreeMap<String, usize>) -> ModelError {
    if entries.keys().any(|name| name.starts_with("data/aotinductor/")) {
        return format(
            "the file is compiled code of AOTInductor, without a graph",
            "save the exported program itself: torch.export.save(exported, \"model.pt2\")",
        );
    }
    if entries.keys().any(|name| name.starts_with("data/") || name == "archive_format") {
        return format(
            "the file holds no program (no models/*.json): torch.export.save did not finish",
            "save it again, and look at the error that it gave",
        );
    }
    format("the zip holds no models/*.json, so it is no exported program", EXPORT_ADVICE)
}
