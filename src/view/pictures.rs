//! Pictures for programs that show MJPEG.

use bytes::Bytes;

use super::picture::Picture;
use super::shot::{DETAIL, Shot};
use crate::frame::Pixels;
use crate::render::{
    self, ColorMap, DEFAULT_DARKNESS, DEFAULT_OPACITY, PictureFormat, RenderError, ValueRange, layer_to_model,
};

impl Shot {
    /// The picture as JPEG, encoded once for all who ask. `None` when its map was not computed.
    pub(super) fn picture(&self, picture: Picture) -> Option<Bytes> {
        let encoded = self.pictures[picture as usize].get_or_init(|| {
            let drawn = self.draw_picture(picture).and_then(|drawn| drawn.map(|pixels| jpeg(&pixels)).transpose());
            drawn
                .unwrap_or_else(|error| {
                    tracing::debug!(%error, picture = picture.name(), "a picture could not be drawn for the live page");
                    None
                })
                .map(Bytes::from)
        });
        encoded.clone()
    }

    /// Without the frame, which is encoded from the start.
    fn draw_picture(&self, picture: Picture) -> Result<Option<Pixels>, RenderError> {
        let (range, colors, to_upright) = (ValueRange::OfTheMap, ColorMap::Turbo, &self.scene.to_upright);
        let (Some(frame), Some(target)) = (&self.scene.frame, self.scene.targets.first()) else { return Ok(None) };
        Ok(match (picture, &target.cam, &target.guided) {
            (Picture::Overlay, Some(cam), _) => {
                let map = cam.map()?;
                let to_upright = layer_to_model((map.width(), map.height()), self.scene.map_size).then(to_upright);
                Some(render::overlay(frame, &map, &to_upright, range, colors, DEFAULT_OPACITY)?)
            }
            (Picture::HeatMap, Some(cam), _) => Some(render::heat_map(&cam.map()?, range, colors)?),
            (Picture::GuidedGradCam, _, Some(guided)) => {
                Some(render::guided_picture(&guided.values, guided.volume()?, self.scene.color)?)
            }
            (Picture::Light, _, Some(guided)) => {
                Some(render::light(frame, &guided.values, guided.volume()?, to_upright, range, DEFAULT_DARKNESS)?)
            }
            (Picture::Frame, ..)
            | (Picture::Overlay | Picture::HeatMap, None, _)
            | (Picture::GuidedGradCam | Picture::Light, _, None) => None,
        })
    }
}

fn jpeg(picture: &Pixels) -> Result<Vec<u8>, RenderError> {
    render::encode(picture, PictureFormat::Jpeg { quality: DETAIL.quality })
}
