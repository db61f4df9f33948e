//! Lies about where weights lie.

use super::*;

/// Changes what is said of `fc.weight`, `[2, 20]` floats of their own.
fn fc(change: impl FnOnce(&mut Json)) -> Forge {
    Forge::plain().edit(WEIGHTS, |json| {
        let entry =
            json["config"].as_object_mut().unwrap().values_mut().find(|e| e["path_name"] == "weight_6").unwrap();
        change(entry);
    })
}

fn meta(key: &str, value: Json) -> Forge {
    fc(|entry| entry["tensor_meta"][key] = value)
}

fn numbers(list: &[i64]) -> Json {
    list.iter().map(|v| json!({"as_int": v})).collect()
}

#[test]
fn sizes_strides_and_offsets_out_of_the_storage_are_refused() {
    let far = i64::MAX;
    for (key, value, words) in [
        ("sizes", numbers(&[far, 2]), "its size overflows"),
        ("sizes", numbers(&[-5, 8]), "sizes is not a list of sizes"),
        ("sizes", numbers(&[5, 9]), "fc.weight: it reaches element"),
        ("sizes", json!([{"as_expr": {"expr_str": "s0"}}, {"as_int": 8}]), "sizes is not a list of sizes"),
        ("sizes", json!([{"as_int": 1e300}, {"as_int": 8}]), "expected i64"),
        ("sizes", json!([{"as_int": "NaN"}, {"as_int": 8}]), "expected i64"),
        ("sizes", json!(null), "no sizes"),
        ("sizes", numbers(&[5]), "sizes and strides differ in number"),
        ("sizes", numbers(&[1; 65]), "65 sizes, and 64 are allowed"),
        ("strides", numbers(&[far, 1]), "its strides overflow"),
        ("strides", numbers(&[-8, 1]), "strides is not a list of sizes"),
        ("strides", numbers(&[8, 2]), "it reaches element"),
        ("storage_offset", json!({"as_int": far}), "its strides overflow"),
        ("storage_offset", json!({"as_int": 1}), "it reaches element 40 of a storage that has 40"),
        ("storage_offset", json!({"as_int": -1}), "no storage_offset"),
        ("storage_offset", json!(null), "no storage_offset"),
        ("dtype", json!(8), "it reaches element 39 of a storage that has 20"),
        ("dtype", json!(null), "no dtype"),
        ("dtype", json!("float"), "expected i64"),
    ] {
        meta(key, value).is_refused(&[words]);
    }
}

#[test]
fn a_dtype_that_is_not_known_is_refused_where_it_is_used() {
    meta("dtype", json!(77)).is_refused(&["fc.weight", "dtype number 77"]);
}

#[test]
fn a_dtype_that_the_model_cannot_use_is_an_error_of_its_node() {
    meta("dtype", json!(4)).is_refused(&["node linear", "dtype"]);
}

#[test]
fn parts_of_a_storage_may_overlap() {
    let graph = fc(|entry| {
        entry["tensor_meta"]["strides"] = numbers(&[1, 1]);
    })
    .load();
    assert!(graph.is_ok(), "{:?}", graph.err());
}

#[test]
fn one_element_does_not_stand_for_a_terabyte() {
    fc(|entry| {
        entry["tensor_meta"]["sizes"] = numbers(&[1 << 20, 1 << 20]);
        entry["tensor_meta"]["strides"] = numbers(&[0, 0]);
    })
    .is_refused(&["fc.weight", "1099511627776 elements lie in a storage of 40"]);
}

#[test]
fn an_empty_tensor_may_have_any_strides() {
    let forge = fc(|entry| {
        entry["tensor_meta"]["sizes"] = numbers(&[0, 4]);
        entry["tensor_meta"]["strides"] = numbers(&[i64::MAX, i64::MAX]);
    });
    // It loads as a weight; the product with it does not fit.
    forge.is_refused(&["node linear"]);
}

#[test]
fn pickles_are_refused_and_not_opened() {
    for value in [json!(true), json!(null), json!("no")] {
        let error = fc(|entry| entry["use_pickle"] = value.clone()).error();
        assert!(error.contains("pickle") || error.contains("expected a boolean"), "{value}: {error}");
    }
    Forge::plain().with("data/weights/model.pt", *b"\x80\x02").is_refused(&["weights in a pickle"]);
}

#[test]
fn a_path_that_leads_out_of_the_archive_is_just_a_name_that_is_missing() {
    for path in ["../../../etc/hostname", "/etc/hostname", "weight_6/../weight_5"] {
        fc(|entry| entry["path_name"] = json!(path)).is_refused(&["the entry is missing", path]);
    }
}

#[test]
fn a_storage_that_is_shorter_than_its_tensors_is_refused() {
    let mut forge = Forge::plain();
    forge.entry("data/weights/weight_6").truncate(159);
    forge.is_refused(&["fc.weight", "it reaches element 39 of a storage that has 39"]);
}

#[test]
fn a_description_that_is_no_description_is_refused() {
    for text in ["", "[]", "{\"config\": 3}", "{\"config\": {\"a\": []}}", "\u{feff}{}", "{\"config\": {\"a\": {}"] {
        let mut forge = Forge::plain();
        *forge.entry(WEIGHTS) = text.into();
        forge.is_refused(&["model_weights_config.json"]);
    }
}
