//! Which kernel was the fastest for an operation, as TensorRT's timing cache has it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::LazyLock;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A larger file is not one of this cache.
const MAX_FILE_BYTES: u64 = 16 << 20;
/// Operations that are remembered, in memory and in a file: some thousand models.
const MAX_OPERATIONS: usize = 100_000;

/// The fastest kernel of each operation that was timed, as its index among the candidates.
///
/// An operation is named by what its kernels depend on: its kind, its shapes, its dtype and the number of threads. The
/// candidates depend on camlens's version and on the processor too, so a file holds one pair of them.
#[derive(Debug, Default)]
pub struct TimingCache {
    known: Mutex<Known>,
    file: Option<PathBuf>,
}

#[derive(Debug, Default)]
struct Known {
    fastest: HashMap<String, usize>,
    /// Whether something was found since the file was written.
    is_new: bool,
}

/// The file, in JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    camlens: String,
    processor: String,
    fastest: HashMap<String, usize>,
}

impl TimingCache {
    /// A cache that is read from a file in `folder`, and [saved](TimingCache::save) there. The folder is made if it
    /// does not exist. There is one file for each version of camlens and kind of processor.
    ///
    /// # Errors
    /// When the folder cannot be made or the file cannot be read. A file of another version, or one that is damaged, is
    /// not an error: it counts as empty.
    pub fn in_folder(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let digest = Sha256::digest(format!("{} {}", version(), *PROCESSOR));
        let name: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let file = folder.join(format!("kernels-{name}.json"));
        let fastest = read(&file)?;
        Ok(TimingCache { known: Mutex::new(Known { fastest, is_new: false }), file: Some(file) })
    }

    /// The index of an operation's fastest kernel.
    pub(super) fn fastest(&self, operation: &str) -> Option<usize> {
        self.known.lock().fastest.get(operation).copied()
    }

    pub(super) fn insert(&self, operation: String, index: usize) {
        let mut known = self.known.lock();
        if known.fastest.len() < MAX_OPERATIONS || known.fastest.contains_key(&operation) {
            known.is_new |= known.fastest.insert(operation, index) != Some(index);
        }
    }

    /// Writes what was found since the last time, together with what another process has written meanwhile. The file is
    /// replaced as a whole. Does nothing without a folder.
    ///
    /// # Errors
    /// When the file cannot be written; nothing is lost then.
    pub fn save(&self) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let fastest = {
            let mut known = self.known.lock();
            if !known.is_new {
                return Ok(());
            }
            known.is_new = false;
            known.fastest.clone()
        };
        let written = write(file, fastest);
        self.known.lock().is_new |= written.is_err();
        written
    }

    /// The number of operations.
    pub fn len(&self) -> usize {
        self.known.lock().fastest.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a file holds for this version and processor.
fn read(file: &Path) -> io::Result<HashMap<String, usize>> {
    let opened = match File::open(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(HashMap::new()),
        opened => opened?,
    };
    let mut text = Vec::new();
    opened.take(MAX_FILE_BYTES + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Ok(HashMap::new());
    }
    let stored = serde_json::from_slice::<Stored>(&text).ok();
    let stored = stored.filter(|stored| stored.camlens == version() && stored.processor == *PROCESSOR);
    Ok(stored.map(|stored| stored.fastest).filter(|fastest| fastest.len() <= MAX_OPERATIONS).unwrap_or_default())
}

fn write(file: &Path, fastest: HashMap<String, usize>) -> io::Result<()> {
    let mut all = read(file)?;
    all.extend(fastest);
    let stored = Stored { camlens: version().to_owned(), processor: PROCESSOR.clone(), fastest: all };
    let text = serde_json::to_vec(&stored)?;
    let beside = file.with_extension(format!("{}.tmp", process::id()));
    let replaced = (|| {
        let mut new = File::create(&beside)?;
        new.write_all(&text)?;
        new.sync_all()?;
        fs::rename(&beside, file)
    })();
    if replaced.is_err() {
        let _ = fs::remove_file(&beside);
    }
    replaced
}

fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// The processor's model and instructions, and the environment variables that limit them.
static PROCESSOR: LazyLock<String> = LazyLock::new(|| {
    const TELLING: [&str; 7] =
        ["model name", "flags", "Features", "CPU implementer", "CPU part", "CPU variant", "cache size"];
    const LIMITS: [&str; 3] = ["ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "CAMLENS_MAX_CPU_ISA"];
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let first = text.split("\n\n").next().unwrap_or_default();
    let lines = first.lines().filter_map(|line| line.split_once(':'));
    let told = lines.filter(|(key, _)| TELLING.contains(&key.trim())).map(|(_, value)| value.trim().to_owned());
    let limits = LIMITS.iter().filter_map(|name| Some(format!("{name}={}", std::env::var(name).ok()?)));
    told.chain(limits).collect::<Vec<_>>().join("; ")
});

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("camlens-timing-cache-{name}-{}", process::id()));
        let _ = fs::remove_dir_all(&folder);
        folder
    }

    #[test]
    fn what_one_process_measures_the_next_one_knows() {
        let folder = folder("next");
        let [first, second] = [(); 2].map(|()| TimingCache::in_folder(&folder).unwrap());
        first.insert("a".into(), 2);
        second.insert("b".into(), 3);
        first.save().unwrap();
        second.save().unwrap();
        let third = TimingCache::in_folder(&folder).unwrap();
        assert_eq!([third.fastest("a"), third.fastest("b"), third.fastest("c")], [Some(2), Some(3), None]);
        let files = || fs::read_dir(&folder).unwrap().count();
        assert_eq!(files(), 1, "no temporary file is left");
        // Nothing new is not written.
        fs::remove_dir_all(&folder).unwrap();
        third.insert("a".into(), 2);
        third.save().unwrap();
        assert!(!folder.exists());
    }

    #[test]
    fn a_file_that_is_damaged_or_of_another_processor_counts_as_empty() {
        let folder = folder("damaged");
        let cache = TimingCache::in_folder(&folder).unwrap();
        cache.insert("a".into(), 2);
        cache.save().unwrap();
        let file = cache.file.clone().unwrap();
        let sound = fs::read_to_string(&file).unwrap();
        for text in [sound[..sound.len() / 2].to_owned(), sound.replace("\"processor\":\"", "\"processor\":\"Z80")] {
            fs::write(&file, text).unwrap();
            assert!(TimingCache::in_folder(&folder).unwrap().is_empty());
        }
        fs::write(&file, &sound).unwrap();
        assert_eq!(TimingCache::in_folder(&folder).unwrap().len(), 1);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn what_cannot_be_written_is_written_later() {
        let folder = folder("later");
        let cache = TimingCache::in_folder(&folder).unwrap();
        cache.insert("a".into(), 2);
        fs::remove_dir_all(&folder).unwrap();
        assert!(cache.save().is_err());
        fs::create_dir(&folder).unwrap();
        cache.save().unwrap();
        assert_eq!(TimingCache::in_folder(&folder).unwrap().fastest("a"), Some(2));
        fs::remove_dir_all(&folder).unwrap();
        assert!(TimingCache::default().save().is_ok(), "without a folder");
    }
}
