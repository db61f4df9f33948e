//! Lies of the zip: sizes, offsets, names, ways of packing.

use super::*;

fn plain_zip() -> Vec<u8> {
    Forge::plain().zipped(CompressionMethod::Stored)
}

#[track_caller]
fn is_refused(bytes: Vec<u8>, words: &[&str]) {
    let error = load(bytes, &LoadLimits::default()).expect_err("the file was loaded").to_string();
    assert!(words.iter().all(|word| error.contains(word)), "{words:?} are not all in: {error}");
}

/// Where a signature stands for the `n`th time.
fn find(bytes: &[u8], signature: &[u8], n: usize) -> usize {
    bytes.windows(signature.len()).enumerate().filter(|(_, w)| *w == signature).nth(n).expect("the signature").0
}

/// The central header of the entry that ends in `name`.
fn central_header(bytes: &[u8], name: &str) -> usize {
    (0..)
        .map(|n| find(bytes, b"PK\x01\x02", n))
        .find(|&at| {
            let length = usize::from(u16::from_le_bytes([bytes[at + 28], bytes[at + 29]]));
            bytes[at + 46..at + 46 + length].ends_with(name.as_bytes())
        })
        .unwrap()
}

/// A field that is not needed, because another says the same, may hold anything.
#[track_caller]
fn is_refused_or_whole(bytes: Vec<u8>, case: &str) {
    match load(bytes, &LoadLimits::default()) {
        Ok(graph) => assert_eq!(graph.nodes.len(), 8, "{case}"),
        Err(error) => assert!(error.to_string().contains("damaged: zip"), "{case}: {error}"),
    }
}

#[test]
fn a_file_that_was_cut_off_anywhere_is_refused() {
    for fixture in [PLAIN, "edge/2.11.0/z_const_in.pt2"] {
        let whole = fixture_bytes(fixture);
        for length in (0..whole.len()).step_by(61).chain(whole.len() - 100..whole.len()) {
            let error = load(whole[..length].to_vec(), &LoadLimits::default()).err().map(|e| e.to_string());
            assert!(error.is_some_and(|e| e.contains("damaged: zip")), "{fixture}: the first {length} bytes");
        }
    }
}

#[test]
fn an_entry_that_unpacks_to_a_hundred_times_its_size_is_not_unpacked() {
    let mut forge = Forge::plain();
    let graph = forge.entry(GRAPH);
    graph.resize(graph.len() + (64 << 20), b' ');
    is_refused(forge.zipped(CompressionMethod::Deflated), &["models/model.json", "unpack to", "100 times"]);
}

#[test]
fn a_graph_that_is_larger_than_allowed_is_not_read() {
    let limits = LoadLimits { max_graph_bytes: 1000, ..LoadLimits::default() };
    let error = load(plain_zip(), &limits).unwrap_err().to_string();
    assert!(error.contains("the graph is 1") && error.contains("max_graph_bytes"), "{error}");
}

#[test]
fn weights_that_are_together_larger_than_allowed_are_not_read() {
    let limits = LoadLimits { max_weight_bytes: 1000, ..LoadLimits::default() };
    let error = load(plain_zip(), &limits).unwrap_err().to_string();
    assert!(error.contains("the weights is") && error.contains("max_weight_bytes"), "{error}");
}

#[test]
fn a_size_that_the_header_invents_is_refused() {
    // Stored entries: bytes 20 to 23 are the packed size, 24 to 27 the size.
    for (range, size) in [(24..28, 0x7fff_ffffu32), (20..24, 0x7fff_ffff), (20..28, 3), (24..28, 3)] {
        let mut bytes = plain_zip();
        let at = central_header(&bytes, "weight_0");
        for field in range.clone().step_by(4) {
            bytes[at + field..at + field + 4].copy_from_slice(&size.to_le_bytes());
        }
        let error = load(bytes, &LoadLimits::default()).expect_err("the file was loaded").to_string();
        assert!(error.contains("damaged"), "{range:?} = {size}: {error}");
    }
}

#[test]
fn names_that_lead_out_of_the_archive_are_refused() {
    for name in ["../../etc/passwd", "data/../../x", "..\\x", "data/weights\\..\\x"] {
        Forge::plain().with(name, *b"x").is_refused(&["an entry is called", "which no model has"]);
    }
    let mut bytes = plain_zip();
    // In both headers, of the same length.
    let name = b"A/byteorder";
    for _ in 0..2 {
        let at = find(&bytes, name, 0);
        bytes[at..at + name.len()].copy_from_slice(b"/xbyteorder");
    }
    is_refused(bytes, &["an entry is called", "/xbyteorder"]);
}

#[test]
fn two_entries_of_one_name_are_refused() {
    let mut bytes = plain_zip();
    let name = b"A/data/weights/weight_1";
    let mut from = 0;
    while let Some(at) = bytes[from..].windows(name.len()).position(|w| w == name).map(|at| from + at) {
        from = at + name.len();
        // weight_10 begins alike.
        if bytes[from] != b'0' {
            bytes[from - 1] = b'0';
        }
    }
    is_refused(bytes, &["zip", "two entries"]);
}

#[test]
fn an_entry_that_is_missing_is_named() {
    for (name, words) in [
        (GRAPH, "no models/*.json"),
        (WEIGHTS, "model_weights_config.json"),
        ("data/constants/model_constants_config.json", "model_constants_config.json"),
        ("data/weights/weight_4", "data/weights/weight_4: the entry is missing"),
    ] {
        Forge::plain().without(name).is_refused(&[words]);
    }
}

#[test]
fn a_directory_that_lies_out_of_the_file_is_refused() {
    // End record: entries on this disk and in all at 8 and 10, size of the directory at 12, its offset at 16.
    for (offset, value) in
        [(16, 0xffff_fff0u32), (16, 0), (16, 0x7fff_ffff), (12, 0xffff_fff0), (12, 0), (8, 0xfff0_fff0), (8, 0)]
    {
        let mut bytes = plain_zip();
        let end = find(&bytes, b"PK\x05\x06", 0);
        bytes[end + offset..end + offset + 4].copy_from_slice(&value.to_le_bytes());
        is_refused_or_whole(bytes, &format!("{offset} = {value:#x}"));
    }
    // An entry's own offset, at 42 of its central header.
    for offset in [0xffff_fff0u32, 0x00ff_ffff, 7] {
        let mut bytes = plain_zip();
        let at = central_header(&bytes, "weight_3");
        bytes[at + 42..at + 46].copy_from_slice(&offset.to_le_bytes());
        is_refused(bytes, &["damaged"]);
    }
}

#[test]
fn sizes_and_offsets_of_64_bits_that_overflow_are_refused() {
    let whole = fixture_bytes(PLAIN);
    let end = find(&whole, b"PK\x06\x06", 0);
    // Zip64 end record: entries at 24 and 32, size of the directory at 40, its offset at 48.
    for offset in [24, 32, 40, 48] {
        for value in [u64::MAX, u64::MAX / 2, 1 << 62, 1 << 40] {
            let mut bytes = whole.clone();
            bytes[end + offset..end + offset + 8].copy_from_slice(&value.to_le_bytes());
            is_refused_or_whole(bytes, &format!("{offset} = {value:#x}"));
        }
    }
}

#[test]
fn ways_of_packing_that_are_not_known_are_refused() {
    for (offset, value, words) in [(8, 1u8, "assword"), (10, 14, "ompression"), (10, 99, "damaged")] {
        let mut bytes = plain_zip();
        let at = central_header(&bytes, "models/model.json");
        bytes[at + offset] |= value;
        is_refused(bytes, &["models/model.json", words]);
    }
}

#[test]
fn a_changed_byte_of_an_entry_fails_its_checksum() {
    let mut bytes = plain_zip();
    let at = find(&bytes, b"\"graph_module\"", 0);
    bytes[at + 2] ^= 1;
    is_refused(bytes, &["models/model.json", "hecksum"]);
}
