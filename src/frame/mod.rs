//! From a camera's bytes to the model's input: payload → pixels → `[C, H, W]` of f32.
//!
//! A frame arrives as a [`Payload`]. [`decode`] turns it into upright 8-bit [`Pixels`], or checks a tensor that already
//! is a model input. [`Limits`] are checked before anything is allocated. A [`Preparation`], made once per model, turns
//! the pixels into the model's input as torchvision does, and returns the transform back to the frame,
//! [`ModelToFrame`]. [`Preparation::check_header`] finds the errors that the first bytes and the sizes of a frame show,
//! before the frame waits. Everything here is pure: byte slices in, numbers out.

mod content;
mod damage;
mod decode;
mod error;
mod exif;
mod jpeg;
mod orientation;
mod payload;
mod pixels;
mod png;
mod preprocess;
mod raw;
mod resample;
mod significant_bits;
mod tensor;
mod transform;
mod window;

pub use damage::{Damage, Flaw};
pub use decode::{Decoded, decode};
pub use error::{ErrorKind, FrameError};
pub use orientation::Orientation;
pub use payload::{ImageFormat, Limits, Payload, PixelFormat};
pub use pixels::{Channels, Pixels};
pub use preprocess::{InputSize, Preparation, PreparationError, Prepared};
pub use resample::resized;
pub use tensor::InputTensor;
pub use transform::{AffineTransform, ModelToFrame};
