//! The mathematics: targets, Grad-CAM, guided backpropagation, fusion.

pub mod request;

pub use request::{Convention, Maps, Method, Mode, Target};
