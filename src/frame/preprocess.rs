//! From upright pixels to the model's input, as torchvision computes it for Pillow images.

use std::fmt;

use super::decode::{check_header, decode};
use super::resample::resample;
use super::window::{Window, with_shorter_side};
use super::{AffineTransform, Channels, Decoded, FrameError, InputTensor, Limits, ModelToFrame, Payload, Pixels};
use crate::model::description::{ColorOrder, Interpolation, Preprocessing, Resize};
use crate::model::dimension::{self, Dimension, Sizes};

/// The size of a model's input, `[channels, height, width]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InputSize {
    pub channels: u32,
    pub height: Dimension,
    pub width: Dimension,
}

impl InputSize {
    /// `None`: any height, any width.
    pub fn new(channels: u32, height: Option<u32>, width: Option<u32>) -> InputSize {
        let side = |variable, fixed: Option<u32>| match fixed {
            Some(size) => Dimension::Fixed(size.into()),
            None => Dimension::Dynamic { example: 1, sizes: Sizes::any(variable) },
        };
        InputSize { channels, height: side(0, height), width: side(1, width) }
    }

    /// The height; `None` where it varies.
    pub fn fixed_height(&self) -> Option<u32> {
        self.height.fixed().map(clamped)
    }

    /// The width; `None` where it varies.
    pub fn fixed_width(&self) -> Option<u32> {
        self.width.fixed().map(clamped)
    }

    pub(super) fn takes(&self, height: u32, width: u32) -> bool {
        dimension::takes([self.height, self.width], [height.into(), width.into()])
    }

    /// Whether a picture whose shorter side is `shorter` can have a size that the model takes.
    fn takes_shorter(&self, shorter: u32) -> bool {
        let reaches = |side: Dimension| side.largest().is_none_or(|largest| largest >= shorter.into());
        let [height, width] = [self.height, self.width];
        (height.takes(shorter.into()) && reaches(width)) || (width.takes(shorter.into()) && reaches(height))
    }

    /// Checks the shape `[C, H, W]` of a tensor.
    ///
    /// # Errors
    /// [`FrameError::TensorShape`] when the model does not take it.
    pub(super) fn check(&self, shape: [u32; 3]) -> Result<(), FrameError> {
        let [channels, height, width] = shape;
        if self.channels == channels && self.takes(height, width) {
            return Ok(());
        }
        Err(FrameError::TensorShape { shape: shape.to_vec(), allowed: format!("the model takes {self}") })
    }
}

impl fmt::Display for InputSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {}]", self.channels, dimension::described(self.height, self.width))
    }
}

fn clamped(size: i64) -> u32 {
    u32::try_from(size).unwrap_or(0)
}

/// Why a `model.toml` does not fit its model's input. Found when the model is loaded.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PreparationError {
    #[error(
        "input.{key} of model.toml has {count} numbers: the model has {channels} channels; give one number, or one per \
         channel"
    )]
    WrongCount { key: &'static str, count: usize, channels: u32 },
    #[error("input.{key} of model.toml holds {value}: {allowed}")]
    WrongValue { key: &'static str, value: String, allowed: &'static str },
    #[error(
        "input.color of model.toml is {color:?}, but the model takes {channels} channels: \"gray\" goes with 1, \
         \"rgb\" and \"bgr\" with 3"
    )]
    Color { color: ColorOrder, channels: u32 },
    #[error("input.{key} of model.toml makes {height}×{width} (height × width), but the model takes {allowed}")]
    WrongSize { key: &'static str, height: u32, width: u32, allowed: String },
    #[error("input.resize of model.toml makes the shorter side {shorter}, but the model takes {allowed}")]
    WrongShorterSide { shorter: u32, allowed: String },
}

/// The preparation of one model's frames. Made once, when the model is loaded, and used for every frame.
#[derive(Debug, Clone)]
pub struct Preparation {
    input: InputSize,
    resize: Option<Resize>,
    crop: Option<[u32; 2]>,
    interpolation: Interpolation,
    planes: Vec<Plane>,
    /// One number for each plane.
    mean: Vec<f32>,
    std: Vec<f32>,
    max_pixels: u64,
    sample_bits: Option<u32>,
}

/// One channel of the model's input.
#[derive(Debug, Clone)]
struct Plane {
    source: Source,
    /// The input's value for each byte: `(byte / 255 - mean) / std`, in f32 and in this order, as in torchvision.
    values: Box<[f32; 256]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// 0 red, 1 green, 2 blue.
    Channel(usize),
    Luma,
}

/// The size of a prepared input, and its transform to the frame.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prepared {
    pub height: u32,
    pub width: u32,
    pub model_to_frame: ModelToFrame,
}

impl Preparation {
    /// The preparation that `description` specifies for the input `input`.
    ///
    /// A model with one channel gets luma, regardless of `color`. For a model with neither 1 nor 3 channels, frames
    /// must be tensors. `limits.max_pixels` bounds the input of a model that takes any size.
    ///
    /// # Errors
    /// [`PreparationError`] when the description does not fit the input.
    pub fn new(description: &Preprocessing, input: InputSize, limits: &Limits) -> Result<Self, PreparationError> {
        let (planes, mean, std) = planes(description, input.channels)?;
        let preparation = Preparation {
            input,
            resize: description.resize,
            crop: description.crop,
            interpolation: description.interpolation,
            planes,
            mean,
            std,
            max_pixels: limits.max_pixels,
            sample_bits: description.sample_bits,
        };
        preparation.check_sizes()?;
        Ok(preparation)
    }

    /// The model's input.
    pub fn input(&self) -> InputSize {
        self.input
    }

    /// Decodes a frame for this model.
    ///
    /// # Errors
    /// Those of [`super::decode`].
    pub fn decode(&self, payload: &Payload, limits: &Limits) -> Result<Decoded, FrameError> {
        decode(payload, limits, self.sample_bits)
    }

    /// Checks a frame for this model without decoding it, and returns the bytes that the decoded frame will take.
    ///
    /// # Errors
    /// The errors of [`super::decode`] and [`Preparation::prepare`] that the header and the sizes show.
    pub fn check_header(&self, payload: &Payload, limits: &Limits) -> Result<u64, FrameError> {
        let decoded = check_header(payload, limits)?;
        match payload {
            Payload::Tensor { data, shape } => {
                self.input.check(InputTensor::check_shape(data, shape)?)?;
                Ok(decoded)
            }
            Payload::Encoded { .. } | Payload::Raw { .. } if self.planes.is_empty() => {
                Err(FrameError::NoPictures { channels: self.input.channels })
            }
            Payload::Encoded { .. } | Payload::Raw { .. } => Ok(decoded),
        }
    }

    /// Whether frames may be pictures; otherwise they must be tensors.
    pub fn takes_pictures(&self) -> bool {
        !self.planes.is_empty()
    }

    /// Replaces `out` with the model's input, `[C, H, W]`.
    ///
    /// # Errors
    /// A tensor of another shape, a picture for a model that takes tensors only, or a picture that resize and crop
    /// bring to another size than the model takes, or beyond the limit of pixels.
    pub fn prepare(&self, frame: &Decoded, out: &mut Vec<f32>) -> Result<Prepared, FrameError> {
        match frame {
            Decoded::Picture(pixels) => self.prepare_picture(pixels, out),
            Decoded::Tensor(tensor) => {
                self.input.check(tensor.shape())?;
                out.clear();
                out.extend_from_slice(tensor.values());
                let [_, height, width] = tensor.shape();
                let stays = AffineTransform::IDENTITY;
                Ok(Prepared { height, width, model_to_frame: ModelToFrame { upright: stays, stored: stays } })
            }
        }
    }

    /// Replaces `out` with the picture's bytes before normalisation, `[H, W, C]`, in the order of the model's channels.
    /// [`Preparation::values`] makes the model's input of them.
    ///
    /// # Errors
    /// Those of [`Preparation::prepare`].
    pub fn prepare_bytes(&self, pixels: &Pixels, out: &mut Vec<u8>) -> Result<Prepared, FrameError> {
        let (columns, rows) = self.visible_windows(pixels)?;
        let visible = resample(pixels, columns, rows, self.interpolation);
        let count = self.planes.len();
        // The part of a crop that is beyond the picture is black.
        out.clear();
        out.resize(rows.made as usize * columns.made as usize * count, 0);
        let (made, shown) = (columns.made as usize * count, columns.visible as usize);
        let lines = out.chunks_exact_mut(made).skip(rows.before as usize);
        let is_bgr = self.planes[0].source == Source::Channel(2);
        for (line, pixels) in lines.zip(visible.chunks_exact(shown * pixels.channels().count())) {
            let line = &mut line[columns.before as usize * count..][..shown * count];
            match (line.len() / shown, pixels.len() / shown) {
                (3, 3) if is_bgr => {
                    let (to, from) = (line.as_chunks_mut::<3>().0, pixels.as_chunks::<3>().0);
                    to.iter_mut().zip(from).for_each(|(to, &[red, green, blue])| *to = [blue, green, red]);
                }
                (1, 3) => line.iter_mut().zip(pixels.as_chunks::<3>().0).for_each(|(to, from)| *to = luma(*from)),
                (3, 1) => line.as_chunks_mut::<3>().0.iter_mut().zip(pixels).for_each(|(to, from)| *to = [*from; 3]),
                _ => line.copy_from_slice(pixels),
            }
        }
        Ok(prepared(pixels, columns, rows))
    }

    /// The model's input, `[C, H, W]`, from the bytes of [`Preparation::prepare_bytes`], `[H, W, C]`.
    pub fn values(&self, bytes: &[u8]) -> Vec<f32> {
        let count = self.planes.len();
        let of_plane = |(channel, plane): (usize, &Plane)| -> Vec<f32> {
            bytes.iter().skip(channel).step_by(count).map(|byte| plane.values[usize::from(*byte)]).collect()
        };
        self.planes.iter().enumerate().flat_map(of_plane).collect()
    }

    /// Mean and standard deviation of each channel: a byte becomes `(byte / 255 - mean) / std`, in f32 and in this
    /// order. Empty for a model whose frames must be tensors.
    pub fn normalization(&self) -> (&[f32], &[f32]) {
        (&self.mean, &self.std)
    }

    fn visible_windows(&self, pixels: &Pixels) -> Result<(Window, Window), FrameError> {
        if self.planes.is_empty() {
            return Err(FrameError::NoPictures { channels: self.input.channels });
        }
        self.windows(pixels)
    }

    fn prepare_picture(&self, pixels: &Pixels, out: &mut Vec<f32>) -> Result<Prepared, FrameError> {
        let (columns, rows) = self.visible_windows(pixels)?;
        let visible = resample(pixels, columns, rows, self.interpolation);
        let area = rows.made as usize * columns.made as usize;
        // Every element is overwritten below.
        out.resize(self.planes.len() * area, 0.0);
        if columns.made > columns.visible || rows.made > rows.visible {
            // The crop extends beyond the picture: that part is black.
            self.planes.iter().zip(out.chunks_exact_mut(area)).for_each(|(plane, out)| out.fill(plane.values[0]));
        }
        match (pixels.channels(), &self.planes[..]) {
            (Channels::Rgb, [first, second, third]) => {
                fill_colors([first, second, third], &visible, columns, rows, out);
            }
            (channels, planes) => {
                for (plane, values) in planes.iter().zip(out.chunks_exact_mut(area)) {
                    plane.fill(&visible, channels, columns, rows, values);
                }
            }
        }
        Ok(prepared(pixels, columns, rows))
    }

    /// The windows of columns and rows that the input takes from the picture.
    fn windows(&self, pixels: &Pixels) -> Result<(Window, Window), FrameError> {
        let (width, height) = (pixels.width(), pixels.height());
        let too_large =
            |width, height| FrameError::TooManyPixels { field: "frame", width, height, limit: self.max_pixels };
        let (resized_width, resized_height) = match self.resize {
            Some(Resize::Exact([height, width])) => (width, height),
            Some(Resize::Shorter(shorter)) => {
                with_shorter_side(width, height, shorter).ok_or_else(|| too_large(width, height))?
            }
            None => (self.input.fixed_width().unwrap_or(width), self.input.fixed_height().unwrap_or(height)),
        };
        let columns = Window::centred(width, resized_width, self.crop.map(|[_, width]| width));
        let rows = Window::centred(height, resized_height, self.crop.map(|[height, _]| height));
        if !self.input.takes(rows.made, columns.made) {
            return Err(FrameError::DoesNotFit {
                width,
                height,
                made_width: columns.made,
                made_height: rows.made,
                allowed: self.input.to_string(),
            });
        }
        if u64::from(columns.made) * u64::from(rows.made) > self.max_pixels {
            return Err(too_large(columns.made, rows.made));
        }
        Ok((columns, rows))
    }

    /// Checks for sizes that no frame could have.
    fn check_sizes(&self) -> Result<(), PreparationError> {
        if let Some(bits) = self.sample_bits.filter(|bits| !(8..=16).contains(bits)) {
            let allowed = "8 to 16 bits are allowed";
            return Err(PreparationError::WrongValue { key: "sample_bits", value: bits.to_string(), allowed });
        }
        let zero = |key, value: String| PreparationError::WrongValue { key, value, allowed: "sizes begin at 1" };
        match self.resize {
            Some(Resize::Shorter(0)) => return Err(zero("resize", "0".to_owned())),
            Some(Resize::Exact(size)) if size.contains(&0) => return Err(zero("resize", format!("{size:?}"))),
            _ => {}
        }
        if let Some(size) = self.crop.filter(|size| size.contains(&0)) {
            return Err(zero("crop", format!("{size:?}")));
        }
        let made = match (self.crop, self.resize) {
            (Some(crop), _) => Some(("crop", crop)),
            (None, Some(Resize::Exact(size))) => Some(("resize", size)),
            _ => None,
        };
        match made {
            Some((key, [height, width])) if !self.input.takes(height, width) => {
                return Err(PreparationError::WrongSize { key, height, width, allowed: self.input.to_string() });
            }
            Some(_) => return Ok(()),
            None => {}
        }
        match self.resize {
            Some(Resize::Shorter(shorter)) if !self.input.takes_shorter(shorter) => {
                Err(PreparationError::WrongShorterSide { shorter, allowed: self.input.to_string() })
            }
            _ => Ok(()),
        }
    }
}

/// The size of the windows, and their transform to the frame.
fn prepared(pixels: &Pixels, columns: Window, rows: Window) -> Prepared {
    let (scale_x, shift_x) = columns.to_source();
    let (scale_y, shift_y) = rows.to_source();
    let upright = AffineTransform::scale_shift(scale_x, shift_x, scale_y, shift_y);
    let stored = upright.then(&pixels.upright_to_stored());
    Prepared { height: rows.made, width: columns.made, model_to_frame: ModelToFrame { upright, stored } }
}

/// The planes of the model's input, and each one's mean and standard deviation.
#[expect(clippy::type_complexity, reason = "three lists of one length")]
fn planes(description: &Preprocessing, channels: u32) -> Result<(Vec<Plane>, Vec<f32>, Vec<f32>), PreparationError> {
    let sources: &[Source] = match (channels, description.color) {
        (1, _) => &[Source::Luma],
        (3, ColorOrder::Rgb) => &[Source::Channel(0), Source::Channel(1), Source::Channel(2)],
        (3, ColorOrder::Bgr) => &[Source::Channel(2), Source::Channel(1), Source::Channel(0)],
        (3, color @ ColorOrder::Gray) => return Err(PreparationError::Color { color, channels }),
        _ => &[],
    };
    let mean = per_channel("mean", &description.mean, 0.0, channels)?;
    let std = per_channel("std", &description.std, 1.0, channels)?;
    if let Some(value) = std.iter().find(|value| **value == 0.0) {
        let allowed = "a standard deviation is not 0";
        return Err(PreparationError::WrongValue { key: "std", value: value.to_string(), allowed });
    }
    let plane = |((source, &mean), &std): ((&Source, &f32), &f32)| {
        let values: [f32; 256] = std::array::from_fn(|byte| (byte as f32 / 255.0 - mean) / std);
        if values.iter().all(|value| value.is_finite()) {
            return Ok(Plane { source: *source, values: Box::new(values) });
        }
        let allowed = "a number so small, with that mean, that pixels become infinite is not allowed";
        Err(PreparationError::WrongValue { key: "std", value: std.to_string(), allowed })
    };
    let planes: Vec<Plane> = sources.iter().zip(&mean).zip(&std).map(plane).collect::<Result<_, _>>()?;
    if planes.is_empty() { Ok(Default::default()) } else { Ok((planes, mean, std)) }
}

fn per_channel(key: &'static str, numbers: &[f32], default: f32, channels: u32) -> Result<Vec<f32>, PreparationError> {
    if let Some(value) = numbers.iter().find(|value| !value.is_finite()) {
        let allowed = "every number must be finite";
        return Err(PreparationError::WrongValue { key, value: value.to_string(), allowed });
    }
    match numbers {
        [] => Ok(vec![default; channels as usize]),
        [one] => Ok(vec![*one; channels as usize]),
        many if many.len() == channels as usize => Ok(many.to_vec()),
        many => Err(PreparationError::WrongCount { key, count: many.len(), channels }),
    }
}

impl Plane {
    /// Fills the visible part of `[H, W]` with the values of the pixels' grey levels. The grey level of a colour is its
    /// luma.
    fn fill(&self, visible: &[u8], channels: Channels, columns: Window, rows: Window, out: &mut [f32]) {
        let (made, shown) = (columns.made as usize, columns.visible as usize);
        let lines = out.chunks_exact_mut(made).skip(rows.before as usize);
        for (line, pixels) in lines.zip(visible.chunks_exact(shown * channels.count())) {
            let line = &mut line[columns.before as usize..][..shown];
            match channels {
                // Every channel of the input gets the grey level.
                Channels::Gray => {
                    line.iter_mut().zip(pixels).for_each(|(out, &gray)| *out = self.values[usize::from(gray)]);
                }
                Channels::Rgb => {
                    let bytes = pixels.chunks_exact(3).map(|pixel| luma([pixel[0], pixel[1], pixel[2]]));
                    line.iter_mut().zip(bytes).for_each(|(out, byte)| *out = self.values[usize::from(byte)]);
                }
            }
        }
    }
}

/// Fills the visible part of three planes from a colour picture, in one pass over its pixels.
fn fill_colors(planes: [&Plane; 3], visible: &[u8], columns: Window, rows: Window, out: &mut [f32]) {
    let (made, shown) = (columns.made as usize, columns.visible as usize);
    let (first, rest) = out.split_at_mut(out.len() / 3);
    let (second, third) = rest.split_at_mut(rest.len() / 2);
    let [one, two, three] = planes;
    let [red, green, blue] = match one.source {
        Source::Channel(2) => [(three, third), (two, second), (one, first)],
        _ => [(one, first), (two, second), (three, third)],
    };
    let skipped = rows.before as usize;
    let lines = red.1.chunks_exact_mut(made).zip(green.1.chunks_exact_mut(made)).zip(blue.1.chunks_exact_mut(made));
    for (((reds, greens), blues), pixels) in lines.skip(skipped).zip(visible.chunks_exact(shown * 3)) {
        let [reds, greens, blues] = [reds, greens, blues].map(|line| &mut line[columns.before as usize..][..shown]);
        let (pixels, _) = pixels.as_chunks::<3>();
        for (((r, g), b), pixel) in reds.iter_mut().zip(greens).zip(blues).zip(pixels) {
            *r = red.0.values[usize::from(pixel[0])];
            *g = green.0.values[usize::from(pixel[1])];
            *b = blue.0.values[usize::from(pixel[2])];
        }
    }
}

/// ITU-R 601 luma in Pillow's fixed-point form (`convert("L")`).
fn luma([red, green, blue]: [u8; 3]) -> u8 {
    ((u32::from(red) * 19_595 + u32::from(green) * 38_470 + u32::from(blue) * 7_471 + 0x8000) >> 16) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Orientation;

    fn description(resize: Option<Resize>, crop: Option<[u32; 2]>) -> Preprocessing {
        Preprocessing { resize, crop, ..Preprocessing::default() }
    }

    fn fixed(channels: u32, height: u32, width: u32) -> InputSize {
        InputSize::new(channels, Some(height), Some(width))
    }

    fn free(channels: u32) -> InputSize {
        InputSize::new(channels, None, None)
    }

    fn varying(variable: u32, step: i64, least: i64, most: Option<i64>) -> Dimension {
        Dimension::Dynamic { example: 8, sizes: Sizes { variable, step, offset: 0, least, most } }
    }

    fn prepare(
        description: &Preprocessing,
        input: InputSize,
        pixels: Pixels,
    ) -> Result<(Prepared, Vec<f32>), FrameError> {
        let limits = Limits { max_pixels: 1_000_000, ..Limits::default() };
        let mut out = vec![7.0; 5];
        let preparation = Preparation::new(description, input, &limits).unwrap();
        preparation.prepare(&Decoded::Picture(pixels), &mut out).map(|prepared| (prepared, out))
    }

    fn picture(width: u32, height: u32) -> Pixels {
        Pixels::upright(width, height, Channels::Rgb, (0..width * height * 3).map(|i| i as u8).collect())
    }

    #[test]
    fn without_a_resize_a_free_model_gets_the_picture_as_it_is() {
        let (prepared, out) = prepare(&description(None, None), free(3), picture(3, 2)).unwrap();
        assert_eq!((prepared.height, prepared.width), (2, 3));
        assert_eq!(prepared.model_to_frame.stored, AffineTransform::IDENTITY);
        let planes: Vec<u8> = (0..3).flat_map(|c| (0..6).map(move |i| i * 3 + c)).collect();
        assert_eq!(out, planes.iter().map(|byte| f32::from(*byte) / 255.0).collect::<Vec<_>>());
    }

    #[test]
    fn a_picture_of_a_size_that_the_program_excludes_is_refused() {
        let input = InputSize { channels: 3, height: varying(0, 4, 2, Some(4)), width: varying(0, 4, 2, Some(4)) };
        assert!(prepare(&description(None, None), input, picture(8, 8)).is_ok());
        for (width, height) in [(4, 4), (9, 8), (12, 8), (20, 20)] {
            let error = prepare(&description(None, None), input, picture(width, height)).unwrap_err();
            assert_eq!((error.field(), error.kind()), ("frame", crate::frame::ErrorKind::InvalidArgument));
            let allowed = "[3, a height that is a multiple of 4, 8 to 16, the same width]";
            assert!(error.to_string().contains(allowed), "{error}");
        }
    }

    #[test]
    fn a_resize_that_no_picture_can_meet_is_refused() {
        let input = InputSize { channels: 3, height: varying(0, 1, 32, None), width: varying(1, 4, 1, Some(5)) };
        let new = |resize| Preparation::new(&description(Some(resize), None), input, &Limits::default()).err();
        assert_eq!(new(Resize::Exact([40, 12])), None);
        let wrong = new(Resize::Exact([40, 13]));
        assert!(matches!(wrong, Some(PreparationError::WrongSize { height: 40, width: 13, .. })), "{wrong:?}");
        assert_eq!(new(Resize::Shorter(16)), None, "a portrait of 16 columns");
        let wrong = new(Resize::Shorter(18));
        assert!(matches!(wrong, Some(PreparationError::WrongShorterSide { shorter: 18, .. })), "{wrong:?}");
        let wrong = new(Resize::Shorter(40));
        assert!(wrong.is_some(), "40 rows would have at most 20 columns, and then they are the shorter side");
    }

    #[test]
    fn without_a_resize_a_fixed_model_gets_its_own_size() {
        let (prepared, out) = prepare(&description(None, None), fixed(3, 4, 5), picture(30, 20)).unwrap();
        assert_eq!((prepared.height, prepared.width, out.len()), (4, 5, 60));
        let corner = prepared.model_to_frame.upright.apply(-0.5, -0.5);
        assert_eq!(corner, (-0.5, -0.5));
    }

    #[test]
    fn one_number_holds_for_every_channel_and_bgr_turns_the_planes() {
        let mut steps = description(None, None);
        steps.mean = vec![0.5];
        steps.std = vec![0.25, 0.5, 1.0];
        steps.color = ColorOrder::Bgr;
        let pixel = Pixels::upright(1, 1, Channels::Rgb, vec![255, 0, 51]);
        let (_, out) = prepare(&steps, free(3), pixel).unwrap();
        assert_eq!(out, [(51.0 / 255.0 - 0.5) / 0.25, -1.0, 0.5]);
    }

    #[test]
    fn a_model_with_one_channel_gets_luma_and_grey_fills_three_channels() {
        let red = Pixels::upright(1, 1, Channels::Rgb, vec![255, 0, 0]);
        assert_eq!(prepare(&description(None, None), free(1), red).unwrap().1, [76.0 / 255.0]);
        let gray = Pixels::upright(1, 1, Channels::Gray, vec![51]);
        assert_eq!(prepare(&description(None, None), free(3), gray).unwrap().1, [0.2, 0.2, 0.2]);
    }

    #[test]
    fn padding_is_black_before_normalisation() {
        let mut steps = description(None, None);
        steps.resize = Some(Resize::Exact([1, 1]));
        steps.crop = Some([2, 3]);
        steps.mean = vec![0.5];
        let white = Pixels::upright(1, 1, Channels::Gray, vec![255]);
        let (_, out) = prepare(&steps, free(1), white).unwrap();
        assert_eq!(out, [-0.5, 0.5, -0.5, -0.5, -0.5, -0.5]);
    }

    #[test]
    fn the_bytes_before_normalisation_make_the_same_input() {
        let color =
            |color| Preprocessing { color, mean: vec![0.4], std: vec![0.2, 0.3, 0.4], ..Preprocessing::default() };
        let one = Preprocessing { mean: vec![0.4], std: vec![0.2], ..Preprocessing::default() };
        let grey = Pixels::upright(7, 5, Channels::Gray, (0..35).map(|i| i * 7).collect());
        let crops =
            [(None, None), (Some(Resize::Shorter(6)), Some([9, 4])), (Some(Resize::Exact([3, 3])), Some([5, 5]))];
        for (resize, crop) in crops {
            for (steps, channels) in [(color(ColorOrder::Rgb), 3), (color(ColorOrder::Bgr), 3), (one.clone(), 1)] {
                let steps = Preprocessing { resize, crop, ..steps };
                let preparation = Preparation::new(&steps, free(channels), &Limits::default()).unwrap();
                for pixels in [picture(7, 5), grey.clone()] {
                    let (wanted, values) = prepare(&steps, free(channels), pixels.clone()).unwrap();
                    let mut bytes = vec![9; 3];
                    assert_eq!(preparation.prepare_bytes(&pixels, &mut bytes), Ok(wanted));
                    assert_eq!(preparation.values(&bytes), values, "{steps:?}");
                    assert_eq!(preparation.normalization().0.len(), channels as usize);
                }
            }
        }
        let mut bytes = Vec::new();
        let tensors = Preparation::new(&Preprocessing::default(), free(4), &Limits::default()).unwrap();
        assert_eq!(tensors.prepare_bytes(&grey, &mut bytes), Err(FrameError::NoPictures { channels: 4 }));
    }

    #[test]
    fn positions_map_back_through_crop_resize_and_every_orientation() {
        let steps = description(Some(Resize::Shorter(10)), Some([10, 10]));
        for orientation in Orientation::ALL {
            // One white block, large enough to survive the resize, at a position that no symmetry maps to itself.
            let (width, height) = (60u32, 40u32);
            let inside = |x: u32, y: u32| (16..20).contains(&x) && (28..32).contains(&y);
            let stored = (0..width * height).map(|i| if inside(i % width, i / width) { 255 } else { 0 }).collect();
            let pixels = Pixels::from_stored(width, height, Channels::Gray, stored, orientation);
            let (prepared, out) = prepare(&steps, fixed(1, 10, 10), pixels).unwrap();
            let brightest = (0..out.len()).max_by(|a, b| out[*a].total_cmp(&out[*b])).unwrap();
            let (x, y) = ((brightest % 10) as f64, (brightest / 10) as f64);
            let (stored_x, stored_y) = prepared.model_to_frame.stored.apply(x, y);
            assert_eq!((stored_x, stored_y), (17.5, 29.5), "{orientation:?}");
        }
    }

    #[test]
    fn an_extreme_aspect_ratio_costs_no_more_than_its_crop() {
        let steps = description(Some(Resize::Shorter(256)), Some([224, 224]));
        let (prepared, out) = prepare(&steps, fixed(3, 224, 224), picture(1, 60_000)).unwrap();
        assert_eq!((prepared.height, out.len()), (224, 3 * 224 * 224));
        let steps = description(Some(Resize::Shorter(256)), None);
        let error = prepare(&steps, free(3), picture(1, 60_000)).unwrap_err();
        assert_eq!(error.kind(), crate::frame::ErrorKind::ResourceExhausted);
        assert!(error.to_string().contains("256×15360000"), "{error}");
    }

    #[test]
    fn a_frame_that_does_not_come_out_at_the_models_size_names_the_keys() {
        let steps = description(Some(Resize::Shorter(8)), None);
        assert!(prepare(&steps, fixed(3, 8, 8), picture(20, 20)).is_ok());
        let error = prepare(&steps, fixed(3, 8, 8), picture(20, 10)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a frame of 20×10 becomes 16×8 by input.resize and input.crop of model.toml, but the model takes [3, 8, 8]"
        );
    }

    #[test]
    fn a_description_that_no_frame_could_satisfy_is_refused() {
        let refused = |steps: &Preprocessing, input| {
            Preparation::new(steps, input, &Limits::default()).map(|_| ()).unwrap_err().to_string()
        };
        let error = refused(&description(Some(Resize::Shorter(256)), Some([224, 225])), fixed(3, 224, 224));
        assert_eq!(error, "input.crop of model.toml makes 224×225 (height × width), but the model takes [3, 224, 224]");
        assert!(refused(&description(Some(Resize::Shorter(0)), None), free(3)).contains("input.resize"));
        assert!(refused(&description(None, Some([0, 1])), free(3)).contains("input.crop"));
        let mut steps = description(None, None);
        steps.mean = vec![0.1, 0.2];
        assert!(refused(&steps, free(3)).contains("input.mean"));
        steps.mean = vec![f32::NAN];
        assert!(refused(&steps, free(3)).contains("finite"));
        steps.mean.clear();
        for std in [0.0, 1e-45] {
            steps.std = vec![std];
            assert!(refused(&steps, free(3)).contains("input.std"));
        }
        steps.std.clear();
        steps.color = ColorOrder::Gray;
        assert!(refused(&steps, free(3)).contains("input.color"));
    }

    #[test]
    fn a_model_with_other_channels_takes_tensors_only() {
        let error = prepare(&description(None, None), free(4), picture(2, 2)).unwrap_err();
        assert_eq!(error, FrameError::NoPictures { channels: 4 });
    }
}
