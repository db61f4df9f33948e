//! The hint when no models are found: the same command with models that exist.

use std::path::Path;

/// The bundled models, from the top of a checkout.
const BUNDLED: &str = "deploy/models";
/// The model that needs no file.
const BUILT_IN: &str = "builtin:identity";

/// A hint with a command that works in this directory: the one that was typed, with other models.
pub fn advice() -> String {
    let typed: Vec<String> = std::env::args().skip(1).collect();
    advise(&typed, Path::new(BUNDLED).is_dir())
}

fn advise(typed: &[String], has_bundled: bool) -> String {
    let mut words = vec!["camlens".to_owned()];
    let mut typed = typed.iter();
    while let Some(word) = typed.next() {
        if word == "--models" {
            typed.next();
        } else if !word.starts_with("--models=") {
            let is_plain =
                !word.is_empty() && !word.contains(|c: char| c.is_whitespace() || "'\"*?$&|;<>()".contains(c));
            words.push(if is_plain { word.clone() } else { format!("'{}'", word.replace('\'', "'\\''")) });
        }
    }
    let command = words.join(" ");
    if has_bundled {
        format!("with the bundled model: {command} --models {BUNDLED}")
    } else {
        format!(
            "without a model file: {command} --models {BUILT_IN}; deploy/export makes a directory of models from \
             PyTorch"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &[&str]) -> Vec<String> {
        text.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn the_advice_is_the_typed_command_with_models_that_exist() {
        let with_bundled = advise(&words(&["serve", "--models", "nowhere", "--threads", "2"]), true);
        assert!(with_bundled.ends_with("camlens serve --threads 2 --models deploy/models"), "{with_bundled}");
        let without = advise(&words(&["explain", "my photo.jpg", "--models=x"]), false);
        assert!(without.contains("camlens explain 'my photo.jpg' --models builtin:identity;"), "{without}");
    }
}
