//! What an answer has to hold.

use crate::explain::{MapKind, Maps};
use crate::render::{ColorMap, ElementType, PictureFormat, ValueRange};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resolution {
    Model,
    /// The frame as it was sent.
    Frame,
    /// The target layer's; of [`MapKind::GradCam`] alone.
    Layer,
}

/// A map as numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TensorOutput {
    pub map: MapKind,
    pub element_type: ElementType,
    pub resolution: Resolution,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PictureKind {
    /// Grad-CAM over the upright frame.
    Overlay,
    /// Grad-CAM alone.
    HeatMap,
    GuidedGradCam,
    GuidedBackprop,
}

/// A map as a picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PictureOutput {
    pub kind: PictureKind,
    pub format: PictureFormat,
    pub color_map: ColorMap,
    /// 0 to 1; of [`PictureKind::Overlay`].
    pub opacity: f32,
    pub range: ValueRange,
}

/// Everything that was asked for, in that order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Outputs {
    pub tensors: Vec<TensorOutput>,
    pub pictures: Vec<PictureOutput>,
    /// How many of the highest classes come back.
    pub top_predictions: usize,
}

impl Outputs {
    /// The maps that must be computed.
    pub fn maps(&self) -> Maps {
        let mut maps = Maps::default();
        for tensor in &self.tensors {
            match tensor.map {
                MapKind::GuidedGradCam => maps.guided_grad_cam = true,
                MapKind::GradCam => maps.grad_cam = true,
                MapKind::GuidedBackprop => maps.guided_backprop = true,
                MapKind::Input => {}
            }
        }
        for picture in &self.pictures {
            match picture.kind {
                PictureKind::Overlay | PictureKind::HeatMap => maps.grad_cam = true,
                PictureKind::GuidedGradCam => maps.guided_grad_cam = true,
                PictureKind::GuidedBackprop => maps.guided_backprop = true,
            }
        }
        maps
    }

    /// Whether the picture that was sent is drawn on.
    pub(super) fn needs_picture(&self) -> bool {
        self.pictures.iter().any(|picture| picture.kind == PictureKind::Overlay)
    }
}
