//! How far results are from what is expected of them. Kernels sum in another order on each processor, so that tests
//! compare relatively.

use tch::{Kind, Tensor};

/// `|found − expected| / |expected|` in L2; the plain distance where `expected` is zero.
pub fn relative_error(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    let (found, expected) = (found.to_kind(Kind::Double), expected.to_kind(Kind::Double));
    let norm = expected.norm().double_value(&[]);
    let distance = (found - expected).norm().double_value(&[]);
    if norm > 0.0 { distance / norm } else { distance }
}
