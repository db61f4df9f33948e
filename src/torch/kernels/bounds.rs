//! The bounds of a rectifier.

/// The bounds to which a rectifier clamps. Gradients pass where `low < result < high`; an absent bound does not close.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bounds {
    pub low: f64,
    pub high: Option<f64>,
}

impl Bounds {
    /// Those of ReLU.
    pub const RELU: Bounds = Bounds { low: 0.0, high: None };

    /// The lower and the upper bound; infinite if absent.
    pub(in crate::torch) fn limits(bounds: Option<Self>) -> [f64; 2] {
        let low = bounds.map_or(f64::NEG_INFINITY, |bounds| bounds.low);
        [low, bounds.and_then(|bounds| bounds.high).unwrap_or(f64::INFINITY)]
    }
}
