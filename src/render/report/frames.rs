//! The frames of a report, in bounded memory and in a bounded file.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::frame::{AffineTransform, Limits, Payload, decode};
use crate::render::{Detail, Drawn, DrawnTarget, PictureFormat, RenderError, Scene, encode, shrunk};

/// The most frames in a report. Of more, every second, fourth, … is kept.
const MAX_FRAMES: usize = 300;
/// The bytes that all frames together take in the file.
const MAX_BYTES: usize = 1_900_000;
/// The longer side of a frame as it is kept, in pixels.
const SIDE: u32 = 480;
const DETAIL: Detail = Detail { quality: 78, heat_side: 16, light_side: Some(96) };
/// What frames are reduced to, one after the other, until they fit: side and quality. The light and the guided map are
/// left out from the second on.
const SMALLER: [(u32, u32); 5] = [(480, 70), (360, 70), (256, 65), (208, 55), (160, 45)];
/// Frames that are made smaller to see by how much.
const SAMPLE: usize = 12;
/// Classes of a frame in the report.
const MAX_CLASSES: usize = 5;

/// Frames with their maps.
#[derive(Debug, Clone, Default)]
pub struct Frames {
    kept: Vec<Kept>,
    /// One of `stride` frames is kept.
    stride: usize,
    seen: usize,
}

#[derive(Debug, Clone)]
struct Kept {
    name: String,
    /// Class and probability, the highest first.
    predictions: Vec<(String, f32)>,
    stages: Vec<(&'static str, f64)>,
    drawn: Drawn,
}

impl Frames {
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Whether the next frame is kept: one that is not need not be prepared.
    pub fn keeps_next(&self) -> bool {
        self.seen.is_multiple_of(self.stride.max(1))
    }

    /// Passes over a frame that has no scene.
    pub fn skip(&mut self) {
        self.seen += 1;
    }

    /// Takes the next frame. A full list first drops every second one.
    ///
    /// # Errors
    /// A scene that cannot be drawn. It is passed over.
    pub fn push(&mut self, scene: Scene) -> Result<(), RenderError> {
        let keeps = self.keeps_next();
        self.seen += 1;
        if !keeps {
            return Ok(());
        }
        self.stride = self.stride.max(1);
        let scene = scene.shrunk(SIDE);
        let drawn = Drawn::of(&scene, DETAIL)?;
        if self.kept.len() == MAX_FRAMES {
            let mut index = 0;
            self.kept.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.stride *= 2;
            if !(self.seen - 1).is_multiple_of(self.stride) {
                return Ok(());
            }
        }
        let predictions = scene.predictions.into_iter().take(MAX_CLASSES).map(|p| (p.class, p.probability));
        let stages = scene.stages.iter().map(|(stage, took)| (*stage, took.as_secs_f64() * 1e3));
        self.kept.push(Kept { name: scene.tag, predictions: predictions.collect(), stages: stages.collect(), drawn });
        Ok(())
    }

    /// The frames for the script, small enough for the file.
    pub(super) fn json(&self) -> Value {
        self.within(MAX_BYTES)
    }

    /// The frames in at most `most` bytes: smaller ones, or, where that is not enough, fewer.
    fn within(&self, most: usize) -> Value {
        let mut stages: Vec<&str> = Vec::new();
        for (stage, _) in self.kept.iter().flat_map(|kept| &kept.stages) {
            if !stages.contains(stage) {
                stages.push(stage);
            }
        }
        let bytes = |frames: &[Value]| frames.iter().map(|frame| frame.to_string().len() + 1).sum::<usize>();
        let fit = |frames: &[Value]| bytes(frames) <= most;
        let mut frames: Vec<Value> = self.kept.iter().map(|kept| described(kept, &kept.drawn, &stages)).collect();
        // A few frames tell how small all of them have to be.
        let sample: Vec<&Kept> = self.kept.iter().step_by(self.kept.len().div_ceil(SAMPLE).max(1)).collect();
        for (step, (side, quality)) in SMALLER.into_iter().enumerate() {
            if fit(&frames) {
                break;
            }
            let smaller = |kept: &Kept| described(kept, &reduced(&kept.drawn, side, quality, step), &stages);
            let sampled = bytes(&sample.iter().map(|kept| smaller(kept)).collect::<Vec<_>>());
            if sampled * self.kept.len() <= most * sample.len() || step + 1 == SMALLER.len() {
                frames = self.kept.iter().map(smaller).collect();
            }
        }
        let mut every = self.stride.max(1);
        while !fit(&frames) && frames.len() > 1 {
            frames = frames.into_iter().step_by(2).collect();
            every *= 2;
        }
        json!({"stages": stages, "frames": frames, "every": every})
    }
}

/// A frame of `side` pixels in `quality`. A frame that cannot be decoded again is kept as it is.
fn reduced(drawn: &Drawn, side: u32, quality: u32, step: usize) -> Drawn {
    let mut smaller = drawn.clone();
    if step > 0 {
        for target in &mut smaller.targets {
            (target.light, target.guided) = (None, None);
        }
    }
    let decoded = decode(&Payload::encoded(drawn.frame.clone()), &Limits::default(), None).ok();
    if let Some(pixels) = decoded.as_ref().and_then(|decoded| decoded.picture()) {
        let (pixels, _) = shrunk(pixels, &AffineTransform::IDENTITY, side);
        if let Ok(file) = encode(&pixels, PictureFormat::Jpeg { quality }) {
            (smaller.width, smaller.height, smaller.frame) = (pixels.width(), pixels.height(), file);
        }
    }
    smaller
}

/// `n`ame, `p`redictions, `s`tages in milliseconds, size, `j`peg and `t`argets.
fn described(kept: &Kept, drawn: &Drawn, stages: &[&str]) -> Value {
    let rounded = |number: f64, digits: f64| (number * digits).round() / digits;
    let took = |stage: &&str| {
        let known = kept.stages.iter().find(|(name, _)| name == stage);
        rounded(known.map_or(0.0, |(_, ms)| *ms), 1e3)
    };
    let class = |(class, share): &(String, f32)| json!([class, rounded(f64::from(*share), 1e4)]);
    json!({
        "n": kept.name,
        "p": kept.predictions.iter().map(class).collect::<Vec<_>>(),
        "s": stages.iter().map(took).collect::<Vec<_>>(),
        "w": drawn.width,
        "h": drawn.height,
        "j": STANDARD.encode(&drawn.frame),
        "t": drawn.targets.iter().map(layers).collect::<Vec<_>>(),
    })
}

fn layers(target: &DrawnTarget) -> Value {
    let mut described = json!({"class": target.class, "layer": target.target_layer});
    if let Some(area) = target.area {
        described["area"] =
            json!([area.left, area.top, area.width, area.height].map(|part| (part * 1e4).round() / 1e4));
    }
    if let Some(heat) = &target.heat {
        let (levels, opacities) = (STANDARD.encode(&heat.levels), STANDARD.encode(&heat.opacities));
        described["heat"] = json!({"width": heat.width, "height": heat.height, "l": levels, "o": opacities});
    }
    if let Some(light) = &target.light {
        described["light"] = json!({"width": light.width, "height": light.height, "l": STANDARD.encode(&light.lit)});
    }
    if let Some(guided) = &target.guided {
        described["guided"] = STANDARD.encode(guided).into();
    }
    described
}

#[cfg(test)]
mod tests {
    use super::super::tests::scene;
    use super::*;
    use crate::frame::{Channels, Pixels};

    #[test]
    fn a_long_clip_keeps_evenly_spaced_frames() {
        let mut frames = Frames::default();
        for number in 0..1000 {
            let scene = Scene { tag: number.to_string(), ..scene("cup") };
            assert_eq!(frames.keeps_next(), number % frames.stride.max(1) == 0);
            frames.push(scene).expect("a frame");
        }
        let kept: Vec<usize> = frames.kept.iter().map(|kept| kept.name.parse().expect("a number")).collect();
        assert_eq!(kept, (0..1000).step_by(4).collect::<Vec<_>>());
    }

    /// Frames of the largest report, and its bytes, a thirtieth of each.
    const FEW: usize = MAX_FRAMES / 30;
    const BYTES: usize = MAX_BYTES / 30;

    /// Frames of 480 × 360 whose pixels are `at(x, y, noise)`.
    fn frames_of(at: impl Fn(u32, u32, u32) -> u32) -> Frames {
        let pixels = (0..SIDE * 360).flat_map(|place| {
            let noise = place.wrapping_mul(2_654_435_761) >> 24;
            [at(place % SIDE, place / SIDE, noise) as u8; 3]
        });
        let busy = Pixels::upright(SIDE, 360, Channels::Rgb, pixels.collect());
        let mut frames = Frames::default();
        frames.push(Scene { frame: Some(busy), ..scene("cup") }).expect("a frame");
        frames.kept = vec![frames.kept[0].clone(); FEW];
        frames
    }

    #[test]
    fn three_hundred_frames_fit_into_the_file() {
        let frames = frames_of(|x, y, noise| (x / 7 * 5 + y / 11 * 3) % 200 + noise / 16);
        let large: usize = frames.kept.iter().map(|kept| kept.drawn.frame.len()).sum();
        assert!(large > BYTES, "{large} bytes would not have to be reduced");
        let json = frames.within(BYTES);
        assert_eq!((json["frames"].as_array().map(Vec::len), &json["every"]), (Some(FEW), &json!(1)));
        assert!(json.to_string().len() <= BYTES + 1000, "{} bytes", json.to_string().len());
        assert_eq!(frames.json()["frames"][0]["w"], SIDE, "where there is room, frames are as large as may be");
    }

    #[test]
    fn of_frames_that_cannot_be_made_small_enough_fewer_are_in_the_file() {
        let most = BYTES / 8;
        let json = frames_of(|x, y, _| (x / 7 * 5 + y / 11 * 3) % 200).within(most);
        assert!(json.to_string().len() <= most + 1000, "{} bytes", json.to_string().len());
        let count = json["frames"].as_array().map_or(0, Vec::len) as u64;
        assert!(count < FEW as u64 && count * json["every"].as_u64().expect("a number") >= FEW as u64);
    }
}
