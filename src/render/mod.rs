//! From attribution maps to what goes over the wire: typed tensors, heat maps, overlays, encoded pictures.
//!
//! Maps are `&[f32]` with their shape, row-major. A tensor leaves as a [`WireTensor`], in the model's resolution, the target
//! layer's, or [`warp`]ed to the frame's. For people there are [`heat_map`], [`overlay`] and [`guided_picture`], which
//! [`encode`] makes files of. Everything here is pure.

mod color;
mod encode;
mod error;
mod guided;
mod heat_map;
mod map;
mod overlay;
mod tensor;
mod warp;

pub use color::ColorMap;
pub use encode::{DEFAULT_QUALITY, PictureFormat, encode};
pub use error::RenderError;
pub use guided::guided_picture;
pub use heat_map::{ValueRange, heat_map};
pub use map::Map;
pub use overlay::{DEFAULT_OPACITY, overlay};
pub use tensor::{ElementType, WireTensor};
pub use warp::{layer_to_model, warp};
