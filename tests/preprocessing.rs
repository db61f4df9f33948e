//! Frames are prepared as Pillow and torchvision prepare them. tests/reference/preprocessing.py made the references.

mod npy;

use std::path::{Path, PathBuf};

use camlens::frame::{Decoded, InputSize, Limits, Payload, Preparation, decode};
use camlens::model::description::{ColorOrder, Interpolation, Preprocessing, Resize};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    name: String,
    file: String,
    resize: Option<Resize>,
    crop: Option<[u32; 2]>,
    interpolation: Interpolation,
    color: ColorOrder,
    size: Option<[u32; 2]>,
    /// All decoders give the same pixels for the file: it is lossless.
    exact: bool,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/preprocessing")
}

fn array<T: npy::Element>(name: &str) -> npy::Array<T> {
    npy::find(&fixtures().join("arrays.npz"), name).unwrap_or_else(|| panic!("arrays.npz has no {name}"))
}

fn read(file: &str) -> Decoded {
    let data = std::fs::read(fixtures().join(file)).unwrap();
    decode(&Payload::encoded(data), &Limits::default(), None).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// The input's values as bytes, `[C, H, W]`.
fn prepared_bytes(case: &Case, channels: u32) -> (u32, u32, Vec<u8>) {
    let steps = Preprocessing {
        resize: case.resize,
        crop: case.crop,
        interpolation: case.interpolation,
        color: case.color,
        ..Preprocessing::default()
    };
    let input = InputSize::new(channels, case.size.map(|[height, _]| height), case.size.map(|[_, width]| width));
    let mut values = Vec::new();
    let prepared = Preparation::new(&steps, input, &Limits::default())
        .unwrap()
        .prepare(&read(&case.file), &mut values)
        .unwrap_or_else(|error| panic!("{}: {error}", case.name));
    (prepared.height, prepared.width, values.iter().map(|value| (value * 255.0).round() as u8).collect())
}

#[test]
fn every_picture_is_prepared_as_torchvision_prepares_it() {
    let cases: Vec<Case> =
        serde_json::from_str(&std::fs::read_to_string(fixtures().join("cases.json")).unwrap()).unwrap();
    assert!(cases.len() > 50, "the fixtures are incomplete");
    let mut wrong = Vec::new();
    println!("{:26} {:>9} {:>5} {:>9}", "case", "mean", "max", "unequal");
    for case in &cases {
        let expected = array::<u8>(&case.name);
        let [height, width, channels] = expected.shape[..] else { panic!("{} is not [H, W, C]", case.name) };
        let (made_height, made_width, made) = prepared_bytes(case, channels as u32);
        assert_eq!((made_height as usize, made_width as usize), (height, width), "{}", case.name);
        let off: Vec<u8> = (0..made.len())
            .map(|at| {
                let (channel, pixel) = (at / (height * width), at % (height * width));
                made[at].abs_diff(expected.values[pixel * channels + channel])
            })
            .collect();
        let mean = off.iter().map(|&off| f64::from(off)).sum::<f64>() / off.len() as f64;
        let max = off.iter().copied().max().unwrap();
        let unequal = off.iter().filter(|&&off| off > 0).count() as f64 / off.len() as f64;
        println!("{:26} {mean:9.5} {max:5} {:8.3}%", case.name, unequal * 100.0);
        if mean > 1.0 || (case.exact && max > 1) {
            wrong.push(format!("{}: mean {mean}, max {max}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn normalised_values_are_torchvisions_float_for_float() {
    let pixels = array::<u8>("normalize_pixels");
    let expected = array::<f32>("normalize");
    let steps =
        Preprocessing { mean: vec![0.485, 0.456, 0.406], std: vec![0.229, 0.224, 0.225], ..Preprocessing::default() };
    let frame = Payload::Raw {
        data: pixels.values.into(),
        width: pixels.shape[1] as u32,
        height: pixels.shape[0] as u32,
        pixel_format: camlens::frame::PixelFormat::Rgb8,
        stride_bytes: None,
    };
    let limits = Limits::default();
    let input = InputSize::new(3, None, None);
    let mut values = Vec::new();
    let preparation = Preparation::new(&steps, input, &limits).unwrap();
    preparation.prepare(&decode(&frame, &limits, None).unwrap(), &mut values).unwrap();
    assert_eq!(expected.shape, [3, pixels.shape[0], pixels.shape[1]]);
    assert_eq!(values, expected.values);
}
