//! The table of `deploy/onnx.md`: what is read, from the table of operators, and what of an operator is refused.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::{lower, operators};

/// What of an operator is refused, in the order of their names.
const REFUSED: [(&str, &str); 33] = [
    ("ArgMax", "`select_last_index = 1`"),
    ("ArgMin", "`select_last_index = 1`"),
    ("AveragePool", "`dilations`; `ceil_mode` with a padding that differs between the sides"),
    ("BatchNormalization", "training mode; `spatial = 0` of a picture"),
    ("Clip", "bounds that depend on the picture"),
    ("Constant", "sparse tensors, strings"),
    (
        "ConvTranspose",
        "`output_shape` or `auto_pad` where the size is free; output padding beyond the padding, with a \
                      bias",
    ),
    ("CumSum", "`exclusive`, `reverse`"),
    ("DequantizeLinear", "`block_size`; quantised numbers that are neither constant nor made by QuantizeLinear"),
    ("Dropout", "training mode"),
    ("EyeLike", "a diagonal other than the main one"),
    ("GatherND", "`batch_dims`"),
    ("If", "a condition that depends on the picture or its size"),
    ("LRN", "tensors that are not [N, C, H, W]"),
    ("LayerNormalization", "mean and deviation as outputs; an axis whose size is free"),
    ("MaxPool", "its indices as an output"),
    (
        "Pad",
        "in modes other than `constant`: pads that depend on the size, and axes other than rows and columns whose \
            size is free",
    ),
    ("QuantizeLinear", "`block_size`; a quantised result as the model's output"),
    ("RMSNormalization", "an axis whose size is free"),
    ("Range", "bounds that depend on the picture"),
    ("ReduceMax", "nothing to reduce"),
    ("ReduceMin", "nothing to reduce"),
    ("Reshape", "a shape that depends on the picture's content"),
    (
        "Resize",
        "`antialias`, `keep_aspect_ratio_policy`, `tf_crop_and_resize`; where the size is free, what is none of \
                ATen's interpolations",
    ),
    ("ScatterElements", "reductions other than `none` and `add`"),
    ("ScatterND", "reductions other than `none` and `add`"),
    ("Slice", "axes and steps that depend on the size; backwards along a part of an axis whose size is free"),
    ("Softmax", "in operator sets before 13, over no axis"),
    ("SpaceToDepth", "`mode`"),
    ("Split", "sizes that depend on the picture's content"),
    ("Tile", "repeats that depend on the picture's content"),
    ("Trilu", "a diagonal that depends on the picture"),
    ("Upsample", "scales that depend on the size"),
];

fn page() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/onnx.md")
}

/// The table, a row for each operator.
fn table() -> String {
    let mut text = String::from("| operator | operator sets | refused |\n|---|---|---|\n");
    for name in operators() {
        let [since, until] = lower::find(name).map_or(lower::VERSIONS, |(since, until, _)| [since, until]);
        let sets = if since == until { since.to_string() } else { format!("{since} to {until}") };
        let refused = REFUSED.binary_search_by(|(known, _)| (*known).cmp(name)).map_or("", |at| REFUSED[at].1);
        text += &format!("| `{name}` | {sets} | {refused} |\n");
    }
    text
}

/// What is before the page's table, and what is behind it.
fn around(text: &str) -> (&str, &str) {
    let begin = text.find("| operator |").expect("the page has the table");
    let length = text[begin..].find("\n\n").map_or(text.len() - begin, |end| end + 1);
    (&text[..begin], &text[begin + length..])
}

#[test]
fn the_table_of_operators_is_in_order_and_the_page_lists_it() {
    let names: Vec<&str> = lower::OPERATORS.iter().map(|(name, ..)| *name).collect();
    assert!(names.is_sorted(), "the table is searched by halves");
    let [oldest, newest] = lower::VERSIONS;
    assert!(lower::OPERATORS.iter().all(|&(_, since, until, _)| oldest <= since && since <= until && until <= newest));
    assert!(REFUSED.is_sorted());
    let known = operators();
    assert!(REFUSED.iter().all(|(name, _)| known.contains(name)));
    let text = fs::read_to_string(page()).unwrap();
    let (before, after) = around(&text);
    assert_eq!(
        text,
        format!("{before}{}{after}", table()),
        "cargo test --release --lib supported -- --ignored writes deploy/onnx.md"
    );
}

#[test]
#[ignore = "writes the table of deploy/onnx.md"]
fn the_page_is_written() {
    let text = fs::read_to_string(page()).unwrap();
    let (before, after) = around(&text);
    fs::write(page(), format!("{before}{}{after}", table())).unwrap();
}

#[test]
fn what_fails_of_onnxs_own_tests_is_in_the_table() {
    let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/onnx/refused.txt"));
    let known = operators();
    let failing: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| Some(line.split_once(": ")?.1.split_once(", ")?.0))
        .filter(|name| known.contains(name))
        .collect();
    assert!(failing.len() > 10, "{failing:?}");
    for name in failing {
        assert!(REFUSED.iter().any(|(listed, _)| *listed == name), "{name}: what is refused?");
    }
}
