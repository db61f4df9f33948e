//! Target for `.pt2` files: the input as it is, or a small valid archive with changed entries and correct checksums.
//!
//! A file that loads is explained as well, so that the plan's compiler and rules run on everything that passes loading.

use std::io::{Cursor, Read, Write};
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use arbitrary::{Arbitrary, Unstructured};
use camlens::explain::{MapKind, MapSet, Method, Mode, Target};
use camlens::frame::Limits;
use camlens::model::{LoadLimits, Model};
use camlens::schedule::{Batch, Device, ExplainDevice, Explainers, RowInput, Served, ServedLimits};
use serde_json::{Value as Json, json};
use tempfile::TempDir;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

/// A first byte below this: an archive is changed. If the first byte is even, a model that loads is explained in exact
/// mode, which is fast; else the plan is compiled with all passes and kernels are timed.
pub const RAW: u8 = 0xC0;

/// Limit on the values of a run at load.
const MAX_VALUE_BYTES: u64 = 64 << 20;
/// Limit on the elements of an explained input.
const MAX_ELEMENTS: usize = 1 << 17;
const MAX_EXPLAINING: Duration = Duration::from_secs(2);

pub const BASES: [&[u8]; 6] = [
    include_bytes!("../../fixtures/pt2/2.11.0/A.pt2"),
    include_bytes!("../../fixtures/pt2/2.15.0/B.pt2"),
    include_bytes!("../../fixtures/conformance/no_grad_inside/1/model.pt2"),
    include_bytes!("../../fixtures/conformance/grey/1/model.pt2"),
    include_bytes!("../../fixtures/conformance/buffer_mutated/1/model.pt2"),
    include_bytes!("../../fixtures/conformance/cond/1/model.pt2"),
];

/// Operators that a node may call instead, with arguments of another operator.
const OPERATORS: [&str; 40] = [
    "relu_.default",
    "view.default",
    "reshape.default",
    "expand.default",
    "repeat.default",
    "cat.default",
    "matmul.default",
    "linear.default",
    "conv2d.default",
    "conv_transpose2d.input",
    "max_pool2d.default",
    "avg_pool2d.default",
    "adaptive_avg_pool2d.default",
    "pad.default",
    "constant_pad_nd.default",
    "slice.Tensor",
    "select.int",
    "squeeze.dim",
    "unsqueeze.default",
    "transpose.int",
    "permute.default",
    "flatten.using_ints",
    "split.Tensor",
    "softmax.int",
    "mean.dim",
    "sum.dim_IntList",
    "layer_norm.default",
    "group_norm.default",
    "batch_norm.default",
    "upsample_bilinear2d.vec",
    "roll.default",
    "gather.default",
    "index.Tensor",
    "einsum.default",
    "as_strided.default",
    "copy_.default",
    "add_.Tensor",
    "hardtanh.default",
    "gelu.default",
    "scaled_dot_product_attention.default",
];

/// Strings that replace strings of a graph.
const WORDS: [&str; 12] = [
    "",
    "x",
    "conv2d",
    "as_tensor",
    "as_int",
    "as_ints",
    "as_none",
    "Infinity",
    "NaN",
    "weight_0",
    "model",
    "../../escape",
];

#[derive(Debug, Arbitrary)]
struct Case {
    base: u8,
    deflate: bool,
    edits: Vec<Edit>,
    /// Changes to the finished file.
    damage: Vec<Damage>,
}

/// `at` and `from` are positions, as fractions of the length in units of 2⁻¹⁶.
#[derive(Debug, Arbitrary)]
enum Edit {
    /// Replaces a value in the graph or in a description of weights.
    Replace {
        entry: u8,
        at: u16,
        with: Atom,
    },
    /// Replaces a value with another one of the document.
    Copy {
        entry: u8,
        at: u16,
        from: u16,
    },
    Remove {
        entry: u8,
        at: u16,
    },
    /// Makes a node call another operator, with its arguments by position.
    Retarget {
        at: u16,
        operator: u8,
    },
    /// Inserts a copy of a node.
    Repeat {
        at: u16,
        to: u16,
    },
    /// Flips a bit of any entry.
    Flip {
        entry: u8,
        at: u16,
        bit: u8,
    },
    Truncate {
        entry: u8,
        at: u16,
    },
    Rename {
        entry: u8,
        word: u8,
    },
    Drop {
        entry: u8,
    },
    Add {
        word: u8,
        bytes: Vec<u8>,
    },
}

#[derive(Debug, Arbitrary)]
enum Atom {
    Small(i8),
    Power { shift: u8, negative: bool },
    Number(i64),
    Float(f32),
    Bool(bool),
    Null,
    List(Vec<i8>),
    Object,
    Word(u8),
    Text(String),
}

#[derive(Debug, Arbitrary)]
enum Damage {
    Flip { at: u16, bit: u8 },
    Cut { at: u16 },
    Overwrite { at: u16, bytes: [u8; 4] },
}

impl Atom {
    fn json(&self) -> Json {
        match self {
            Atom::Small(value) => json!(value),
            Atom::Power { shift, negative } => {
                let power = 1i64.wrapping_shl(u32::from(*shift));
                json!(if *negative { power.wrapping_neg() } else { power })
            }
            Atom::Number(value) => json!(value),
            Atom::Float(value) => json!(value),
            Atom::Bool(value) => json!(value),
            Atom::Null => Json::Null,
            Atom::List(values) => json!(values),
            Atom::Object => json!({}),
            Atom::Word(word) => json!(WORDS[usize::from(*word) % WORDS.len()]),
            Atom::Text(text) => json!(text),
        }
    }
}

/// The entries of an archive.
type Entries = Vec<(String, Content)>;

#[derive(Clone)]
enum Content {
    Bytes(Vec<u8>),
    Document(Json),
}

impl Content {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Content::Bytes(bytes) => bytes.clone(),
            Content::Document(json) => serde_json::to_vec(json).expect("JSON"),
        }
    }
}

static ENTRIES: LazyLock<[Entries; BASES.len()]> = LazyLock::new(|| BASES.map(entries));

fn entries(archive: &[u8]) -> Entries {
    // As PyTorch writes it: the archive begins where the file does.
    let whole = zip::read::Config { archive_offset: zip::read::ArchiveOffset::Known(0) };
    let mut zip = ZipArchive::with_config(whole, Cursor::new(archive)).expect("a fixture is a zip");
    (0..zip.len())
        .map(|index| {
            let mut entry = zip.by_index(index).expect("an entry");
            let name = entry.name().expect("a name").into_owned();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).expect("an entry's bytes");
            let json = name.ends_with(".json").then(|| serde_json::from_slice(&bytes).expect("a fixture's JSON"));
            (name, json.map_or(Content::Bytes(bytes), Content::Document))
        })
        .collect()
}

fn scaled(at: u16, length: usize) -> usize {
    (usize::from(at) * length) >> 16
}

/// JSON pointers of all values of a document.
fn pointers(json: &Json, at: String, all: &mut Vec<String>) {
    match json {
        Json::Array(list) => list.iter().enumerate().for_each(|(i, v)| pointers(v, format!("{at}/{i}"), all)),
        Json::Object(map) => map
            .iter()
            // camlens does not read these.
            .filter(|(key, _)| !matches!(key.as_str(), "stack_trace" | "source_fn_stack" | "torch_fn" | "device"))
            .for_each(|(key, v)| pointers(v, format!("{at}/{}", key.replace('~', "~0").replace('/', "~1")), all)),
        _ => {}
    }
    all.push(at);
}

fn pick(json: &Json, at: u16) -> String {
    let mut all = Vec::new();
    pointers(json, String::new(), &mut all);
    let index = scaled(at, all.len());
    all.swap_remove(index)
}

/// A JSON document of an archive: mostly the graph.
fn document(entries: &mut Entries, entry: u8) -> Option<&mut Json> {
    let documents: Vec<usize> =
        (0..entries.len()).filter(|index| matches!(entries[*index].1, Content::Document(_))).collect();
    let graph = documents.iter().find(|index| entries[**index].0.contains("models/")).copied();
    let any = documents.get(usize::from(entry) % documents.len().max(1)).copied();
    match &mut entries[if entry < 0xC0 { graph.or(any)? } else { any? }].1 {
        Content::Document(json) => Some(json),
        Content::Bytes(_) => None,
    }
}

fn nodes(entries: &mut Entries) -> Option<&mut Vec<Json>> {
    document(entries, 0)?.pointer_mut("/graph_module/graph/nodes")?.as_array_mut()
}

/// `None` if there is nothing to change.
fn apply(edit: &Edit, entries: &mut Entries) -> Option<()> {
    match edit {
        Edit::Replace { entry, at, with } => {
            let json = document(entries, *entry)?;
            *json.pointer_mut(&pick(json, *at))? = with.json();
        }
        Edit::Copy { entry, at, from } => {
            let json = document(entries, *entry)?;
            let piece = json.pointer(&pick(json, *from))?.clone();
            *json.pointer_mut(&pick(json, *at))? = piece;
        }
        Edit::Remove { entry, at } => {
            let json = document(entries, *entry)?;
            let place = pick(json, *at);
            let (parent, key) = place.rsplit_once('/')?;
            match json.pointer_mut(parent)? {
                Json::Array(list) => drop(list.remove(key.parse().ok()?)),
                Json::Object(map) => drop(map.remove(&key.replace("~1", "/").replace("~0", "~"))),
                _ => {}
            }
        }
        Edit::Retarget { at, operator } => {
            let nodes = nodes(entries)?;
            let index = scaled(*at, nodes.len());
            let node = nodes.get_mut(index)?.as_object_mut()?;
            let operator = OPERATORS[usize::from(*operator) % OPERATORS.len()];
            node.insert("target".to_owned(), json!(format!("torch.ops.aten.{operator}")));
            for input in node.get_mut("inputs")?.as_array_mut()?.iter_mut().filter_map(Json::as_object_mut) {
                input.insert("name".to_owned(), json!(""));
            }
        }
        Edit::Repeat { at, to } => {
            let nodes = nodes(entries)?;
            let node = nodes.get(scaled(*at, nodes.len()))?.clone();
            let to = scaled(*to, nodes.len());
            nodes.insert(to, node);
        }
        Edit::Flip { entry, at, bit } => {
            let mut bytes = take(entries, *entry)?;
            let at = scaled(*at, bytes.1.len());
            *bytes.1.get_mut(at)? ^= 1 << (bit % 8);
            entries.push((bytes.0, Content::Bytes(bytes.1)));
        }
        Edit::Truncate { entry, at } => {
            let (name, mut bytes) = take(entries, *entry)?;
            bytes.truncate(scaled(*at, bytes.len()));
            entries.push((name, Content::Bytes(bytes)));
        }
        Edit::Rename { entry, word } => {
            let index = usize::from(*entry) % entries.len().max(1);
            let name = &mut entries.get_mut(index)?.0;
            let end = name.rfind('/').map_or(0, |slash| slash + 1);
            name.replace_range(end.., WORDS[usize::from(*word) % WORDS.len()]);
        }
        Edit::Drop { entry } => drop(take(entries, *entry)?),
        Edit::Add { word, bytes } => {
            let top = entries.first()?.0.split('/').next()?.to_owned();
            let name = format!("{top}/data/weights/{}", WORDS[usize::from(*word) % WORDS.len()]);
            entries.push((name, Content::Bytes(bytes.clone())));
        }
    }
    Some(())
}

fn take(entries: &mut Entries, entry: u8) -> Option<(String, Vec<u8>)> {
    if entries.is_empty() {
        return None;
    }
    let (name, content) = entries.remove(usize::from(entry) % entries.len());
    Some((name, content.bytes()))
}

/// `None` if the zip cannot hold the names.
fn zipped(entries: &Entries, method: CompressionMethod) -> Option<Vec<u8>> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in entries {
        zip.start_file(name, SimpleFileOptions::default().compression_method(method)).ok()?;
        zip.write_all(&content.bytes()).ok()?;
    }
    Some(zip.finish().ok()?.into_inner())
}

fn damage(file: &mut Vec<u8>, damage: &Damage) {
    let length = file.len();
    match damage {
        Damage::Flip { at, bit } => {
            if let Some(byte) = file.get_mut(scaled(*at, length)) {
                *byte ^= 1 << (bit % 8);
            }
        }
        Damage::Cut { at } => file.truncate(scaled(*at, length)),
        Damage::Overwrite { at, bytes } => {
            let at = scaled(*at, length);
            file.iter_mut().skip(at).zip(bytes).for_each(|(old, new)| *old = *new);
        }
    }
}

/// The file that the input describes.
fn file(data: &[u8]) -> Option<Vec<u8>> {
    let (&first, rest) = data.split_first()?;
    if first >= RAW {
        return Some(rest.to_vec());
    }
    let case = Case::arbitrary_take_rest(Unstructured::new(rest)).ok()?;
    let mut entries = ENTRIES[usize::from(case.base) % BASES.len()].clone();
    for edit in case.edits.iter().take(8) {
        // An edit that does not apply changes nothing.
        let _ = apply(edit, &mut entries);
    }
    let method = if case.deflate { CompressionMethod::Deflated } else { CompressionMethod::Stored };
    let mut file = zipped(&entries, method)?;
    case.damage.iter().take(4).for_each(|one| damage(&mut file, one));
    Some(file)
}

/// One folder for the whole process.
static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    tch::set_num_threads(1);
    tempfile::tempdir().expect("a temporary folder")
});

pub fn run(data: &[u8]) {
    let Some(file) = file(data) else { return };
    let path: PathBuf = FOLDER.path().join("model.pt2");
    std::fs::write(&path, file).expect("a temporary file");
    let limits =
        LoadLimits { max_value_bytes: MAX_VALUE_BYTES, max_weight_bytes: MAX_VALUE_BYTES, ..LoadLimits::default() };
    match Model::load("fuzzed", 1, &path, &limits) {
        Ok(model) => explain(model, if data[0].is_multiple_of(2) { Mode::Exact } else { Mode::Default }),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Two frames with every map; one frame if the model takes a single row.
fn explain(model: Model, mode: Mode) {
    let metadata = model.metadata.clone();
    let limits = ServedLimits { max_batch: 2, max_targets: 2, frame: Limits::default() };
    let Ok(served) = Served::new(metadata, limits, tch::Device::Cpu).map(Arc::new) else { return };
    let [_, channels, height, width] = served.metadata.input.shape.map(|dimension| dimension.example());
    let Ok(shape) = <[u32; 3]>::try_from(
        [channels, height, width].iter().filter_map(|size| u32::try_from(*size).ok()).collect::<Vec<_>>(),
    ) else {
        return;
    };
    let elements = shape.iter().try_fold(1usize, |all, size| all.checked_mul(*size as usize));
    let Some(elements) = elements.filter(|elements| *elements <= MAX_ELEMENTS) else { return };
    let input: Vec<f32> = (0..elements).map(|n| (n % 13) as f32 / 13.0 - 0.4).collect();
    let rows = served.limits.max_batch as usize;
    let method = Method { mode, maps: MapSet::of(&MapKind::ALL), ..Method::default() };
    let targets = [Target::Top(2)];
    let batch = Batch {
        model: served.key(),
        method: &method,
        shape,
        inputs: vec![RowInput::Values(&input); rows],
        targets: vec![targets.as_slice(); rows],
    };
    let until = Instant::now() + MAX_EXPLAINING;
    let late = || Instant::now() > until;
    let models = Explainers::default();
    models.insert(served.key(), model);
    let mut device = ExplainDevice::new(models, false, tch::Device::Cpu);
    device.load(&served).expect("it was offered");
    match device.run(&batch, &late, &mut |_| {}) {
        Ok(answers) => assert_eq!(answers.len(), rows),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
