//! The mathematics: targets, class activation maps (CAMs), guided backpropagation, fusion.
//!
//! Let `x` be the model's input `[N, C, H, W]`, `s = Σ_n y[n, c_n]` the sum of the scores, where `y` are the logits and
//! `c_n` is the class of row `n`, and `A` the target layer's value `[N, K, h, w]`.
//!
//! 1. `G = ∂s/∂A`, plain. A CAM `L`, `[N, h, w]`, is computed from `A`, `G` and the scores; Grad-CAM is
//!    `L = relu(Σ_k α·A)` with `α = mean_{i,j} G` (Selvaraju et al. 2017, arXiv 1610.02391).
//! 2. `U(L)` is `L`, upsampled bilinearly to `[N, H, W]`.
//! 3. `R = ∂s/∂x`, guided, `[N, C, H, W]` (Springenberg et al. 2015, arXiv 1412.6806).
//! 4. `F = R ⊙ U(L)` is Guided Grad-CAM.
//!
//! Maps are normalised only where the [`Convention`] says so.
//!
//! An [`Explainer`] runs a batch forward. The [`Forward`] chooses the classes and runs in reverse. [`Reversed::fuse`]
//! makes the maps. On a device that works asynchronously, [`Enqueued`] does all of it without reading anything, and
//! [`PackedMaps`] makes one tensor of the results. [`Head`] knows what the model's output means, and compares it with
//! what was [`Expected`]. To add a kind of map, add a [`MapKind`] and the line of `batch_maps.rs` that makes it; to add
//! a CAM method, add a [`CamMethod`] and its file in `cam/`.

mod agreement;
mod batch_maps;
mod cam;
mod check;
mod cost;
mod enqueued;
mod error;
mod explainer;
mod forward;
mod head;
mod maps;
mod packed;
mod ranking;
mod request;
mod reversed;
mod row_maps;
mod target_layer;
mod targets;

pub use agreement::{Agreement, Expected};
pub use cam::CamMethod;
pub use check::check_method;
pub use cost::Cost;
pub use enqueued::{ChosenThere, Enqueued, NO_TARGET, ranked};
pub use error::ExplainError;
pub use explainer::Explainer;
pub use forward::Forward;
pub use head::{Head, Prediction};
pub use maps::{MapKind, MapSet, PerMap};
pub use packed::PackedMaps;
pub use request::{Convention, Method, Mode, Target};
pub use reversed::Reversed;
pub use row_maps::{HostMap, RowMaps, TargetMaps};
