//! Transforms from positions of the model's input to positions in the frame.

/// An affine transform of the plane: `x' = a·x + b·y + c`, `y' = d·x + e·y + f`.
///
/// Positions are in pixels, and integers are pixel centres: (0, 0) is the centre of the first pixel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AffineTransform {
    /// `[a, b, c, d, e, f]`, row-major.
    pub matrix: [f64; 6],
}

impl AffineTransform {
    /// Maps every position to itself.
    pub const IDENTITY: AffineTransform = AffineTransform { matrix: [1.0, 0.0, 0.0, 0.0, 1.0, 0.0] };

    /// Scales and then shifts each axis: `x' = scale_x·x + shift_x`.
    pub fn scale_shift(scale_x: f64, shift_x: f64, scale_y: f64, shift_y: f64) -> Self {
        AffineTransform { matrix: [scale_x, 0.0, shift_x, 0.0, scale_y, shift_y] }
    }

    /// The image of `(x, y)`.
    pub fn apply(&self, x: f64, y: f64) -> (f64, f64) {
        let [a, b, c, d, e, f] = self.matrix;
        (a * x + b * y + c, d * x + e * y + f)
    }

    /// First `self`, then `next`.
    pub fn then(&self, next: &AffineTransform) -> AffineTransform {
        let [a, b, c, d, e, f] = self.matrix;
        let [na, nb, nc, nd, ne, nf] = next.matrix;
        AffineTransform {
            matrix: [
                na * a + nb * d,
                na * b + nb * e,
                na * c + nb * f + nc,
                nd * a + ne * d,
                nd * b + ne * e,
                nd * c + ne * f + nf,
            ],
        }
    }

    /// The inverse, or `None` when the determinant is 0 or not finite.
    pub fn inverse(&self) -> Option<AffineTransform> {
        let [a, b, c, d, e, f] = self.matrix;
        let determinant = a * e - b * d;
        if determinant == 0.0 || !determinant.is_finite() {
            return None;
        }
        let (ia, ib, id, ie) = (e / determinant, -b / determinant, -d / determinant, a / determinant);
        Some(AffineTransform { matrix: [ia, ib, -(ia * c + ib * f), id, ie, -(id * c + ie * f)] })
    }
}

/// The transform from the model's input to the frame, in both orientations of the frame.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ModelToFrame {
    /// To the upright picture, on which overlays are drawn.
    pub upright: AffineTransform,
    /// To the frame as it was sent, before its EXIF orientation is applied.
    pub stored: AffineTransform,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn transforms_compose_in_reading_order() {
        let double = AffineTransform::scale_shift(2.0, 0.0, 2.0, 0.0);
        let shift = AffineTransform::scale_shift(1.0, 3.0, 1.0, -1.0);
        assert_eq!(double.then(&shift).apply(5.0, 7.0), (13.0, 13.0));
        assert_eq!(shift.then(&double).apply(5.0, 7.0), (16.0, 12.0));
    }

    #[test]
    fn a_transform_that_flattens_the_plane_has_no_inverse() {
        assert_eq!(AffineTransform { matrix: [1.0, 2.0, 0.0, 2.0, 4.0, 0.0] }.inverse(), None);
    }

    proptest! {
        #[test]
        fn the_inverse_undoes_the_transform(
            m in prop::array::uniform6(-9.0f64..9.0), x in -99.0f64..99.0, y in -99.0f64..99.0,
        ) {
            prop_assume!((m[0] * m[4] - m[1] * m[3]).abs() > 0.1);
            let transform = AffineTransform { matrix: m };
            let (u, v) = transform.then(&transform.inverse().unwrap()).apply(x, y);
            prop_assert!((u - x).abs() < 1e-6 && (v - y).abs() < 1e-6);
        }
    }
}
