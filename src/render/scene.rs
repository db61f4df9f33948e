//! An explained frame with its pixels and its maps: what a page shows of it.

use std::time::Duration;

use super::{Map, RenderError, shrunk};
use crate::frame::{AffineTransform, Channels, Pixels};
use crate::model::description::ColorOrder;

/// An explained frame.
#[derive(Debug, Clone)]
pub struct Scene {
    pub sequence: u64,
    /// The client's name for the frame. May be empty.
    pub tag: String,
    /// The upright frame. `None`: the frame was a tensor.
    pub frame: Option<Pixels>,
    /// From pixels of the model's input to pixels of the upright frame.
    pub to_upright: AffineTransform,
    /// Width and height of the model's input.
    pub map_size: (u32, u32),
    /// The order of the model's channels.
    pub color: ColorOrder,
    /// The highest first.
    pub predictions: Vec<Prediction>,
    pub targets: Vec<Target>,
    /// Stages of the frame's time so far, in order.
    pub stages: Vec<(&'static str, Duration)>,
    /// From the frame's capture to its answer, where the capture is known.
    pub glass_to_answer: Option<Duration>,
}

impl Scene {
    /// The same with a frame whose longer side has at most `most` pixels. A tensor gets an even grey of the
    /// size of the model's input.
    #[must_use]
    pub fn shrunk(self, most: u32) -> Scene {
        let (frame, to_upright) = match &self.frame {
            Some(frame) => shrunk(frame, &self.to_upright, most),
            None => {
                let ((width, height), gray) = (self.map_size, 128);
                let (width, height) = (width.max(1), height.max(1));
                let even = vec![gray; width as usize * height as usize];
                (Pixels::upright(width, height, Channels::Gray, even), AffineTransform::IDENTITY)
            }
        };
        Scene { frame: Some(frame), to_upright, ..self }
    }
}

/// A class as the model sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// Its label, or `class 7`.
    pub class: String,
    /// 0 to 1; 0 when the model has no probabilities.
    pub probability: f32,
    pub logit: f32,
}

/// What speaks for one class at one layer. A map that was not computed is absent.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// Its label, or `class 7`.
    pub class: String,
    pub target_layer: String,
    /// Grad-CAM, `[H, W]`, at the resolution of the model's input or of the target layer.
    pub cam: Option<Grid>,
    /// Guided Grad-CAM, `[C, H, W]`.
    pub guided: Option<Grid>,
    /// Nothing at the layer speaks for the class.
    pub no_evidence: bool,
}

/// A map's numbers, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Grid {
    pub values: Vec<f32>,
    pub shape: Vec<u32>,
}

impl Grid {
    /// A map of two dimensions.
    ///
    /// # Errors
    /// [`RenderError::Shape`] and [`RenderError::Length`].
    pub fn map(&self) -> Result<Map<'_>, RenderError> {
        match *self.shape.as_slice() {
            [height, width] => Map::new(&self.values, height, width),
            _ => Err(RenderError::Shape { shape: self.shape.clone(), allowed: "[H, W] does" }),
        }
    }

    /// The shape of a map of three dimensions.
    ///
    /// # Errors
    /// [`RenderError::Shape`].
    pub fn volume(&self) -> Result<[u32; 3], RenderError> {
        let shape = self.shape.as_slice().try_into();
        shape.map_err(|_| RenderError::Shape { shape: self.shape.clone(), allowed: "[C, H, W] does" })
    }
}
