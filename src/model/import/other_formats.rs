//! Model files that camlens does not read, recognised so that a message can say what they are.

use std::fs;
use std::path::{Path, PathBuf};

/// The bytes of a file that [`what_is`] looks at.
pub const START_BYTES: u64 = 64;

/// Most entries of a folder that are looked at.
const MAX_ENTRIES: usize = 1000;

/// Describes a file that is no zip, by its first bytes.
pub fn what_is(start: &[u8]) -> &'static str {
    let text = start.trim_ascii_start();
    match start {
        [] => "the file is empty",
        [0x80, ..] => "the file is a pickle, such as torch.save writes for a state_dict",
        [0x89, b'H', b'D', b'F', ..] => {
            "the file is HDF5, such as Keras writes (.h5), with its layers as Python objects"
        }
        [b'f', b't', b'r', b't', ..] => "the file is an engine of TensorRT, compiled code without a graph",
        [_, _, _, _, b'T', b'F', b'L', b'3', ..] => "the file is of TensorFlow Lite, whose graphs have no gradients",
        [0x1F, 0x8B, ..] => "the file is compressed by gzip: unpack it first",
        _ if start.starts_with(b"version https://git-lfs") => "the file is a Git LFS pointer, not the model itself",
        _ if text.starts_with(b"<?xml") || text.starts_with(b"<net") => {
            "the file is XML, such as OpenVINO's graph, whose operators have no gradients"
        }
        _ if text.starts_with(b"<") => "the file is a web page, not a model",
        _ if is_safetensors(start) => "the file is safetensors: weights alone, without a graph",
        // A SavedModel begins with its schema's version, ONNX with its IR's; TensorFlow's graph follows in field 2.
        [0x08, 0x01, 0x12, ..] => "the file looks like a SavedModel of TensorFlow",
        [0x08, ..] => "the file looks like ONNX, which is read from files called .onnx",
        _ => "the file is no zip, and an exported program is one",
    }
}

/// What helps with such a file; none where the model must be exported.
pub fn advice(start: &[u8]) -> Option<&'static str> {
    if start.starts_with(b"version https://git-lfs") {
        Some("fetch the model itself with `git lfs pull`")
    } else if start.trim_ascii_start().starts_with(b"<") && what_is(start).contains("web page") {
        Some("download the file itself, not the page that shows it")
    } else {
        None
    }
}

/// A length of eight bytes and a JSON object.
fn is_safetensors(start: &[u8]) -> bool {
    match start.split_first_chunk::<8>() {
        Some((length, [b'{', ..])) => u64::from_le_bytes(*length) < 1 << 32,
        _ => false,
    }
}

/// A file under `root`, at most two folders down, whose name is that of a model in another format, and what it is.
pub fn find(root: &Path) -> Option<(PathBuf, &'static str)> {
    let mut folders = vec![(root.to_owned(), 0)];
    let mut seen = 0;
    while let Some((folder, depth)) = folders.pop() {
        let mut entries: Vec<PathBuf> = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).collect();
        entries.sort();
        for path in entries {
            seen += 1;
            if seen > MAX_ENTRIES {
                return None;
            }
            if let Some(format) = by_name(&path) {
                return Some((path, format));
            }
            if depth < 2 && path.is_dir() {
                folders.push((path, depth + 1));
            }
        }
    }
    None
}

fn by_name(path: &Path) -> Option<&'static str> {
    let format = match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "pt2" => "an exported program under another name",
        "onnx" => "a model of ONNX under another name",
        "pt" | "pth" | "torchscript" | "ts" => "TorchScript or a checkpoint of PyTorch",
        "plan" | "engine" | "trt" => "an engine of TensorRT, compiled code without a graph",
        "savedmodel" | "pb" => "a SavedModel of TensorFlow",
        "keras" | "h5" | "hdf5" => "of Keras",
        "xml" => "of OpenVINO",
        "safetensors" => "safetensors: weights alone, without a graph",
        "tflite" => "of TensorFlow Lite",
        _ => return None,
    };
    Some(format)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_other_formats_are_named_by_their_first_bytes() {
        let header = br#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
        let safetensors = [&(header.len() as u64).to_le_bytes()[..], header].concat();
        let cases: [(&[u8], &str); 12] = [
            (b"", "empty"),
            (b"\x80\x02}q\0", "pickle"),
            (b"\x89HDF\r\n\x1a\n", "Keras"),
            (b"ftrt\0\0\0\0", "TensorRT"),
            (b"\x1c\0\0\0TFL3", "TensorFlow Lite"),
            (b"\x1f\x8b\x08\0", "gzip"),
            (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
            (b"<?xml version=\"1.0\"?><net name=\"m\">", "OpenVINO"),
            (b"\n<!DOCTYPE html>", "web page"),
            (&safetensors, "safetensors"),
            (b"\x08\x01\x12\x9a\x05", "SavedModel"),
            (b"\x08\x08\x12\x07pytorch", "ONNX"),
        ];
        for (start, says) in cases {
            assert!(what_is(start).contains(says), "{says}: {}", what_is(start));
        }
        assert!(what_is(b"hello").contains("no zip"));
    }

    #[test]
    fn a_model_of_another_format_is_found_by_its_name() {
        let root = tempfile::tempdir().unwrap();
        let version = root.path().join("net/1");
        fs::create_dir_all(&version).unwrap();
        assert_eq!(find(root.path()), None);
        fs::write(version.join("notes.txt"), b"").unwrap();
        fs::write(version.join("model.ONNX"), b"").unwrap();
        let (path, format) = find(root.path()).unwrap();
        assert!(path.ends_with("net/1/model.ONNX") && format.contains("ONNX"));
    }
}
