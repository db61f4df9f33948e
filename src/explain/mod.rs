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
mod error;
mod explainer;
mod maps;
mod predictions;
mod request;

pub use check::check_method;
pub use error::ExplainError;
pub use explainer::{Explainer, Forward, Reversed, TargetMaps};
pub use maps::{MapKind, Maps};
pub use predictions::{Prediction, top_predictions};
pub use request::{Convention, Method, Mode, Target};
