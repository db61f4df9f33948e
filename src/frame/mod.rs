//! From a camera's bytes to the model's input: payload → pixels → `[C, H, W]` of f32.
