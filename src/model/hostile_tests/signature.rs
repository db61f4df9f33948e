//! Lies about what goes in and what comes out.

use super::*;

/// Changes the signature's inputs; the image is the last of them.
fn inputs(change: impl FnOnce(&mut Vec<Json>)) -> Forge {
    Forge::plain().module(|module| change(module["signature"]["input_specs"].as_array_mut().unwrap()))
}

#[test]
fn a_parameter_without_a_weight_is_named() {
    inputs(|specs| specs[0]["parameter"]["parameter_name"] = json!("nowhere.weight"))
        .is_refused(&["nowhere.weight", "the graph uses it, and the file does not hold it"]);
}

#[test]
fn a_parameter_of_another_shape_is_an_error_of_the_node_that_uses_it() {
    inputs(|specs| specs[0]["parameter"]["parameter_name"] = json!("fc.weight")).is_refused(&["node conv2d"]);
}

#[test]
fn a_placeholder_stands_for_one_thing() {
    inputs(|specs| {
        let first = specs[0].clone();
        specs.push(first);
    })
    .is_refused(&["the signature defines p_conv1_weight, which is defined already"]);
}

#[test]
fn two_images_and_none_are_refused() {
    inputs(|specs| specs.push(json!({"user_input": {"arg": {"as_tensor": {"name": "y"}}}})))
        .is_refused(&["no shape for input y"]);
    let two =
        inputs(|specs| specs.push(json!({"user_input": {"arg": {"as_tensor": {"name": "y"}}}}))).module(|module| {
            let meta = module["graph"]["tensor_values"]["x"].clone();
            module["graph"]["tensor_values"]["y"] = meta;
        });
    two.is_refused(&["the model takes 2 tensors, and camlens gives it one image"]);
    inputs(|specs| {
        specs.pop();
    })
    .is_refused(&["node conv2d reads x"]);
}

#[test]
fn an_image_of_a_size_that_no_image_has_is_refused() {
    let x = |key: &'static str, value: Json| {
        Forge::plain().module(move |module| module["graph"]["tensor_values"]["x"][key] = value)
    };
    let sizes = |list: &[i64]| list.iter().map(|v| json!({"as_int": v})).collect::<Json>();
    for list in [[1, 3, 0, 16], [1, 3, -16, 16], [1, 3, 1 << 40, 1 << 40], [1, 3, i64::MAX, 2], [1, i64::MIN, 16, 16]] {
        x("sizes", sizes(&list)).is_refused(&["exported with an image of"]);
    }
    let rows = json!({"as_expr": {"expr_str": "s0", "hint": {"as_int": 1u64 << 50}}});
    let batch = json!([rows, {"as_int": 3}, {"as_int": 16}, {"as_int": 16}]);
    x("sizes", batch).is_refused(&["exported with an image of"]);
    let none = json!([{"as_expr": {"expr_str": "s0", "hint": null}}, {"as_int": 3}, {"as_int": 16}, {"as_int": 16}]);
    x("sizes", none).is_refused(&["a size of input x has no example"]);
    x("sizes", sizes(&[3, 16, 16])).is_refused(&["the model takes 3 axes"]);
    x("sizes", sizes(&[7, 3, 16, 16])).is_refused(&["the batch was fixed to 7"]);
    x("sizes", json!([{"as_float": 1.5}])).is_refused(&["models/model.json", "as_float"]);
    x("dtype", json!(5)).is_refused(&["the model takes Int64 pixels"]);
    x("dtype", json!(99)).is_refused(&["dtype number 99"]);
}

#[test]
fn inputs_and_outputs_of_unknown_kinds_are_refused() {
    inputs(|specs| specs.push(json!({"custom_obj": {"arg": {"name": "o"}}})))
        .is_refused(&["an input of kind custom_obj"]);
    inputs(|specs| specs.push(json!({"a": 1, "b": 2}))).is_refused(&["models/model.json", "one key"]);
    inputs(|specs| specs.push(json!({}))).is_refused(&["models/model.json", "one key"]);
    Forge::plain()
        .module(|module| module["signature"]["output_specs"][0] = json!({"loss_output": {"arg": {"name": "linear"}}}))
        .is_refused(&["an output of kind loss_output"]);
}

#[test]
fn more_outputs_than_a_model_has_are_refused() {
    Forge::plain()
        .module(|module| {
            let spec = module["signature"]["output_specs"][0].clone();
            module["signature"]["output_specs"] = (0..1025).map(|_| spec.clone()).collect();
        })
        .is_refused(&["1025 outputs, and 1024 are allowed"]);
}

#[test]
fn names_of_outputs_that_grow_without_end_are_not_made() {
    let leaf = r#"{"type": null, "context": null, "children_spec": []}"#;
    let many = format!(
        r#"[1, {{"type": "builtins.tuple", "context": "null", "children_spec": [{}]}}]"#,
        vec![leaf; 100_000].join(",")
    );
    let long = format!(
        r#"[1, {{"type": "builtins.dict", "context": "[\"{}\"]", "children_spec": [{leaf}]}}]"#,
        "k".repeat(100_000)
    );
    for spec in [many, long] {
        let graph = Forge::plain()
            .module(|module| module["module_call_graph"][0]["signature"]["out_spec"] = json!(spec))
            .load()
            .unwrap();
        assert_eq!(graph.outputs[0].name, "0");
    }
}
