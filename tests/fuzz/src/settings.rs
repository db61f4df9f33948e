//! Target for the settings files, `model.toml` and `camlens.toml`.

use std::path::Path;

use camlens::config::Config;
use camlens::frame::{Decoded, InputSize, Limits, Payload, PixelFormat, Preparation, decode};
use camlens::model::description::Description;

/// Reads the input as both files.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    description(text);
    configuration(text);
}

/// An error message is for people: its length is bounded, whatever the input.
fn is_a_message(text: &str) {
    assert!(!text.is_empty() && text.len() < 1 << 20, "{} bytes", text.len());
}

fn description(text: &str) {
    let description = match Description::parse(text, Path::new("model.toml")) {
        Ok(description) => description,
        Err(error) => return is_a_message(&error.to_string()),
    };
    let written = toml::to_string(&description).expect("a description is TOML");
    let again = Description::parse(&written, Path::new("model.toml")).expect("what is written can be read");
    assert_eq!(again, description);
    let limits = Limits { max_pixels: 1 << 16, max_encoded_bytes: 1 << 16 };
    for (channels, side) in [(1, None), (3, None), (3, Some(8)), (4, None)] {
        let input = InputSize::new(channels, side, side);
        let preparation = match Preparation::new(&description.input, input, &limits) {
            Ok(preparation) => preparation,
            Err(error) => {
                is_a_message(&error.to_string());
                continue;
            }
        };
        let (width, height, pixel_format) = (5, 3, PixelFormat::Rgb8);
        let data = (0..45).map(|n| n * 5).collect::<Vec<u8>>().into();
        let payload = Payload::Raw { data, width, height, pixel_format, stride_bytes: None };
        let decoded = decode(&payload, &limits, None).expect("a sound frame");
        let Decoded::Picture(_) = decoded else { panic!("a picture") };
        let mut out = Vec::new();
        match preparation.prepare(&decoded, &mut out) {
            Ok(_) => assert!(out.iter().all(|value| value.is_finite()), "what a model is given is finite"),
            Err(error) => is_a_message(&error.to_string()),
        }
    }
}

fn configuration(text: &str) {
    let config = match Config::parse(text, Path::new("camlens.toml")) {
        Ok(config) => config,
        Err(error) => return is_a_message(&error.to_string()),
    };
    if let Err(error) = config.check() {
        return is_a_message(&error.to_string());
    }
    let Ok(written) = toml::to_string(&config) else {
        // TOML has no integers beyond 63 bits, and so neither had the text.
        panic!("a configuration that was read can be written: {config:?}");
    };
    let again = Config::parse(&written, Path::new("camlens.toml")).expect("what is written can be read");
    assert_eq!(again, config);
}
