//! From a camera's bytes to the model's input: payload → pixels → `[C, H, W]` of f32.
//!
//! A frame arrives as a [`Payload`]. [`decode`] makes upright 8-bit [`Pixels`] of it (or checks a tensor that is a model
//! input already), within [`Limits`] that hold before anything is allocated. A [`Preparation`], made once for a model,
//! turns those into the model's input as torchvision would, and says with [`ModelToFrame`] where each position came from.
//! What a frame's first bytes and sizes betray is found by [`Preparation::check_header`], before the frame waits for anything.
//! Everything here is pure: byte slices in, numbers out.

mod decode;
mod error;
mod jpeg;
mod orientation;
mod payload;
mod pixels;
mod preprocess;
mod raw;
mod resample;
mod tensor;
mod transform;
mod window;

pub use decode::{Decoded, decode};
pub use error::{ErrorKind, FrameError};
pub use orientation::Orientation;
pub use payload::{ImageFormat, Limits, Payload, PixelFormat};
pub use pixels::{Channels, Pixels};
pub use preprocess::{InputSize, Preparation, PreparationError, Prepared};
pub use tensor::InputTensor;
pub use transform::{AffineTransform, ModelToFrame};
