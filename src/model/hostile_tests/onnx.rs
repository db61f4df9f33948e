//! Files of ONNX that lie.

use std::fs;
use std::path::Path;
use std::time::Instant;

use prost::Message;
use prost::bytes::Bytes;

use crate::model::graph::Graph;
use crate::model::import::onnx::message::tensor_shape_proto::Dimension;
use crate::model::import::onnx::message::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto,
    TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};
use crate::model::{LoadLimits, ModelError};

fn text(value: &str) -> Option<String> {
    Some(value.to_owned())
}

fn node(operator: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto {
        op_type: text(operator),
        input: inputs.iter().map(|name| (*name).to_owned()).collect(),
        output: outputs.iter().map(|name| (*name).to_owned()).collect(),
        name: text(&format!("node_of_{}", outputs.join("_"))),
        ..NodeProto::default()
    }
}

fn ints(name: &str, values: &[i64]) -> TensorProto {
    TensorProto {
        name: text(name),
        data_type: Some(7),
        dims: vec![values.len() as i64],
        int64_data: values.to_vec(),
        ..TensorProto::default()
    }
}

fn value(name: &str, sizes: &[i64]) -> ValueInfoProto {
    let dim = sizes.iter().map(|&size| Dimension { dim_value: Some(size), dim_param: None }).collect();
    let tensor = type_proto::Tensor { elem_type: Some(1), shape: Some(TensorShapeProto { dim }) };
    ValueInfoProto { name: text(name), r#type: Some(TypeProto { tensor_type: Some(tensor) }) }
}

/// A model that takes `x`, [1, 3, 8, 8], and gives `y`.
fn model(node: Vec<NodeProto>, initializer: Vec<TensorProto>) -> ModelProto {
    let graph = GraphProto {
        node,
        initializer,
        input: vec![value("x", &[1, 3, 8, 8])],
        output: vec![value("y", &[])],
        ..GraphProto::default()
    };
    ModelProto {
        ir_version: Some(8),
        graph: Some(graph),
        opset_import: vec![OperatorSetIdProto { domain: None, version: Some(17) }],
        ..ModelProto::default()
    }
}

/// Nodes that make `y` of `x`, with `forged` between.
fn between(forged: NodeProto) -> Vec<NodeProto> {
    vec![
        forged,
        node("Relu", &["f"], &["r"]),
        node("GlobalAveragePool", &["r"], &["p"]),
        node("Flatten", &["p"], &["y"]),
    ]
}

fn load_bytes(folder: &Path, bytes: &[u8], limits: &LoadLimits) -> Result<Graph, ModelError> {
    let file = folder.join("model.onnx");
    fs::write(&file, bytes).unwrap();
    Graph::load(&file, limits)
}

fn error_in(folder: &Path, model: &ModelProto) -> String {
    load_bytes(folder, &model.encode_to_vec(), &LoadLimits::default()).expect_err("the file was loaded").to_string()
}

#[track_caller]
fn is_refused(model: &ModelProto, words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let error = error_in(folder.path(), model);
    assert!(words.iter().all(|word| error.contains(word)), "{words:?} are not all in: {error}");
}

#[test]
fn a_file_that_does_not_lie_loads() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(between(node("Relu", &["x"], &["f"])), Vec::new());
    let graph = load_bytes(folder.path(), &model.encode_to_vec(), &LoadLimits::default()).unwrap();
    assert_eq!(graph.nodes.len(), 4);
}

#[test]
fn nodes_in_a_circle_and_names_that_are_defined_twice_are_named() {
    is_refused(&model(between(node("Add", &["x", "p"], &["f"])), Vec::new()), &["node_of_f", "reads p", "circle"]);
    let twice = vec![node("Relu", &["x"], &["f"]), node("Abs", &["x"], &["f"])];
    is_refused(&model(twice, Vec::new()), &["f is defined twice"]);
    is_refused(&model(vec![node("Relu", &["x"], &["z"])], Vec::new()), &["nothing defines the output y"]);
}

fn external(name: &str, entries: &[(&str, &str)]) -> TensorProto {
    let entry = |(key, value): &(&str, &str)| StringStringEntryProto { key: text(key), value: text(value) };
    TensorProto {
        name: text(name),
        data_type: Some(1),
        dims: vec![3, 1, 1],
        data_location: Some(1),
        external_data: entries.iter().map(entry).collect(),
        ..TensorProto::default()
    }
}

#[test]
fn data_outside_the_models_directory_is_not_read() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), [0; 64]).unwrap();
    let folder = tempfile::tempdir_in(outside.path()).unwrap();
    std::os::unix::fs::symlink(outside.path().join("secret"), folder.path().join("link")).unwrap();
    fs::write(folder.path().join("weights"), [0; 12]).unwrap();
    fs::create_dir(folder.path().join("directory")).unwrap();
    let of = |entries: &[(&str, &str)]| model(between(node("Add", &["x", "w"], &["f"])), vec![external("w", entries)]);
    let absolute = outside.path().join("secret");
    for (location, says) in [
        ("../secret", "only files in the model's own directory"),
        (absolute.to_str().unwrap(), "only files in the model's own directory"),
        ("", "only files in the model's own directory"),
        ("link", "symbolic link"),
        ("model.onnx", "the model's own file"),
        ("./model.onnx", "the model's own file"),
        ("directory", "no regular file"),
        ("nowhere", "not there"),
    ] {
        let error = error_in(folder.path(), &of(&[("location", location)]));
        assert!(error.contains(says), "{location}: {error}");
    }
    for (offset, length) in [("4", "12"), ("18446744073709551615", "12"), ("0", "13"), ("0", "8"), ("-1", "12")] {
        let entries = [("location", "weights"), ("offset", offset), ("length", length)];
        let error = error_in(folder.path(), &of(&entries));
        assert!(error.contains("bytes"), "{offset} {length}: {error}");
    }
    let whole = of(&[("location", "weights"), ("offset", "0"), ("length", "12")]);
    load_bytes(folder.path(), &whole.encode_to_vec(), &LoadLimits::default()).unwrap();
}

#[test]
fn sizes_that_overflow_or_do_not_fit_are_told_before_memory_is_taken() {
    let weight = |dims: Vec<i64>, raw: &'static [u8]| TensorProto {
        name: text("w"),
        data_type: Some(1),
        dims,
        raw_data: Some(Bytes::from_static(raw)),
        ..TensorProto::default()
    };
    let of = |weight| model(between(node("Add", &["x", "w"], &["f"])), vec![weight]);
    is_refused(&of(weight(vec![1 << 40, 1 << 40], &[])), &["w", "overflows"]);
    is_refused(&of(weight(vec![-1], &[])), &["w", "negative"]);
    is_refused(&of(weight(vec![3, 1, 1], &[0; 11])), &["w", "11 bytes"]);
    is_refused(&of(weight(vec![1 << 34], &[0; 4])), &["weights", "max_weight_bytes"]);
    is_refused(&of(weight(vec![1; 100], &[0; 4])), &["w", "100 axes"]);
    let unknown = TensorProto { data_type: Some(99), ..weight(vec![1], &[0; 4]) };
    is_refused(&of(unknown), &["dtype 99"]);
    let short = TensorProto { raw_data: None, float_data: vec![1.0], ..weight(vec![3, 1, 1], &[]) };
    is_refused(&of(short), &["w", "1 elements"]);
}

#[test]
fn operators_that_make_much_of_little_are_bounded() {
    let weight = TensorProto {
        name: text("s"),
        data_type: Some(1),
        dims: vec![3, 1, 1, 1],
        float_data: vec![1.0; 3],
        ..TensorProto::default()
    };
    let with_ints = |operator: &str, name: &str, values: &[i64]| {
        let attribute = AttributeProto { name: text(name), ints: values.to_vec(), ..AttributeProto::default() };
        let inputs: &[&str] = if operator == "MaxPool" { &["x"] } else { &["x", "s"] };
        NodeProto { attribute: vec![attribute], ..node(operator, inputs, &["f"]) }
    };
    for (forged, constants, says) in [
        (node("Expand", &["x", "s"], &["f"]), vec![ints("s", &[1 << 30, 1 << 30, 1, 1, 1])], "node_of_f"),
        (node("Tile", &["x", "s"], &["f"]), vec![ints("s", &[1 << 20, 1 << 20, 1, 1])], "max_value_bytes"),
        (node("ConstantOfShape", &["s"], &["f"]), vec![ints("s", &[1 << 40])], "node_of_f"),
        (
            node("Range", &["a", "s", "b"], &["f"]),
            vec![ints("a", &[0]), ints("s", &[1 << 60]), ints("b", &[1])],
            "range",
        ),
        (node("Pad", &["x", "s"], &["f"]), vec![ints("s", &[0, 0, 0, 0, 0, 0, 1 << 40, 0])], "node_of_f"),
        (node("Reshape", &["x", "s"], &["f"]), vec![ints("s", &[i64::MIN, i64::MAX])], "node_of_f"),
        (node("Resize", &["x", "", "", "s"], &["f"]), vec![ints("s", &[1, 3, 1 << 40, 8])], "new size"),
        (with_ints("ConvTranspose", "strides", &[1 << 40, 1 << 40]), vec![weight], "strides"),
        (with_ints("MaxPool", "kernel_shape", &[i64::MAX, i64::MIN]), Vec::new(), "kernel"),
    ] {
        let before = Instant::now();
        is_refused(&model(between(forged), constants), &[says]);
        assert!(before.elapsed().as_secs() < 30);
    }
}

#[test]
fn a_million_nodes_and_millions_of_fields_are_counted_before_they_are_made() {
    let folder = tempfile::tempdir().unwrap();
    let many = model((0..1_000_000).map(|_| NodeProto::default()).collect(), Vec::new());
    let error = error_in(folder.path(), &many);
    assert!(error.contains("max_nodes") && error.contains("200001"), "{error}");
    let attributes = NodeProto { attribute: vec![AttributeProto::default(); 7_000_000], ..NodeProto::default() };
    let error = error_in(folder.path(), &model(vec![attributes], Vec::new()));
    assert!(error.contains("number of the graph's fields"), "{error}");
    let limits = LoadLimits { max_graph_bytes: 1000, ..LoadLimits::default() };
    let long = model(between(node(&"x".repeat(2000), &["x"], &["f"])), Vec::new());
    let error = load_bytes(folder.path(), &long.encode_to_vec(), &limits).unwrap_err().to_string();
    assert!(error.contains("max_graph_bytes"), "{error}");
}

/// A branch in a branch in a branch, …
fn nested(depth: usize) -> NodeProto {
    let inner = if depth == 0 { node("Relu", &["x"], &["b"]) } else { nested(depth - 1) };
    let graph = GraphProto { node: vec![inner], output: vec![value("b", &[])], ..GraphProto::default() };
    let branch = AttributeProto { name: text("then_branch"), g: Some(graph), ..AttributeProto::default() };
    NodeProto { attribute: vec![branch], ..node("If", &["c"], &["b"]) }
}

#[test]
fn deep_nesting_and_functions_that_double_end() {
    let condition = TensorProto { data_type: Some(9), int32_data: vec![1], dims: vec![1], ..ints("c", &[]) };
    let condition = TensorProto { int64_data: Vec::new(), ..condition };
    for (depth, says) in [(5, None), (15, Some("nested")), (100, Some("nested"))] {
        let mut outer = nested(depth);
        outer.output = vec!["f".to_owned()];
        let deep = model(between(outer), vec![condition.clone()]);
        match says {
            Some(says) => is_refused(&deep, &[says]),
            None => {
                let folder = tempfile::tempdir().unwrap();
                load_bytes(folder.path(), &deep.encode_to_vec(), &LoadLimits::default()).unwrap();
            }
        }
    }
    let call =
        |name: &str, input: &str, output: &str| NodeProto { domain: text("own"), ..node(name, &[input], &[output]) };
    let function = |name: &str, inner: &str| FunctionProto {
        name: text(name),
        domain: text("own"),
        input: vec!["a".to_owned()],
        output: vec!["c".to_owned()],
        node: (0..8)
            .map(|at| call(inner, "a", if at == 7 { "c" } else { ["b0", "b1", "b2", "b3", "b4", "b5", "b6"][at] }))
            .collect(),
        ..FunctionProto::default()
    };
    let mut doubling = model(between(call("f8", "x", "f")), Vec::new());
    doubling.functions = (1..=8).map(|at| function(&format!("f{at}"), &format!("f{}", at - 1))).collect();
    let last = FunctionProto { node: vec![node("Relu", &["a"], &["c"])], ..function("f0", "") };
    doubling.functions.push(last);
    is_refused(&doubling, &["max_nodes"]);
    let mut endless = model(between(call("f1", "x", "f")), Vec::new());
    endless.functions = vec![function("f1", "f1")];
    is_refused(&endless, &["nested more than"]);
}

#[test]
fn unknown_operators_are_listed_at_once_and_unknown_attributes_named() {
    let nodes = vec![
        node("NonMaxSuppression", &["x"], &["a"]),
        NodeProto { domain: text("com.example"), ..node("Magic", &["x"], &["b"]) },
        node("Loop", &["x"], &["y"]),
    ];
    let words = ["NonMaxSuppression (node node_of_a)", "com.example.Magic (node node_of_b)", "Loop (node node_of_y)"];
    is_refused(&model(nodes, Vec::new()), &words);
    let attribute = AttributeProto { name: text("sparkle"), i: Some(1), ..AttributeProto::default() };
    let odd = NodeProto { attribute: vec![attribute], ..node("Relu", &["x"], &["f"]) };
    is_refused(&model(between(odd), Vec::new()), &["node_of_f (Relu)", "attribute sparkle"]);
    let mut old = model(between(node("Relu", &["x"], &["f"])), Vec::new());
    old.opset_import[0].version = Some(6);
    is_refused(&old, &["operator set 6", "7 to 23"]);
    is_refused(&model(between(node("Relu", &[], &["f"])), Vec::new()), &["node_of_f (Relu)", "input 0 is missing"]);
    is_refused(&model(between(node("Conv", &["x", "s"], &["f"])), vec![ints("s", &[1])]), &["node_of_f (Conv)"]);
}

#[test]
fn a_file_that_is_cut_off_or_is_something_else_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let whole = model(between(node("Relu", &["x"], &["f"])), Vec::new()).encode_to_vec();
    for length in 0..whole.len() {
        // A cut between two fields of the model leaves a shorter model, which lacks something.
        assert!(load_bytes(folder.path(), &whole[..length], &LoadLimits::default()).is_err(), "{length}");
    }
    for bytes in
        [&b"PK\x03\x04 a zip"[..], b"\x80\x02}q\0", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", b"\x0b\x0c"]
    {
        let error = load_bytes(folder.path(), bytes, &LoadLimits::default()).unwrap_err().to_string();
        assert!(error.contains("damaged") || error.contains("no model of ONNX"), "{error}");
    }
}
