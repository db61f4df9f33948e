//! CAM methods: a method is one file that turns activations and gradients `[N, K, h, w]` into maps `[N, h, w]`.

pub mod grad_cam;
pub mod layout;
pub mod scale;
