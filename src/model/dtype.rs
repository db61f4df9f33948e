//! The numbers that `.pt2` files and ATen use for dtypes, memory formats and layouts.

use tch::Kind;

use super::ModelError;

/// The dtype with this number in a `.pt2` file.
pub fn kind(number: i64) -> Result<Kind, ModelError> {
    Ok(match number {
        1 => Kind::Uint8,
        2 => Kind::Int8,
        3 => Kind::Int16,
        4 => Kind::Int,
        5 => Kind::Int64,
        6 => Kind::Half,
        7 => Kind::Float,
        8 => Kind::Double,
        9 => Kind::ComplexHalf,
        10 => Kind::ComplexFloat,
        11 => Kind::ComplexDouble,
        12 => Kind::Bool,
        13 => Kind::BFloat16,
        29 => Kind::Float8e4m3fn,
        30 => Kind::Float8e5m2,
        31 => Kind::Float8e4m3fnuz,
        32 => Kind::Float8e5m2fnuz,
        other => {
            return Err(ModelError::refused(
                format!("the model uses a tensor of dtype number {other}"),
                "export it with tensors of a common dtype (float32, float16, bfloat16, int64, …)",
            ));
        }
    })
}

/// ATen's number of a dtype (`c10::ScalarType`).
pub const fn scalar_type(kind: Kind) -> i64 {
    match kind {
        Kind::Uint8 => 0,
        Kind::Int8 => 1,
        Kind::Int16 => 2,
        Kind::Int => 3,
        Kind::Int64 => 4,
        Kind::Half => 5,
        Kind::Float => 6,
        Kind::Double => 7,
        Kind::ComplexHalf => 8,
        Kind::ComplexFloat => 9,
        Kind::ComplexDouble => 10,
        Kind::Bool => 11,
        Kind::QInt8 => 12,
        Kind::QUInt8 => 13,
        Kind::QInt32 => 14,
        Kind::BFloat16 => 15,
        Kind::Float8e5m2 => 23,
        Kind::Float8e4m3fn => 24,
        Kind::Float8e5m2fnuz => 25,
        Kind::Float8e4m3fnuz => 26,
    }
}

/// Whether this is ATen's number of a dtype that camlens supports.
pub fn is_scalar_type(number: i64) -> bool {
    matches!(number, 0..=11 | 15 | 23..=26)
}

/// ATen's number of the memory format with this number in a `.pt2` file.
pub fn memory_format(number: i64) -> Result<i64, ModelError> {
    match number {
        1 => Ok(0), // contiguous
        2 => Ok(2), // channels last
        3 => Ok(3), // channels last, 3-D
        4 => Ok(1), // preserve
        other => Err(ModelError::malformed("graph", format!("memory format {other}"))),
    }
}

/// ATen's number of the layout with this number in a `.pt2` file.
pub fn layout(number: i64) -> Result<i64, ModelError> {
    match number {
        7 => Ok(0), // strided
        other => {
            Err(ModelError::refused(format!("the model uses layout number {other}"), "export it with dense tensors"))
        }
    }
}

/// A dtype's name as PyTorch spells it: `float32`.
pub fn name(kind: Kind) -> String {
    match kind {
        Kind::Float => "float32".to_owned(),
        Kind::Double => "float64".to_owned(),
        Kind::Half => "float16".to_owned(),
        Kind::BFloat16 => "bfloat16".to_owned(),
        other => format!("{other:?}"),
    }
}

pub fn is_floating_point(kind: Kind) -> bool {
    matches!(kind, Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16)
}
