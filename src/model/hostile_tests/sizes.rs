//! Calls that would take more memory than there is, or end the process.

use super::*;

/// Calls that are refused before they run, with what is said.
fn refused_calls() -> Vec<(&'static str, Json, &'static str)> {
    let x = || tensor("conv2d");
    let ints = |list: &[i64]| json!({"as_ints": list});
    let int = |v: i64| json!({"as_int": v});
    let far = 1i64 << 40;
    vec![
        ("aten.new_zeros.default", json!({"self": x(), "size": ints(&[far])}), "argument size: 1099511627776"),
        ("aten.new_zeros.default", json!({"self": x(), "size": ints(&[1 << 20, 1 << 20])}), "max_value_bytes"),
        ("aten.zeros.default", json!({"size": ints(&[1 << 31, 1 << 31])}), "max_value_bytes"),
        ("aten.expand.default", json!({"self": x(), "size": ints(&[1 << 30, -1, -1, -1, -1])}), "max_value_bytes"),
        ("aten.repeat.default", json!({"self": x(), "repeats": ints(&[1 << 20, 1 << 20, 1, 1])}), "max_value_bytes"),
        ("aten.pad.default", json!({"self": x(), "pad": ints(&[1 << 30, 1 << 30])}), "max_value_bytes"),
        (
            "aten.constant_pad_nd.default",
            json!({"self": x(), "pad": ints(&[0, 1 << 20, 0, 1 << 20])}),
            "max_value_bytes",
        ),
        (
            "aten.adaptive_avg_pool2d.default",
            json!({"self": x(), "output_size": ints(&[1 << 20, 1 << 20])}),
            "max_value_bytes",
        ),
        (
            "aten.upsample_nearest2d.vec",
            json!({"input": x(), "output_size": {"as_none": true}, "scale_factors": {"as_floats": [1e6, 1e6]}}),
            "max_value_bytes",
        ),
        (
            "aten.upsample_nearest2d.default",
            json!({"self": x(), "output_size": ints(&[1 << 20, 1 << 20])}),
            "max_value_bytes",
        ),
        ("aten.arange.default", json!({"end": int(far)}), "max_value_bytes"),
        ("aten.arange.default", json!({"end": {"as_float": "NaN"}}), "max_value_bytes"),
        ("aten.arange.default", json!({"end": {"as_float": "Infinity"}}), "max_value_bytes"),
        (
            "aten.arange.start_step",
            json!({"start": int(0), "end": int(1), "step": {"as_float": 0.5}, "dtype": {"as_scalar_type": 4}}),
            "step",
        ),
        ("aten.full.default", json!({"size": ints(&[1 << 31, 8]), "fill_value": int(0)}), "max_value_bytes"),
        ("aten.eye.default", json!({"n": int(1 << 20)}), "max_value_bytes"),
        ("aten.eye.m", json!({"n": int(1 << 30), "m": int(1 << 30)}), "max_value_bytes"),
        ("aten.linspace.default", json!({"start": int(0), "end": int(1), "steps": int(far)}), "argument steps"),
        (
            "aten.lstm.input",
            json!({"input": x(), "hx": {"as_tensors": [{"name": "conv2d"}, {"name": "conv2d"}]},
                "params": {"as_tensors": []},
                "has_biases": {"as_bool": true}, "num_layers": int(1), "dropout": {"as_float": 0.0},
                "train": {"as_bool": false}, "bidirectional": {"as_bool": false}, "batch_first": {"as_bool": true}}),
            "takes 4 weights and 2 states",
        ),
        ("aten.roll.default", json!({"self": x(), "shifts": ints(&[i64::MIN]), "dims": ints(&[0])}), "argument shifts"),
        ("aten.select.int", json!({"self": x(), "dim": int(i64::MIN), "index": int(0)}), "argument dim"),
        (
            "aten.max_pool2d.default",
            json!({"self": x(), "kernel_size": ints(&[2, 2]), "stride": ints(&[far, far])}),
            "argument stride",
        ),
        (
            "aten.floor_divide.default",
            json!({"self": tensor("b_bn1_num_batches_tracked"), "other": tensor("minus")}),
            "divides whole numbers by -1",
        ),
        ("aten.reflection_pad3d.default", json!({"self": x(), "padding": ints(&[])}), "padding"),
        ("aten._weight_norm.default", json!({"v": x(), "g": tensor("p_bn1_bias"), "dim": int(1)}), "_weight_norm"),
    ]
}

#[test]
fn calls_that_ask_for_too_much_are_refused_before_they_run() {
    for (target, inputs, words) in refused_calls() {
        let forge = Forge::plain().nodes(|nodes| {
            let minus = json!({"size": {"as_ints": [1]}, "fill_value": {"as_int": -1}, "dtype": {"as_scalar_type": 5}});
            nodes.insert(1, node("aten.full.default", minus, "minus"));
            nodes.insert(2, node(target, inputs, "forged"));
        });
        forge.is_refused(&["node forged", words]);
    }
}

#[test]
fn arguments_that_make_no_sense_are_errors_of_the_node() {
    let x = || tensor("conv2d");
    for (target, inputs) in [
        ("aten.max_pool2d.default", json!({"self": x(), "kernel_size": {"as_ints": [-1, -1]}})),
        ("aten.max_pool2d.default", json!({"self": x(), "kernel_size": {"as_ints": [0, 0]}})),
        (
            "aten.max_pool2d.default",
            json!({"self": x(), "kernel_size": {"as_ints": [2, 2]}, "stride": {"as_ints": [0, 0]}}),
        ),
        (
            "aten.avg_pool2d.default",
            json!({"self": x(), "kernel_size": {"as_ints": [2, 2]}, "divisor_override": {"as_int": 0}}),
        ),
        ("aten.pixel_shuffle.default", json!({"self": x(), "upscale_factor": {"as_int": 0}})),
        ("aten.group_norm.default", json!({"input": x(), "num_groups": {"as_int": 0}})),
        ("aten.channel_shuffle.default", json!({"self": x(), "groups": {"as_int": 0}})),
        (
            "aten.unfold.default",
            json!({"self": x(), "dimension": {"as_int": 2}, "size": {"as_int": 2}, "step": {"as_int": 0}}),
        ),
        ("aten.view.default", json!({"self": x(), "size": {"as_ints": [-1, -1]}})),
        ("aten.split.Tensor", json!({"self": x(), "split_size": {"as_int": -1}})),
        ("aten.chunk.default", json!({"self": x(), "chunks": {"as_int": 0}})),
        (
            "aten.conv2d.default",
            json!({"input": x(), "weight": tensor("p_conv2_weight"), "stride": {"as_ints": [0, 0]}}),
        ),
        (
            "aten.conv2d.default",
            json!({"input": x(), "weight": tensor("p_conv2_weight"), "padding": {"as_ints": [-5, -5]}}),
        ),
        ("aten.conv2d.default", json!({"input": x(), "weight": tensor("p_conv2_weight"), "groups": {"as_int": 0}})),
        (
            "aten.as_strided.default",
            json!({"self": x(), "size": {"as_ints": [10, 10]}, "stride": {"as_ints": [1000, 1000]}}),
        ),
    ] {
        Forge::plain().node(target, inputs).is_refused(&["node forged"]);
    }
}

#[test]
fn doubling_until_memory_ends_stops_at_the_limit() {
    let forge = Forge::plain().nodes(|nodes| {
        let mut last = "conv2d".to_owned();
        for i in 0..60 {
            let name = format!("twice{i}");
            let both = json!([{"name": last}, {"name": last}]);
            nodes.insert(i + 1, node("aten.cat.default", json!({"tensors": {"as_tensors": both}}), &name));
            last = name;
        }
    });
    let limits = LoadLimits { max_value_bytes: 16 << 20, ..LoadLimits::default() };
    let error = load(forge.zipped(CompressionMethod::Stored), &limits).unwrap_err().to_string();
    assert!(error.contains("node twice") && error.contains("max_value_bytes"), "{error}");
}

#[test]
fn sizes_that_were_computed_are_checked_like_those_that_were_written() {
    let forge = Forge::plain().nodes(|nodes| {
        let size = json!({"target": "torch.ops.aten.sym_size.int", "name": "s", "metadata": {},
            "inputs": [{"name": "self", "arg": tensor("conv2d")}, {"name": "dim", "arg": {"as_int": 2}}],
            "outputs": [{"as_sym_int": {"as_name": "s"}}]});
        let power = json!({"target": "_operator.pow", "name": "p", "metadata": {},
            "inputs": [{"name": "", "arg": {"as_sym_int": {"as_name": "s"}}}, {"name": "", "arg": {"as_int": 12}}],
            "outputs": [{"as_sym_int": {"as_name": "p"}}]});
        let zeros = node("aten.zeros.default", json!({"size": {"as_sym_ints": [{"as_name": "p"}]}}), "forged");
        nodes.splice(1..1, [size, power, zeros]);
    });
    forge.is_refused(&["node forged", "argument size"]);
}
