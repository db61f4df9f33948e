//! Lies about names and structure.

use super::*;

#[test]
fn a_value_that_nothing_defines_is_named_with_its_reader() {
    Forge::plain()
        .node("aten.relu.default", json!({"self": tensor("nobody")}))
        .is_refused(&["node forged reads nobody, which nothing defines before it"]);
}

#[test]
fn a_value_that_is_defined_later_is_not_read() {
    Forge::plain()
        .nodes(|nodes| nodes.swap(0, 1))
        .is_refused(&["node batch_norm reads conv2d, which nothing defines before it"]);
    Forge::plain()
        .node("aten.relu.default", json!({"self": tensor("forged")}))
        .is_refused(&["node forged reads forged"]);
}

#[test]
fn a_value_has_one_definition() {
    let again = |output: &'static str| {
        Forge::plain().nodes(move |nodes| {
            nodes.push(node("aten.view.default", json!({"self": tensor("linear"), "size": {"as_ints": [-1]}}), output));
        })
    };
    again("conv2d").is_refused(&["node conv2d defines conv2d, which is defined already"]);
    again("x").is_refused(&["node x defines x"]);
    again("p_fc_weight").is_refused(&["defines p_fc_weight"]);
}

#[test]
fn views_that_look_at_each_other_do_not_end_in_a_loop() {
    let view = |source: &str, output: &str| {
        node("aten.view.default", json!({"self": tensor(source), "size": {"as_ints": [-1]}}), output)
    };
    Forge::plain()
        .nodes(|nodes| {
            nodes.splice(1..1, [view("conv2d", "a"), view("a", "b"), view("b", "a")]);
            nodes.insert(4, node("aten.relu_.default", json!({"self": tensor("a")}), "c"));
        })
        .is_refused(&["node a defines a, which is defined already"]);
}

#[test]
fn names_that_camlens_makes_cannot_be_taken() {
    for name in ["conv2d#5", "block/x", "", "a b", "a\nb", "\u{0}"] {
        Forge::plain()
            .nodes(|nodes| nodes[0]["outputs"] = json!([{"as_tensor": {"name": name}}]))
            .is_refused(&["a value is called", "letters, digits"]);
    }
}

#[test]
fn a_name_as_long_as_a_book_is_refused_and_not_repeated_in_full() {
    let long = "a".repeat(1 << 20);
    let forge = Forge::plain().nodes(|nodes| nodes[0]["outputs"] = json!([{"as_tensor": {"name": long}}]));
    forge.is_refused(&["1048576 bytes, and 4096 are allowed"]);
    assert!(forge.error().len() < 1000);
    let target = format!("torch.ops.aten.{}", "b".repeat(1 << 20));
    let forge = Forge::plain().nodes(|nodes| nodes[0]["target"] = json!(target));
    assert!(forge.error().len() < 1000);
}

#[test]
fn module_paths_of_any_length_do_no_harm() {
    let stack = format!("{},conv1,torch.nn.Conv2d", ",".repeat(1 << 20));
    let graph = Forge::plain().nodes(|nodes| nodes[0]["metadata"]["nn_module_stack"] = json!(stack)).load().unwrap();
    assert!(graph.layer("conv1").unwrap_err().to_string().contains("conv1 leaves nothing"));
}

#[test]
fn an_output_that_nothing_computes_is_refused() {
    Forge::plain()
        .module(|module| {
            module["signature"]["output_specs"][0]["user_output"]["arg"]["as_tensor"]["name"] = json!("ghost")
        })
        .is_refused(&["the signature reads ghost"]);
}

#[test]
fn more_names_than_results_are_refused() {
    Forge::plain()
        .nodes(|nodes| {
            let outputs = nodes[0]["outputs"].as_array_mut().unwrap();
            outputs.push(json!({"as_tensor": {"name": "second"}}));
        })
        .is_refused(&["node conv2d", "its 2 names stand for 1 result"]);
}

#[test]
fn deep_nesting_is_refused_before_the_stack_ends() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}"), ("{\"as_graph\":{\"graph\":", "}}")] {
        let deep = format!("{}0{}", open.repeat(1 << 18), close.repeat(1 << 18));
        // Where it is skipped, …
        let mut forge = Forge::plain();
        let text = String::from_utf8(forge.entry(GRAPH).clone()).unwrap();
        *forge.entry(GRAPH) = text.replacen('{', &format!("{{\"extra\":{deep},"), 1).into_bytes();
        assert_eq!(forge.load().unwrap().nodes.len(), 8, "{open}");
        // … and where it is read.
        for key in ["\"nodes\": [", "\"inputs\": [{\"name\": \"input\", \"arg\": "] {
            let mut forge = Forge::plain();
            let at = text.find(key).unwrap_or_else(|| panic!("{key}")) + key.len();
            let text = format!("{}{deep},{}", &text[..at], &text[at..]);
            *forge.entry(GRAPH) = text.into_bytes();
            forge.is_refused(&["models/model.json"]);
        }
        // A result's tree is JSON within the JSON.
        let graph = Forge::plain()
            .module(|module| module["module_call_graph"][0]["signature"]["out_spec"] = json!(deep))
            .load()
            .unwrap();
        assert_eq!(graph.outputs[0].name, "0");
    }
}

#[test]
fn more_nodes_than_allowed_are_refused() {
    let forge = Forge::plain().nodes(|nodes| {
        for i in 0..500 {
            nodes.push(node("aten.relu.default", json!({"self": tensor("linear")}), &format!("r{i}")));
        }
    });
    let limits = LoadLimits { max_nodes: 400, ..LoadLimits::default() };
    let error = load(forge.zipped(CompressionMethod::Stored), &limits).unwrap_err().to_string();
    assert!(error.contains("the graph is 401, and 400 is allowed (max_nodes)"), "{error}");
}

#[test]
fn writes_into_many_views_end_at_the_limit_of_nodes() {
    // Each write makes every live view of the memory anew.
    let forge = Forge::plain().nodes(|nodes| {
        let mut forged = Vec::new();
        for i in 0..300 {
            let inputs = json!({"self": tensor("conv2d"), "dim": {"as_int": 2}, "start": {"as_int": 1}});
            forged.push(node("aten.slice.Tensor", inputs, &format!("v{i}")));
        }
        for i in 0..300 {
            forged.push(node("aten.relu_.default", json!({"self": tensor(&format!("v{i}"))}), &format!("w{i}")));
        }
        let all: Vec<Json> = (0..300).map(|i| json!({"name": format!("v{i}")})).collect();
        forged.push(node("aten.cat.default", json!({"tensors": {"as_tensors": all}}), "all"));
        nodes.splice(1..1, forged);
    });
    let limits = LoadLimits { max_nodes: 1000, ..LoadLimits::default() };
    let loaded = load(forge.zipped(CompressionMethod::Stored), &limits);
    let error = loaded.map(|graph| graph.nodes.len()).map_err(|e| e.to_string());
    assert!(
        error.as_ref().is_ok_and(|&n| n <= 2000) || error.as_ref().is_err_and(|e| e.contains("max_nodes")),
        "{error:?}"
    );
}

#[test]
fn what_is_no_graph_is_refused() {
    for text in [
        "",
        "null",
        "[]",
        "3",
        "{}",
        "{\"schema_version\": 3}",
        "\u{feff}{}",
        "{\"schema_version\": {\"major\": 1e999}}",
    ] {
        let mut forge = Forge::plain();
        *forge.entry(GRAPH) = text.into();
        forge.is_refused(&["models/model.json"]);
    }
    let mut forge = Forge::plain();
    *forge.entry(GRAPH) = vec![0xff; 100];
    forge.is_refused(&["models/model.json"]);
    for key in ["nodes", "tensor_values"] {
        let forge = Forge::plain().module(|module| {
            module["graph"].as_object_mut().unwrap().remove(key);
        });
        assert!(forge.error().contains(key) || forge.error().contains("no shape for input x"), "{}", forge.error());
    }
}

#[test]
fn a_block_without_gradients_must_be_whole() {
    let block = |change: fn(&mut Json)| {
        Forge::fixture("../conformance/no_grad_inside/1/model.pt2").nodes(|nodes| {
            let block = nodes.iter_mut().find(|n| n["target"].as_str().unwrap().contains("set_grad_enabled")).unwrap();
            change(block);
        })
    };
    assert!(block(|_| ()).load().is_ok());
    block(|b| b["inputs"] = json!([])).is_refused(&["does not say its mode"]);
    block(|b| b["inputs"].as_array_mut().unwrap().truncate(1)).is_refused(&["has no graph"]);
    block(|b| b["inputs"].as_array_mut().unwrap().truncate(2)).is_refused(&["reads", "which nothing defines"]);
    block(|b| b["outputs"] = json!([])).is_refused(&["hands out 1 values under 0 names"]);
}

/// A node of the module `path`, which is added to the program's modules.
fn in_module(module: &mut Json, mut node: Json, path: &str) -> Json {
    module["module_call_graph"].as_array_mut().unwrap().push(json!({"fqn": path, "signature": null}));
    node["metadata"]["nn_module_stack"] = json!(format!("L__self__,,M;L__{path},{path},M"));
    node
}

#[test]
fn a_module_that_only_computes_sizes_means_no_layer() {
    let graph = Forge::plain()
        .module(|module| {
            let size = json!({"target": "torch.ops.aten.sym_size.int", "name": "s", "metadata": {},
                "inputs": [{"name": "self", "arg": tensor("conv2d")}, {"name": "dim", "arg": {"as_int": 2}}],
                "outputs": [{"as_sym_int": {"as_name": "s"}}]});
            let size = in_module(module, size, "measure");
            module["graph"]["nodes"].as_array_mut().unwrap().insert(1, size);
        })
        .load()
        .unwrap();
    let error = graph.layer("measure").unwrap_err().to_string();
    assert!(error.contains("measure leaves nothing in the graph") && error.contains("conv1"), "{error}");
    assert!(graph.layer_values()["measure"].is_err());
}

#[test]
fn thousands_of_modules_take_seconds_and_messages_stay_short() {
    let count = 5000;
    let graph = Forge::plain()
        .module(|module| {
            let mut forged = Vec::new();
            for i in 0..count {
                // Each module hands out two maps, so that it means neither.
                for half in ["a", "b"] {
                    let name = format!("r{i}{half}");
                    let relu = node("aten.relu.default", json!({"self": tensor("conv2d")}), &name);
                    let mut relu = in_module(module, relu, &format!("m{i}"));
                    relu["metadata"]["nn_module_stack"] = json!(format!("K,m{i},M"));
                    forged.push(relu);
                    forged.push(node("aten.relu.default", json!({"self": tensor(&name)}), &format!("o{i}{half}")));
                }
            }
            module["graph"]["nodes"].as_array_mut().unwrap().splice(1..1, forged);
        })
        .load()
        .unwrap();
    let start = std::time::Instant::now();
    let values = graph.layer_values();
    assert!(start.elapsed().as_secs() < 20);
    let error = values["m7"].as_ref().unwrap_err().to_string();
    assert!(error.contains("m7 hands out several values"), "{error}");
    assert!(graph.layer("nothing_like_it").unwrap_err().to_string().len() < 2000);
}
