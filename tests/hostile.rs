//! Model files with random damage: loading returns `Ok` or `Err`, never panics, crashes or hangs, and adds at most
//! [`MEMORY_BYTES`] to the memory of the process.
//!
//! A case is written to `target/tmp/hostile/` before it is loaded, so that it is still there if the process dies.
//! `PROPTEST_CASES=20000 cargo test --release --test hostile` runs more cases than the default.

use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use camlens::model::{LoadLimits, Model};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value as Json, json};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

/// What loading may add to the resident memory: twice the values of a run (as exported, and in functional form), some
/// kilobytes for the file, and ATen's allocations on first use.
const MEMORY_BYTES: u64 = 512 << 20;
const VALUE_BYTES: u64 = 64 << 20;
const TIME: Duration = Duration::from_secs(20);

const FIXTURES: [&str; 5] = [
    "pt2/2.11.0/A.pt2",
    "pt2/edge/2.11.0/x_views.pt2",
    "conformance/no_grad_inside/1/model.pt2",
    "conformance/grey/1/model.pt2",
    "conformance/buffer_mutated/1/model.pt2",
];

/// Operators that an altered node may call instead, with arguments of another operator.
const TARGETS: [&str; 48] = [
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
    "reflection_pad2d.default",
    "slice.Tensor",
    "select.int",
    "squeeze.dim",
    "squeeze_.dim",
    "unsqueeze.default",
    "transpose.int",
    "transpose_.default",
    "t_.default",
    "permute.default",
    "flatten.using_ints",
    "unflatten.int",
    "split.Tensor",
    "chunk.default",
    "softmax.int",
    "mean.dim",
    "sum.dim_IntList",
    "layer_norm.default",
    "group_norm.default",
    "batch_norm.default",
    "upsample_nearest2d.vec",
    "upsample_bilinear2d.vec",
    "roll.default",
    "gather.default",
    "index.Tensor",
    "embedding.default",
    "einsum.default",
    "as_strided.default",
    "copy_.default",
    "fill_.Tensor",
    "add_.Tensor",
    "detach_.default",
    "sym_size.int",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn fixture(index: usize) -> Vec<u8> {
    std::fs::read(root().join("tests/fixtures").join(FIXTURES[index])).expect("a fixture")
}

/// One case at a time: the memory of the whole process is measured.
static TURN: Mutex<()> = Mutex::new(());

/// Loads bytes that may be a model; returns whether they are one.
fn load(name: &str, bytes: &[u8]) -> Result<bool, TestCaseError> {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("hostile");
    std::fs::create_dir_all(&directory)?;
    let file = directory.join(name);
    std::fs::write(&file, bytes)?;
    let limits = LoadLimits { max_value_bytes: VALUE_BYTES, ..LoadLimits::default() };
    // Writing 5 resets VmHWM, the peak resident memory.
    std::fs::write("/proc/self/clear_refs", "5")?;
    let before = memory("VmRSS:")?;
    let start = Instant::now();
    let loaded = Model::load("hostile", 1, &file, &limits).is_ok();
    let (took, peak) = (start.elapsed(), memory("VmHWM:")?);
    prop_assert!(took < TIME, "took {took:?}: {}", file.display());
    prop_assert!(peak < before + MEMORY_BYTES, "took {} more bytes: {}", peak - before, file.display());
    Ok(loaded)
}

/// A line of `/proc/self/status`, in bytes.
fn memory(key: &str) -> Result<u64, TestCaseError> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
    let kilobytes = line.trim().trim_end_matches(" kB").parse::<u64>();
    kilobytes.map(|v| v * 1024).map_err(|error| TestCaseError::fail(format!("{key} {line}: {error}")))
}

/// Damage to bytes. `at` and `from` are positions, as fractions of the length in units of 2⁻³².
#[derive(Debug, Clone)]
enum Damage {
    Flip { at: u32, bit: u8 },
    Overwrite { at: u32, bytes: Vec<u8> },
    Insert { at: u32, bytes: Vec<u8> },
    Delete { at: u32, length: usize },
    Splice { at: u32, from: u32, length: usize },
}

fn damage() -> impl Strategy<Value = Damage> {
    let bytes = || prop_oneof![vec(any::<u8>(), 1..8), Just(vec![0xff; 8]), Just(vec![0; 4]), vec(0x30u8..0x3a, 1..20)];
    prop_oneof![
        (any::<u32>(), 0u8..8).prop_map(|(at, bit)| Damage::Flip { at, bit }),
        (any::<u32>(), bytes()).prop_map(|(at, bytes)| Damage::Overwrite { at, bytes }),
        (any::<u32>(), bytes()).prop_map(|(at, bytes)| Damage::Insert { at, bytes }),
        (any::<u32>(), 1usize..200).prop_map(|(at, length)| Damage::Delete { at, length }),
        (any::<u32>(), any::<u32>(), 1usize..400).prop_map(|(at, from, length)| Damage::Splice { at, from, length }),
    ]
}

fn scaled(at: u32, length: usize) -> usize {
    usize::try_from((u64::from(at) * length as u64) >> 32).expect("below the length")
}

fn apply(bytes: &mut Vec<u8>, damage: &Damage) {
    if bytes.is_empty() {
        return;
    }
    let length = bytes.len();
    let cut = |at: usize, count: usize| at..(at + count).min(length);
    match damage {
        Damage::Flip { at, bit } => bytes[scaled(*at, length)] ^= 1 << bit,
        Damage::Overwrite { at, bytes: new } => {
            let range = cut(scaled(*at, length), new.len());
            let count = range.len();
            bytes[range].copy_from_slice(&new[..count]);
        }
        Damage::Insert { at, bytes: new } => {
            let at = scaled(*at, length);
            bytes.splice(at..at, new.iter().copied());
        }
        Damage::Delete { at, length: count } => {
            bytes.drain(cut(scaled(*at, length), *count));
        }
        Damage::Splice { at, from, length: count } => {
            let piece = bytes[cut(scaled(*from, length), *count)].to_vec();
            let at = scaled(*at, length);
            bytes.splice(at..at, piece);
        }
    }
}

/// The archive with one JSON entry changed, and correct checksums.
fn rewrite(archive: &[u8], suffix: &str, change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let whole = zip::read::Config { archive_offset: zip::read::ArchiveOffset::Known(0) };
    let mut old = ZipArchive::with_config(whole, Cursor::new(archive)).expect("a fixture is a zip");
    let mut new = ZipWriter::new(Cursor::new(Vec::new()));
    for index in 0..old.len() {
        let mut entry = old.by_index(index).expect("an entry");
        let name = entry.name().expect("a name").into_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).expect("an entry's bytes");
        if name.ends_with(suffix) {
            change(&mut bytes);
        }
        new.start_file(name, SimpleFileOptions::default().compression_method(CompressionMethod::Stored))
            .expect("a header");
        new.write_all(&bytes).expect("an entry");
    }
    new.finish().expect("a zip").into_inner()
}

/// A change after which the document is still JSON.
#[derive(Debug, Clone)]
enum Edit {
    /// Replaces a value.
    Replace { at: u32, with: Json },
    /// Replaces a value with another one of the document.
    Copy { at: u32, from: u32 },
    /// Removes an element of a list, or an entry of an object.
    Remove { at: u32 },
    /// Makes a node call another operator, with its arguments by position.
    Retarget { at: u32, target: &'static str },
}

fn edit() -> impl Strategy<Value = Edit> {
    let number = prop_oneof![
        Just(0i64),
        Just(1),
        Just(-1),
        Just(2),
        Just(3),
        Just(-2),
        Just(7),
        Just(100),
        Just(65_536),
        Just(1 << 31),
        Just(1 << 40),
        Just(i64::MAX),
        Just(i64::MIN),
        any::<i64>()
    ];
    let value = prop_oneof![
        6 => number.prop_map(|v| json!(v)),
        1 => Just(json!(null)),
        1 => Just(json!([])),
        1 => Just(json!({})),
        1 => any::<bool>().prop_map(|v| json!(v)),
        1 => prop_oneof![
            Just(json!("NaN")),
            Just(json!("Infinity")),
            Just(json!(1e300)),
            Just(json!(-0.0)),
            Just(json!(""))
        ],
        2 => vec(0i64..5, 0..5).prop_map(|v| json!(v)),
    ];
    prop_oneof![
        4 => (any::<u32>(), value).prop_map(|(at, with)| Edit::Replace { at, with }),
        2 => (any::<u32>(), any::<u32>()).prop_map(|(at, from)| Edit::Copy { at, from }),
        1 => any::<u32>().prop_map(|at| Edit::Remove { at }),
        2 => (any::<u32>(), proptest::sample::select(&TARGETS[..]))
            .prop_map(|(at, target)| Edit::Retarget { at, target }),
    ]
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

fn apply_edit(json: &mut Json, edit: &Edit) {
    let mut all = Vec::new();
    pointers(json, String::new(), &mut all);
    let pick = |at: u32| all[scaled(at, all.len())].as_str();
    match edit {
        Edit::Replace { at, with } => {
            if let Some(value) = json.pointer_mut(pick(*at)) {
                *value = with.clone();
            }
        }
        Edit::Copy { at, from } => {
            let piece = json.pointer(pick(*from)).cloned();
            if let (Some(value), Some(piece)) = (json.pointer_mut(pick(*at)), piece) {
                *value = piece;
            }
        }
        Edit::Remove { at } => {
            let Some((parent, key)) = pick(*at).rsplit_once('/') else { return };
            match json.pointer_mut(parent) {
                Some(Json::Array(list)) => drop(list.remove(key.parse().expect("an index"))),
                Some(Json::Object(map)) => drop(map.remove(&key.replace("~1", "/").replace("~0", "~"))),
                _ => {}
            }
        }
        Edit::Retarget { at, target } => {
            let Some(nodes) = json.pointer_mut("/graph_module/graph/nodes").and_then(Json::as_array_mut) else {
                return;
            };
            let mut nodes: Vec<&mut Json> = nodes.iter_mut().filter(|node| node.is_object()).collect();
            if nodes.is_empty() {
                return;
            }
            let index = scaled(*at, nodes.len());
            nodes[index]["target"] = json!(format!("torch.ops.aten.{target}"));
            for input in nodes[index]["inputs"].as_array_mut().into_iter().flatten().filter_map(Json::as_object_mut) {
                input.insert("name".into(), json!(""));
            }
        }
    }
}

/// 150 cases, or `PROPTEST_CASES`.
fn cases() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(150);
    ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 200, ..ProptestConfig::default() }
}

#[test]
fn the_fixtures_load_before_they_are_damaged() {
    for (index, name) in FIXTURES.iter().enumerate() {
        let loaded = load("whole.pt2", &fixture(index)).expect("within its bounds");
        // The input of x_views is not an image.
        assert!(loaded || name.contains("x_views"), "{name}");
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn an_archive_with_random_damage_does_no_harm(fixture_index in 0..FIXTURES.len(), damages in vec(damage(), 1..5)) {
        let mut bytes = fixture(fixture_index);
        damages.iter().for_each(|damage| apply(&mut bytes, damage));
        load("archive.pt2", &bytes)?;
    }

    #[test]
    fn a_graph_with_random_damage_does_no_harm(fixture_index in 0..FIXTURES.len(), damages in vec(damage(), 1..3)) {
        let bytes = rewrite(&fixture(fixture_index), "models/model.json", |text| {
            damages.iter().for_each(|damage| apply(text, damage));
        });
        load("graph.pt2", &bytes)?;
    }

    #[test]
    fn a_graph_that_says_something_else_does_no_harm(
        fixture_index in 0..FIXTURES.len(),
        edits in vec(edit(), 1..4),
        entry in prop_oneof![4 => Just("models/model.json"), 1 => Just("weights_config.json")],
    ) {
        let bytes = rewrite(&fixture(fixture_index), entry, |text| {
            let mut json = serde_json::from_slice(text).expect("a fixture's JSON");
            edits.iter().for_each(|edit| apply_edit(&mut json, edit));
            *text = serde_json::to_vec(&json).expect("JSON");
        });
        load("edited.pt2", &bytes)?;
    }
}
