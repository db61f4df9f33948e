//! The names of pictures.

use std::str::FromStr;

/// What an MJPEG stream shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Picture {
    Frame,
    Overlay,
    HeatMap,
    GuidedGradCam,
    Light,
}

impl Picture {
    pub(super) const ALL: [Picture; 5] =
        [Picture::Frame, Picture::Overlay, Picture::HeatMap, Picture::GuidedGradCam, Picture::Light];

    /// The name in an address.
    pub(super) fn name(self) -> &'static str {
        match self {
            Picture::Frame => "frame",
            Picture::Overlay => "overlay",
            Picture::HeatMap => "heat-map",
            Picture::GuidedGradCam => "guided-grad-cam",
            Picture::Light => "light",
        }
    }
}

impl FromStr for Picture {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = Picture::ALL.into_iter().find(|picture| picture.name() == text);
        named.ok_or_else(|| {
            let names = Picture::ALL.map(Picture::name).join(", ");
            format!("there is no picture {text:?}: {names} are there")
        })
    }
}
