//! The tensors, pictures and predictions that a request asks for.

use crate::explain::{Expected, MapKind, MapSet};
use crate::render::{ColorMap, ElementType, PictureFormat, ValueRange};

/// The resolution of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resolution {
    /// That of the model's input.
    Model,
    /// That of the frame as it was sent.
    Frame,
    /// That of the target layer, for kinds that [have it](MapKind::has_layer_resolution).
    Layer,
}

/// A map as a tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TensorOutput {
    pub map: MapKind,
    pub element_type: ElementType,
    pub resolution: Resolution,
}

/// What a picture shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PictureKind {
    /// The CAM over the upright frame.
    Overlay,
    /// The CAM alone.
    HeatMap,
    GuidedGradCam,
    GuidedBackprop,
    /// The upright frame, dimmed except where Guided Grad-CAM is strong.
    Light,
}

impl PictureKind {
    /// The map that the picture is made from.
    pub fn map(self) -> MapKind {
        match self {
            PictureKind::Overlay | PictureKind::HeatMap => MapKind::GradCam,
            PictureKind::GuidedGradCam | PictureKind::Light => MapKind::GuidedGradCam,
            PictureKind::GuidedBackprop => MapKind::GuidedBackprop,
        }
    }

    /// Whether it is drawn on the frame.
    pub fn shows_frame(self) -> bool {
        matches!(self, PictureKind::Overlay | PictureKind::Light)
    }
}

/// A map as a picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PictureOutput {
    pub kind: PictureKind,
    pub format: PictureFormat,
    pub color_map: ColorMap,
    /// 0 to 1: the opacity of [`PictureKind::Overlay`], the darkness of [`PictureKind::Light`].
    pub opacity: f32,
    pub range: ValueRange,
}

/// The outputs of a request, in the request's order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Outputs {
    pub tensors: Vec<TensorOutput>,
    pub pictures: Vec<PictureOutput>,
    /// The number of highest classes in the answer.
    pub top_predictions: usize,
    /// What another program predicted of the frame; the answer tells whether the model agrees.
    pub expected: Option<Expected>,
}

impl Outputs {
    /// The maps that must be computed.
    pub fn maps(&self) -> MapSet {
        let of_tensors = self.tensors.iter().map(|tensor| tensor.map);
        of_tensors.chain(self.pictures.iter().map(|picture| picture.kind.map())).collect()
    }

    /// Whether a picture is drawn on the frame.
    pub(super) fn needs_picture(&self) -> bool {
        self.pictures.iter().any(|picture| picture.kind.shows_frame())
    }
}
