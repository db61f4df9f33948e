//! The mathematics: targets, Grad-CAM, guided backpropagation, fusion.
//!
//! With `x` the model's input `[N, C, H, W]`, `y` its logits, `c` a row's class and `A` the target layer's value
//! `[N, K, h, w]`:
//!
//! 1. `G = ∂(Σ_n y[n, c_n]) / ∂A`, plain; `α = mean_{i,j} G`; `L = relu(Σ_k α·A)` — Grad-CAM, Selvaraju et al. 2017.
//! 2. `U(L)`: bilinear to `H × W`.
//! 3. `R = ∂(Σ_n y[n, c_n]) / ∂x`, guided — Springenberg et al. 2015.
//! 4. `F = R ⊙ U(L)` — Guided Grad-CAM.
//!
//! Nothing is normalised unless the convention says so ([`Convention`]).

mod cam;
mod check;
mod cost;
mod error;
mod explainer;
mod forward;
mod head;
mod maps;
mod ranking;
mod request;
mod reversed;
mod row_maps;
mod target_layer;
mod targets;

pub use cam::CamMethod;
pub use check::check_method;
pub use cost::Cost;
pub use error::ExplainError;
pub use explainer::Explainer;
pub use forward::Forward;
pub use head::{Head, Prediction};
pub use maps::{MapKind, MapSet, PerMap};
pub use request::{Convention, Method, Mode, Target};
pub use reversed::Reversed;
pub use row_maps::{HostMap, RowMaps, TargetMaps};
