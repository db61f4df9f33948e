//! From attribution maps to bytes: typed tensors, heat maps, overlays, encoded pictures, reports.
//!
//! Maps are `&[f32]` with their shape, row-major. A tensor leaves as a [`WireTensor`] at the model's resolution, at the
//! target layer's, or [`warp`]ed to the frame's. [`heat_map`], [`overlay()`], [`light()`] and [`guided_picture`] make
//! pictures, and [`encode()`] makes files of them. [`npy`] reads and writes NumPy's arrays, and [`report`] writes a page
//! of pictures. Everything here is pure.

mod color;
mod encode;
mod error;
mod fade;
mod guided;
mod heat_map;
mod light;
mod map;
pub mod npy;
mod overlay;
pub mod report;
mod tensor;
mod warp;

pub use color::ColorMap;
pub use encode::{DEFAULT_QUALITY, PictureFormat, encode};
pub use error::RenderError;
pub use guided::guided_picture;
pub use heat_map::{ValueRange, heat_map};
pub use light::{DEFAULT_DARKNESS, light};
pub use map::Map;
pub use overlay::{DEFAULT_OPACITY, overlay};
pub use tensor::{ElementType, WireTensor};
pub use warp::{layer_to_model, warp};
