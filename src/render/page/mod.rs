//! What the live page and the report share: their style, and the script that draws a frame and its maps.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::ColorMap;

/// The style sheet.
pub const STYLE: &str = include_str!("style.css");

/// The script that draws; it needs [`colors_script`] before it.
pub const PAINT: &str = include_str!("paint.js");

/// What the pictures and numbers mean, for people: HTML.
pub const HELP: &str = include_str!("help.html");

/// The colour maps by name, each as the RGB of its 256 entries in base64: `const camlensColors = {…};`.
pub fn colors_script() -> String {
    let maps = [("turbo", ColorMap::Turbo), ("viridis", ColorMap::Viridis), ("jet", ColorMap::Jet)];
    let tables: serde_json::Map<_, _> = maps
        .map(|(name, map)| (name.to_owned(), STANDARD.encode(map.table().as_flattened()).into()))
        .into_iter()
        .collect();
    format!("const camlensColors = {};\n", serde_json::Value::from(tables))
}

#[cfg(test)]
mod tests {
    use super::super::{DEFAULT_DARKNESS, DEFAULT_OPACITY};
    use super::*;

    #[test]
    fn the_script_has_the_colours_of_the_pictures() {
        let script = colors_script();
        let json = script.trim().trim_start_matches("const camlensColors = ").trim_end_matches(';');
        let tables: serde_json::Value = serde_json::from_str(json).expect("an object");
        let turbo = STANDARD.decode(tables["turbo"].as_str().expect("a table")).expect("base64");
        assert_eq!(turbo, ColorMap::Turbo.table().as_flattened());
    }

    #[test]
    fn the_sliders_begin_at_the_defaults_of_the_pictures() {
        let percent = |share: f32| (share * 100.0).round();
        let (opacity, darkness) = (percent(DEFAULT_OPACITY), percent(DEFAULT_DARKNESS));
        assert!(PAINT.contains(&format!("const OPACITY = {opacity}, DARKNESS = {darkness};")));
    }
}
