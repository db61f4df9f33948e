//! Facts as a `model.toml`: each with a comment that says from what it was guessed.

use std::fmt::Write as _;

use super::{Fact, Facts};
use crate::model::description::{ColorOrder, Interpolation, Resize};

/// The labels' file beside `model.toml`.
pub const LABELS_FILE: &str = "labels.txt";

impl Facts {
    /// The text of a `model.toml` for a model that was imported from `source`. Labels are in [`LABELS_FILE`].
    pub fn model_toml(&self, source: &str) -> String {
        let mut text = format!(
            "# Written by `camlens import` from {}. Each value is a guess, and the comment above it says from what.\n\
             # A key in a comment is not known of this model. All keys: deploy/README.md.\n\n",
            quoted(source)
        );
        let out = &mut text;
        value(out, "summary", self.summary.as_ref().map(|fact| (fact, quoted(&fact.value))), "");
        out.push_str("\n[input]\n");
        let resize = |resize: &Resize| match resize {
            Resize::Shorter(side) => side.to_string(),
            Resize::Exact([height, width]) => format!("[{height}, {width}]"),
        };
        value(out, "resize", known(&self.resize, resize), "256: the shorter side; [height, width] whatever the aspect");
        value(out, "crop", known(&self.crop, |[height, width]| format!("[{height}, {width}]")), "[224, 224]");
        let interpolation = |interpolation: &Interpolation| match interpolation {
            Interpolation::Nearest => "\"nearest\"".to_owned(),
            Interpolation::Bilinear => "\"bilinear\"".to_owned(),
            Interpolation::Bicubic => "\"bicubic\"".to_owned(),
            Interpolation::Lanczos => "\"lanczos\"".to_owned(),
        };
        value(out, "interpolation", known(&self.interpolation, interpolation), "\"bicubic\"; default: \"bilinear\"");
        let color = |color: &ColorOrder| match color {
            ColorOrder::Rgb => "\"rgb\"".to_owned(),
            ColorOrder::Bgr => "\"bgr\"".to_owned(),
            ColorOrder::Gray => "\"gray\"".to_owned(),
        };
        value(out, "color", known(&self.color, color), "\"bgr\", as models trained with OpenCV; default: \"rgb\"");
        let list = |numbers: &Vec<f64>| {
            let numbers: Vec<String> = numbers.iter().map(|number| format!("{number:?}")).collect();
            format!("[{}]", numbers.join(", "))
        };
        value(out, "mean", known(&self.mean, list), "[0.485, 0.456, 0.406], as most models trained on ImageNet");
        value(out, "std", known(&self.std, list), "[0.229, 0.224, 0.225], as most models trained on ImageNet");
        out.push_str("\n[output]\n");
        let labels = |_: &Vec<String>| quoted(LABELS_FILE);
        value(out, "labels_file", known(&self.labels, labels), "\"labels.txt\", one label a line, in class order");
        value(out, "logits", known(&self.logits, |name| quoted(name)), "");
        if let Some(most) = &self.max_batch {
            out.push_str("\n[limits]\n");
            value(out, "max_batch", Some((most, most.value.to_string())), "");
        }
        for remark in &self.remarks {
            let _ = writeln!(out, "\n# {}", one_line(remark));
        }
        text
    }
}

fn known<T>(fact: &Option<Fact<T>>, write: impl Fn(&T) -> String) -> Option<(&Fact<T>, String)> {
    fact.as_ref().map(|fact| (fact, write(&fact.value)))
}

/// A key with its value, or in a comment with what it could be.
fn value<T>(out: &mut String, key: &str, known: Option<(&Fact<T>, String)>, example: &str) {
    let _ = match known {
        Some((fact, value)) => writeln!(out, "# guessed from {}:\n{key} = {value}", one_line(&fact.from)),
        None if example.is_empty() => Ok(()),
        None => writeln!(out, "# {key}: not known; such as {example}"),
    };
}

/// A string of TOML.
fn quoted(text: &str) -> String {
    toml::Value::String(one_line(text)).to_string()
}

fn one_line(text: &str) -> String {
    text.split(char::is_control).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::set;
    use super::*;
    use crate::model::description::Description;

    #[test]
    fn a_written_description_can_be_read_and_says_where_each_value_is_from() {
        let mut facts = Facts::default();
        set(&mut facts.summary, "a \"net\"\nof two lines".to_owned(), "here\nand there");
        set(&mut facts.resize, Resize::Shorter(256), "config.json");
        set(&mut facts.crop, [224, 192], "config.json");
        set(&mut facts.mean, vec![0.0, 0.5, 0.1], "config.json");
        set(&mut facts.labels, vec!["a".to_owned()], "the file");
        set(&mut facts.max_batch, 4, "config.pbtxt");
        facts.remarks.push("what was\nleft out".to_owned());
        let text = facts.model_toml("my \"net\".onnx");
        let read = Description::parse(&text, Path::new("model.toml")).unwrap();
        assert_eq!(read.summary, "a \"net\" of two lines");
        assert_eq!((read.input.resize, read.input.crop), (Some(Resize::Shorter(256)), Some([224, 192])));
        assert_eq!((read.input.mean, read.input.std), (vec![0.0, 0.5, 0.1], vec![]));
        assert_eq!((read.output.labels_file.as_deref(), read.limits.max_batch), (Some(LABELS_FILE), Some(4)));
        for line in ["# guessed from config.json:\ncrop = [224, 192]", "# std: not known", "# what was left out"] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn nothing_known_means_the_defaults() {
        let read = Description::parse(&Facts::default().model_toml("x"), Path::new("model.toml")).unwrap();
        assert_eq!(read, Description::default());
    }
}
