//! From attribution maps to bytes: typed tensors, heat maps, overlays, encoded pictures, reports.
//!
//! Maps are `&[f32]` with their shape, row-major. A tensor leaves as a [`WireTensor`] at the model's resolution, at the
//! target layer's, or [`warp`]ed to the frame's. [`heat_map`], [`overlay()`], [`light()`] and [`guided_picture`] make
//! pictures, and [`encode()`] makes files of them. A page draws by itself: a [`Scene`] becomes [`Drawn`], the parts of
//! its pictures, from which the script of [`page`] makes them, on the live page and in a [`report`]. [`npy`] reads and
//! writes NumPy's arrays. Everything here is pure.

mod color;
mod drawn;
mod encode;
mod error;
mod fade;
mod guided;
mod heat_map;
mod layers;
mod light;
mod map;
pub mod npy;
mod overlay;
pub mod page;
pub mod report;
mod scene;
mod shrunk;
mod tensor;
mod warp;

pub use color::ColorMap;
pub use drawn::{Detail, Drawn, DrawnTarget};
pub use encode::{DEFAULT_QUALITY, PictureFormat, encode};
pub use error::RenderError;
pub use guided::guided_picture;
pub use heat_map::{ValueRange, heat_map};
pub use layers::{Area, HeatLayer, LightLayer, heat_layer, light_layer};
pub use light::{DEFAULT_DARKNESS, light};
pub use map::Map;
pub use overlay::{DEFAULT_OPACITY, overlay};
pub use scene::{Grid, Prediction, Scene, Target};
pub use shrunk::shrunk;
pub use tensor::{ElementType, WireTensor};
pub use warp::{layer_to_model, warp};
