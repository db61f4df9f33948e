//! Operators that a file may not call, or not so.

use super::*;

#[test]
fn operators_of_other_namespaces_are_refused() {
    for target in ["prims.add.default", "mylib.relu.default", "aten", "", "aten.", "os.system", "quantized.add.default"]
    {
        Forge::plain().node(target, json!({"self": tensor("conv2d")})).is_refused(&["node forged", "is not"]);
    }
    Forge::plain().nodes(|nodes| nodes[0]["target"] = json!("builtins.eval")).is_refused(&["builtins.eval", "is not"]);
}

#[test]
fn operators_that_are_not_in_libtorch_are_refused() {
    Forge::plain()
        .node("aten.relu9.default", json!({"self": tensor("conv2d")}))
        .is_refused(&["aten.relu9.default (node forged) is not in this libtorch"]);
    Forge::plain()
        .node("aten.relu.nosuch", json!({"self": tensor("conv2d")}))
        .is_refused(&["aten.relu.nosuch (node forged) is not in this libtorch"]);
    Forge::plain()
        .node("aten.re\u{0}lu.default", json!({"self": tensor("conv2d")}))
        .is_refused(&["is not in this libtorch"]);
}

#[test]
fn operators_that_draw_numbers_are_refused() {
    for target in [
        "aten.rand_like.default",
        "aten.bernoulli.default",
        "aten.bernoulli.p",
        "aten.poisson.default",
        "aten.exponential_.default",
        "aten.geometric_.default",
        "aten.randn_like.default",
        "aten.normal_.default",
        "aten.random_.default",
        "aten.binomial.default",
    ] {
        Forge::plain().node(target, json!({"self": tensor("conv2d")})).is_refused(&[
            target,
            "node forged",
            "is random",
        ]);
    }
    Forge::plain()
        .node(
            "aten.scaled_dot_product_attention.default",
            json!({"query": tensor("conv2d"), "key": tensor("conv2d"), "value": tensor("conv2d"),
                "dropout_p": {"as_float": 0.1}}),
        )
        .is_refused(&["node forged", "is random"]);
}

#[test]
fn a_training_flag_that_is_not_plainly_off_is_refused() {
    for flag in [json!({"as_bool": true}), json!({"as_int": 1}), tensor("conv2d")] {
        Forge::plain()
            .node("aten.dropout.default", json!({"input": tensor("conv2d"), "p": {"as_float": 0.5}, "train": flag}))
            .is_refused(&["node forged", "training mode"]);
    }
    Forge::plain()
        .nodes(|nodes| {
            let flag = nodes[1]["inputs"].as_array_mut().unwrap().iter_mut().find(|i| i["name"] == "training").unwrap();
            flag["arg"] = json!({"as_bool": true});
        })
        .is_refused(&["node batch_norm", "training mode"]);
}

#[test]
fn operators_that_reach_beyond_their_tensors_are_refused() {
    for target in [
        "aten.from_file.default",
        "aten.set_.source_Tensor",
        "aten.resize_.default",
        "aten._resize_output_.default",
        "aten._print.default",
        "aten._reshape_alias.default",
        "aten._make_per_tensor_quantized_tensor.default",
        "aten.record_stream.default",
        "aten.to_sparse.default",
        "aten.to_mkldnn.default",
        "aten.quantize_per_tensor.default",
        "aten._cufft_set_plan_cache_max_size.default",
        "aten.range.step",
        "aten.slow_conv3d.default",
        "aten.native_batch_norm.default",
        "aten.special_legendre_polynomial_p.default",
        "aten.relu.out",
        "aten.add.out",
        "aten.native_batch_norm.out",
    ] {
        let error = Forge::plain().node(target, json!({"self": tensor("conv2d")})).error();
        assert!(error.contains("node forged") && error.contains(target), "{target}: {error}");
        assert!(error.contains("never run") || error.contains("writes into"), "{target}: {error}");
    }
}

#[test]
fn an_operator_that_is_never_run_is_refused_with_its_reason_and_with_what_helps() {
    for (target, words) in [
        ("aten.set_.source_Tensor", ["beyond its arguments", "other operators"]),
        ("aten.range.step", ["does not check its arguments", "other operators"]),
        ("aten.to_sparse.default", ["not dense", "other operators"]),
        ("aten.quantize_per_tensor.default", ["quantised", "floating point"]),
        ("aten.native_layer_norm.default", ["decompositions", "without run_decompositions()"]),
        ("aten._native_batch_norm_legit_no_training.default", ["decompositions", "without run_decompositions()"]),
        ("aten.special_legendre_polynomial_p.default", ["any amount of time", "other operators"]),
    ] {
        Forge::plain().node(target, json!({"self": tensor("conv2d")})).is_refused(&words);
    }
}

#[test]
fn checks_that_torch_made_at_export_are_left_out() {
    let graph =
        Forge::plain().node("aten._assert_tensor_metadata.default", json!({"a": tensor("nobody")})).load().unwrap();
    assert_eq!(graph.nodes.len(), 8);
}

#[test]
fn arguments_of_the_wrong_number_or_kind_are_named() {
    for (target, inputs, words) in [
        ("aten.relu.default", json!({}), "argument self of aten.relu.default is missing"),
        (
            "aten.relu.default",
            json!({"self": tensor("conv2d"), "x": {"as_int": 1}}),
            "aten.relu.default has no argument x",
        ),
        (
            "aten.relu.default",
            json!({"0": tensor("conv2d"), "1": tensor("conv2d")}),
            "aten.relu.default has no argument number 1",
        ),
        ("aten.relu.default", json!({"self": {"as_ints": [1]}}), "argument self: takes Tensor, got a list of integers"),
        ("aten.relu.default", json!({"self": {"as_none": true}}), "argument self: takes Tensor, got none"),
        ("aten.cat.default", json!({"tensors": tensor("conv2d")}), "argument tensors: takes Tensors, got a tensor"),
        ("aten.cat.default", json!({"tensors": {"as_tensors": []}}), "aten.cat.default"),
        (
            "aten.permute.default",
            json!({"self": tensor("conv2d"), "dims": {"as_string": "0"}}),
            "argument dims: takes Ints, got a string",
        ),
        (
            "aten.permute.default",
            json!({"self": tensor("conv2d"), "dims": {"as_ints": [0, 0, 0, 0]}}),
            "node forged: operator aten.permute.default",
        ),
        ("aten.relu.default", json!({"self": {"as_operator": "x"}}), "node forged has an argument of kind as_operator"),
        ("aten.to.dtype", json!({"self": tensor("conv2d"), "dtype": {"as_scalar_type": 99}}), "dtype number 99"),
        ("aten.to.dtype", json!({"self": tensor("conv2d"), "dtype": {"as_int": 99}}), "there is no dtype 99"),
        ("aten.clone.default", json!({"self": tensor("conv2d"), "memory_format": {"as_int": 9}}), "no memory format 9"),
        (
            "aten.zeros_like.default",
            json!({"self": tensor("conv2d"), "layout": {"as_int": 2}}),
            "only dense tensors are run",
        ),
    ] {
        Forge::plain().node(target, inputs).is_refused(&["forged", words]);
    }
    let twice = Forge::plain().nodes(|nodes| {
        let mut forged = node("aten.relu.default", json!({"self": tensor("conv2d")}), "forged");
        let input = forged["inputs"][0].clone();
        forged["inputs"].as_array_mut().unwrap().push(input);
        nodes.insert(1, forged);
    });
    twice.is_refused(&["node forged", "argument self of aten.relu.default is given twice"]);
}
