//! The element types of the kernels.

use std::ffi::c_int;

use tch::Kind;

use super::ffi;

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
