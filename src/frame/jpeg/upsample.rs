//! Rows of a component at the picture's resolution.
//!
//! Halved components are interpolated as libjpeg does it ("fancy upsampling"): a sample is three parts of its own and
//! one of its neighbour's. Others are repeated.

use super::planes::Plane;

/// How a plane becomes as large as the picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Upsampling {
    None,
    /// Twice as wide, interpolated.
    Wide,
    /// Twice as high, interpolated.
    High,
    /// Twice as wide and high, interpolated.
    Both,
    /// So many times as wide and high, repeated.
    Repeated(usize, usize),
}

impl Upsampling {
    /// For a plane in MCUs of `mcu` blocks, whose sides are multiples of the plane's.
    pub(super) fn of(plane: &Plane, mcu: (usize, usize)) -> Upsampling {
        match (mcu.0 / plane.horizontal, mcu.1 / plane.vertical) {
            (1, 1) => Upsampling::None,
            (2, 1) if plane.width > 2 => Upsampling::Wide,
            (1, 2) => Upsampling::High,
            (2, 2) if plane.width > 2 => Upsampling::Both,
            (wide, high) => Upsampling::Repeated(wide, high),
        }
    }

    /// Writes the row `y` of the picture to `out`, which is a few samples longer than the picture is wide. `sums` is
    /// memory for the work.
    #[inline(always)]
    pub(super) fn row(self, plane: &Plane, y: usize, sums: &mut [u16], out: &mut [u8]) {
        match self {
            Upsampling::None => out[..plane.width].copy_from_slice(plane.row(y)),
            Upsampling::Wide => {
                let row = plane.row(y);
                for (sum, &sample) in sums[1..].iter_mut().zip(row) {
                    *sum = u16::from(sample);
                }
                widen(sums, row.len(), 1, 2, 2, out);
            }
            Upsampling::High => {
                let (near, far) = neighbours(plane, y);
                let rounding = if y.is_multiple_of(2) { 1 } else { 2 };
                for ((out, &near), &far) in out.iter_mut().zip(near).zip(far) {
                    *out = ((u16::from(near).wrapping_mul(3)).wrapping_add(u16::from(far)).wrapping_add(rounding) >> 2)
                        as u8;
                }
            }
            Upsampling::Both => {
                let (near, far) = neighbours(plane, y);
                for ((sum, &near), &far) in sums[1..].iter_mut().zip(near).zip(far) {
                    *sum = u16::from(near).wrapping_mul(3).wrapping_add(u16::from(far));
                }
                widen(sums, near.len(), 8, 7, 4, out);
            }
            Upsampling::Repeated(wide, high) => {
                for (out, &sample) in out.chunks_mut(wide).zip(plane.row(y / high)) {
                    out.fill(sample);
                }
            }
        }
    }
}

/// The row of a halved plane that a row of the picture lies in, and the other one that it is close to.
#[inline(always)]
fn neighbours(plane: &Plane, y: usize) -> (&[u8], &[u8]) {
    let near = y / 2;
    let far = if y.is_multiple_of(2) { near.saturating_sub(1) } else { near + 1 };
    (plane.row(near), plane.row(far))
}

/// Doubles the width of `count` sums, which begin at index 1: the left half of each gets the left neighbour's share.
#[inline(always)]
fn widen(sums: &mut [u16], count: usize, left: u16, right: u16, shift: u32, out: &mut [u8]) {
    // The first and last are their own neighbours.
    sums[0] = sums[1];
    sums[count + 1] = sums[count];
    let (before, here, behind) = (&sums[..count], &sums[1..=count], &sums[2..count + 2]);
    for (((out, &before), &here), &behind) in out.as_chunks_mut::<2>().0.iter_mut().zip(before).zip(here).zip(behind) {
        let three = here.wrapping_mul(3);
        *out = [
            (three.wrapping_add(before).wrapping_add(left) >> shift) as u8,
            (three.wrapping_add(behind).wrapping_add(right) >> shift) as u8,
        ];
    }
}
