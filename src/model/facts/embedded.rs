//! What an ONNX file says of itself: its documentation, and the entries that exporters write.

use super::{Facts, set};
use crate::model::description::{Interpolation, Resize};
use crate::model::import::onnx::FileFacts;

/// Most classes that are read.
const MAX_LABELS: usize = 100_000;

impl Facts {
    pub(super) fn embedded(&mut self, file: &FileFacts) {
        let summary = file.documentation.lines().next().unwrap_or_default().trim();
        if !summary.is_empty() {
            set(&mut self.summary, summary.to_owned(), "the file's documentation");
        }
        if let Some(task) = file.entries.get("task") {
            self.ultralytics(task, file);
        }
    }

    /// The entries that Ultralytics writes: `names` as a dictionary of Python, `imgsz` as a list of Python.
    fn ultralytics(&mut self, task: &str, file: &FileFacts) {
        let entry = |name: &str| file.entries.get(name).map(String::as_str).unwrap_or_default();
        let from = |name: &str| format!("the file's metadata, `{name}` (Ultralytics)");
        if task != "classify" {
            self.remarks.push(format!("the file's metadata says task = {task:?}, and camlens explains classifiers"));
        }
        if !entry("description").is_empty() {
            set(&mut self.summary, entry("description").to_owned(), &from("description"));
        }
        if let Some(names) = dictionary(entry("names")) {
            set(&mut self.labels, names, &from("names"));
        }
        let sides: Vec<u32> = entry("imgsz")
            .trim_matches(['[', ']', '(', ')'])
            .split(',')
            .filter_map(|n| n.trim().parse().ok())
            .collect();
        if let [height, width] = sides[..]
            && height == width
            && task == "classify"
        {
            // Its transforms for classifiers: the shorter side, a centre crop, and neither mean nor deviation.
            let from = format!("{} and its transforms for classifiers", from("imgsz"));
            set(&mut self.resize, Resize::Shorter(height), &from);
            set(&mut self.crop, [height, width], &from);
            set(&mut self.interpolation, Interpolation::Bilinear, &from);
            set(&mut self.mean, vec![0.0], &from);
            set(&mut self.std, vec![1.0], &from);
        }
    }
}

/// The values of a dictionary of Python, `{0: 'cat', 1: "dog"}`, whose keys are 0, 1, 2 and so on.
fn dictionary(text: &str) -> Option<Vec<String>> {
    let mut rest = text.trim().strip_prefix('{')?.trim_start();
    let mut values = Vec::new();
    while !rest.starts_with('}') {
        let (key, after) = rest.split_once(':')?;
        if key.trim().parse::<usize>().ok() != Some(values.len()) || values.len() == MAX_LABELS {
            return None;
        }
        let after = after.trim_start();
        let quote = after.chars().next().filter(|quote| matches!(quote, '\'' | '"'))?;
        let mut value = String::new();
        let mut characters = after[1..].char_indices();
        let end = loop {
            match characters.next()? {
                (_, '\\') => value.push(characters.next()?.1),
                (at, found) if found == quote => break at + 2,
                (_, other) => value.push(other),
            }
        };
        values.push(value);
        rest = after[end..].trim_start();
        rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
    }
    Some(values).filter(|values| !values.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dictionary_of_python_is_read() {
        let read = |text| dictionary(text).map(|values| values.join("|"));
        assert_eq!(
            read("{0: 'tench', 1: \"jack-o'-lantern\", 2: 'a\\'b'}").as_deref(),
            Some("tench|jack-o'-lantern|a'b")
        );
        for text in ["", "{}", "{1: 'a'}", "{0: a}", "{0: 'a', 2: 'b'}", "{0: 'a", "['a']"] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn the_metadata_of_ultralytics_gives_labels_and_preprocessing_of_a_classifier() {
        let entries = [
            ("task", "classify"),
            ("names", "{0: 'cat', 1: 'dog'}"),
            ("imgsz", "[224, 224]"),
            ("description", "Ultralytics YOLO11n-cls model trained on pets"),
        ];
        let entries = entries.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let mut facts = Facts::default();
        facts.embedded(&FileFacts { documentation: String::new(), entries });
        assert_eq!(facts.labels.unwrap().value, ["cat", "dog"]);
        assert_eq!(facts.crop.unwrap().value, [224, 224]);
        assert_eq!(facts.mean.unwrap().value, [0.0]);
        assert!(facts.summary.unwrap().from.contains("description"));
        let entries = [("task".to_owned(), "detect".to_owned())].into();
        let mut facts = Facts::default();
        facts.embedded(&FileFacts { documentation: "A detector\nof pets".to_owned(), entries });
        assert_eq!(facts.summary.unwrap().value, "A detector");
        assert!(facts.remarks[0].contains("detect") && facts.crop.is_none());
    }
}
