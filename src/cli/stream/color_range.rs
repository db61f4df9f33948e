//! The values at the ends of the colour scale: each map's own, fixed, or following the frames slowly.
//!
//! With its own range every map is as red as any other, and a video flickers with the noise of each maximum. A range
//! that follows keeps the low end at 0, where nothing speaks for the class, and moves the high end slowly towards the
//! maxima of the maps: evidence that is weak for this source looks weak.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::sink::{End, Sink};
use super::video::Timeline;
use crate::cli::failure::Failure;
use crate::client::{Adjust, Event};
use crate::proto::v1;
use crate::proto::v1::explain_stream_response::Message as Response;

/// Time constants, in seconds, with which the range follows larger and smaller maxima.
const RISE_S: f64 = 0.3;
const FALL_S: f64 = 5.0;

/// The range that was asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ColorRange {
    Own,
    Follow,
    Fixed { min: f32, max: f32 },
}

impl FromStr for ColorRange {
    type Err = String;

    /// `own`, `follow` or `MIN:MAX`.
    fn from_str(text: &str) -> Result<Self, String> {
        let ends = || text.split_once(':').and_then(|(min, max)| Some((min.parse().ok()?, max.parse().ok()?)));
        match (text, ends()) {
            ("own", _) => Ok(ColorRange::Own),
            ("follow", _) => Ok(ColorRange::Follow),
            (_, Some((min, max))) if f32::is_finite(min) && f32::is_finite(max) && min < max => {
                Ok(ColorRange::Fixed { min, max })
            }
            _ => Err("give own, follow, or MIN:MAX with MIN below MAX".to_owned()),
        }
    }
}

/// Whether the colours of a picture show values of Grad-CAM.
fn shows_grad_cam(picture: &v1::PictureOutput) -> bool {
    matches!(picture.picture(), v1::Picture::Overlay | v1::Picture::HeatMap)
}

impl ColorRange {
    /// Sets the options of a stream: a fixed range, or the map that a range follows.
    pub fn set(self, options: &mut v1::ExplainOptions) {
        match self {
            ColorRange::Own => {}
            ColorRange::Fixed { min, max } => set_range(&mut options.pictures, v1::ValueRange { min, max }),
            ColorRange::Follow => options.tensors.push(v1::TensorOutput {
                map: v1::Map::GradCam as i32,
                resolution: v1::Resolution::Layer as i32,
                ..Default::default()
            }),
        }
    }
}

fn set_range(pictures: &mut [v1::PictureOutput], range: v1::ValueRange) {
    pictures.iter_mut().filter(|picture| shows_grad_cam(picture)).for_each(|picture| picture.fixed_range = Some(range));
}

/// Follows the maxima of the maps: a sink for answers, and an adjustment of the frames that are sent.
pub struct FollowSink {
    /// The high end of the range; `None` before the first answer with evidence.
    high: Arc<Mutex<Option<f64>>>,
    timeline: Timeline,
    is_live: bool,
    last: Duration,
}

impl FollowSink {
    /// `pictures` are those of the stream's options.
    pub fn new(pictures: Vec<v1::PictureOutput>, timeline: Timeline, is_live: bool) -> (Self, Adjust) {
        let high = Arc::<Mutex<Option<f64>>>::default();
        let shared = high.clone();
        let adjust = Adjust::new(move |frame: &mut v1::Frame| {
            let Some(high) = *shared.lock() else { return };
            let mut pictures = pictures.clone();
            set_range(&mut pictures, v1::ValueRange { min: 0.0, max: high as f32 });
            frame.options.get_or_insert_default().pictures = pictures;
        });
        (FollowSink { high, timeline, is_live, last: Duration::ZERO }, adjust)
    }

    fn follow(&mut self, maximum: f64, at: Duration) {
        let passed_s = at.saturating_sub(self.last).as_secs_f64();
        self.last = at;
        let mut high = self.high.lock();
        *high = match *high {
            // A map without evidence has no say.
            _ if !(maximum > f64::from(f32::MIN_POSITIVE) && maximum.is_finite()) => *high,
            None => Some(maximum),
            Some(before) => {
                let constant_s = if maximum > before { RISE_S } else { FALL_S };
                Some(before + (maximum - before) * (1.0 - (-passed_s / constant_s).exp()))
            }
        };
    }
}

impl Sink for FollowSink {
    fn take(&mut self, event: &Event<'_>) -> Result<(), Failure> {
        if let Event::Message(Response::Explanation(answer), Some(answered)) = event {
            let at = self.timeline.place(answered, self.is_live);
            self.follow(maximum(answer), at);
        }
        Ok(())
    }

    fn finish(self: Box<Self>, _: &End<'_>) -> Result<Option<String>, Failure> {
        Ok(None)
    }
}

/// The largest value of Grad-CAM in an answer; 0 without a map.
fn maximum(answer: &v1::Explanation) -> f64 {
    let tensors = answer.targets.iter().flat_map(|target| &target.tensors);
    // Other sinks may ask for other maps; this one is float32.
    let is_ours =
        |map: &&v1::MapTensor| map.map == v1::Map::GradCam as i32 && map.resolution == v1::Resolution::Layer as i32;
    let maps = tensors.filter(is_ours).filter_map(|map| map.tensor.as_ref());
    let values = maps.flat_map(|map| map.data.chunks_exact(4)).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    values.filter(|value| value.is_finite()).fold(0.0, |most, value| f64::from(value).max(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(picture: v1::Picture) -> v1::PictureOutput {
        v1::PictureOutput { picture: picture as i32, ..Default::default() }
    }

    #[test]
    fn a_range_is_own_following_or_fixed() {
        assert_eq!(("own".parse(), "follow".parse()), (Ok(ColorRange::Own), Ok(ColorRange::Follow)));
        assert_eq!("-1:2.5".parse(), Ok(ColorRange::Fixed { min: -1.0, max: 2.5 }));
        for text in ["", "1", "2:1", "1:1", "0:inf", "NaN:1", "a:b"] {
            assert!(text.parse::<ColorRange>().is_err(), "{text}");
        }
    }

    #[test]
    fn only_pictures_of_grad_cam_get_the_range() {
        let pictures = vec![picture(v1::Picture::Overlay), picture(v1::Picture::GuidedGradCam)];
        let mut options = v1::ExplainOptions { pictures, ..Default::default() };
        ColorRange::Fixed { min: 0.0, max: 2.0 }.set(&mut options);
        let ranges: Vec<_> =
            options.pictures.iter().map(|picture| picture.fixed_range.map(|range| range.max)).collect();
        assert_eq!(ranges, [Some(2.0), None]);
    }

    #[test]
    fn the_range_rises_faster_than_it_falls_and_reaches_the_maximum() {
        let pictures = vec![picture(v1::Picture::Overlay)];
        let (mut sink, adjust) = FollowSink::new(pictures, Timeline::new(25.0, 25.0), false);
        let range = |adjust: &Adjust| {
            let mut frame = v1::Frame::default();
            adjust.apply(&mut frame);
            let picture = frame.options.and_then(|options| options.pictures.first().cloned());
            picture.and_then(|picture| picture.fixed_range).map(|range| (range.min, range.max))
        };
        assert_eq!(range(&adjust), None, "before the first answer each map has its own");
        sink.follow(0.0, Duration::ZERO);
        assert_eq!(range(&adjust), None, "no evidence");
        sink.follow(1.0, Duration::from_millis(40));
        assert_eq!(range(&adjust), Some((0.0, 1.0)));
        let after = |sink: &mut FollowSink, maximum, seconds: u64| {
            let at = sink.last + Duration::from_secs(seconds);
            sink.follow(maximum, at);
            range(&adjust).expect("a range").1
        };
        let risen = after(&mut sink, 2.0, 1);
        assert!((risen - 1.9643).abs() < 1e-3, "{risen}");
        assert!((after(&mut sink, 2.0, 60) - 2.0).abs() < 1e-3);
        let fallen = after(&mut sink, 1.0, 1);
        assert!((fallen - 1.8187).abs() < 1e-3, "{fallen}");
    }

    #[test]
    fn the_maximum_is_that_of_all_maps_of_grad_cam() {
        let map = |map: v1::Map, values: &[f32]| v1::MapTensor {
            map: map as i32,
            resolution: v1::Resolution::Layer as i32,
            tensor: Some(v1::Tensor {
                data: values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into(),
                ..Default::default()
            }),
        };
        let target = |tensors| v1::TargetExplanation { tensors, ..Default::default() };
        let targets = vec![
            target(vec![map(v1::Map::GradCam, &[0.5, f32::NAN, 0.25])]),
            target(vec![map(v1::Map::GradCam, &[0.75]), map(v1::Map::GuidedGradCam, &[9.0])]),
        ];
        assert_eq!(maximum(&v1::Explanation { targets, ..Default::default() }), 0.75);
        assert_eq!(maximum(&v1::Explanation::default()), 0.0);
    }
}
