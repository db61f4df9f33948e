//! What the processor can compute with, and in which element types.

use std::ffi::c_int;

use tch::Kind;

use super::ffi;
use super::tensor::{View, refused};
use crate::torch::OperatorError;

/// Whether the processor multiplies bfloat16 natively and oneDNN uses it: AVX-512 BF16 (Intel from Cooper Lake and
/// Sapphire Rapids on, AMD from Zen 4 on), or Arm's BF16.
pub fn has_bfloat16() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = std::arch::is_x86_feature_detected!("avx512bf16") && std::arch::is_x86_feature_detected!("avx512bw");
    #[cfg(target_arch = "aarch64")]
    let has = std::arch::is_aarch64_feature_detected!("bf16");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let has = false;
    has
}

/// Whether oneDNN's operators, as ATen exposes them (`mkldnn::…`), support a dtype and are fast.
pub fn has_onednn_kernels(kind: Kind) -> bool {
    kind == Kind::Float || (kind == Kind::BFloat16 && has_bfloat16())
}

/// Whether the processor has the instructions for camlens's own matrix products in a dtype, and so for
/// [`linear`](super::linear()), [`gemm`](super::gemm()), the sparse kernels, the gates and, in float32,
/// [`winograd`](super::winograd()). On x86: AVX2 or AVX-512 for float32, AVX-512 BF16 for bfloat16.
pub fn has_gemm_kernels(kind: Kind) -> bool {
    ElementType::of(kind).is_some_and(|element| element.panel_width().is_some())
}

/// The element types that the kernels compute with, numbered as in dispatch.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum ElementType {
    Float32 = 0,
    BFloat16 = 1,
}

impl ElementType {
    pub fn of(kind: Kind) -> Option<Self> {
        match kind {
            Kind::Float => Some(Self::Float32),
            Kind::BFloat16 => Some(Self::BFloat16),
            _ => None,
        }
    }

    /// From ATen's number for a dtype, c10/core/ScalarType.h.
    pub fn from_code(code: c_int) -> Option<Self> {
        match code {
            6 => Some(Self::Float32),
            15 => Some(Self::BFloat16),
            _ => None,
        }
    }

    pub fn kind(self) -> Kind {
        match self {
            Self::Float32 => Kind::Float,
            Self::BFloat16 => Kind::BFloat16,
        }
    }

    /// As it is written in error messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::BFloat16 => "bfloat16",
        }
    }

    /// How many elements a step of a packed product has: four bytes.
    pub fn per_step(self) -> i64 {
        match self {
            Self::Float32 => 1,
            Self::BFloat16 => 2,
        }
    }

    /// The columns of a packed panel; none where the processor lacks the instructions.
    pub fn panel_width(self) -> Option<i64> {
        match ffi::camlens_panel_width(self as i32) {
            0 => None,
            width => Some(width),
        }
    }

    /// What a number becomes when it is stored.
    pub fn rounded(self, value: f32) -> f32 {
        match self {
            Self::Float32 => value,
            Self::BFloat16 => half::bf16::from_f32(value).to_f32(),
        }
    }
}

/// The element type of a tensor that is multiplied, and the width of a weight's panels.
///
/// # Errors
/// Another dtype or device, no instructions for it.
pub(super) fn multiplied_type(kernel: &str, tensor: &View<'_>) -> Result<(ElementType, i64), OperatorError> {
    let element = tensor.element_type().ok_or_else(|| {
        refused(kernel, "there are no instructions but for float32 and bfloat16 on the CPU".to_owned())
    })?;
    let width = element.panel_width().ok_or_else(|| {
        refused(kernel, format!("the processor has no instructions for products of {}", element.name()))
    })?;
    Ok((element, width))
}
