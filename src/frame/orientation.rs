//! The EXIF orientation: how the camera was held.

use super::AffineTransform;

/// The operation that makes the stored picture upright. The numbers are EXIF's (tag 0x0112).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum Orientation {
    #[default]
    Upright = 1,
    MirrorHorizontally = 2,
    Rotate180 = 3,
    MirrorVertically = 4,
    /// Mirror over the diagonal from top left to bottom right.
    Transpose = 5,
    /// Rotate 90° clockwise.
    Rotate90 = 6,
    /// Mirror over the diagonal from top right to bottom left.
    Transverse = 7,
    /// Rotate 90° counterclockwise.
    Rotate270 = 8,
}

impl Orientation {
    /// All eight, in EXIF's order.
    pub const ALL: [Orientation; 8] = [
        Orientation::Upright,
        Orientation::MirrorHorizontally,
        Orientation::Rotate180,
        Orientation::MirrorVertically,
        Orientation::Transpose,
        Orientation::Rotate90,
        Orientation::Transverse,
        Orientation::Rotate270,
    ];

    /// The orientation of EXIF's number. A number other than 1 to 8 means upright, as in other readers.
    pub fn from_exif(number: u8) -> Orientation {
        match number {
            1..=8 => Self::ALL[usize::from(number) - 1],
            _ => Orientation::Upright,
        }
    }

    /// Whether the operation swaps width and height.
    pub fn swaps_sides(self) -> bool {
        self as u8 >= 5
    }

    /// The transform from the upright picture to the stored one of `stored_width` × `stored_height` pixels.
    pub fn upright_to_stored(self, stored_width: u32, stored_height: u32) -> AffineTransform {
        let right = f64::from(stored_width) - 1.0;
        let bottom = f64::from(stored_height) - 1.0;
        let matrix = match self {
            Orientation::Upright => [1.0, 0.0, 0.0, 0.0, 1.0, 0.0],
            Orientation::MirrorHorizontally => [-1.0, 0.0, right, 0.0, 1.0, 0.0],
            Orientation::Rotate180 => [-1.0, 0.0, right, 0.0, -1.0, bottom],
            Orientation::MirrorVertically => [1.0, 0.0, 0.0, 0.0, -1.0, bottom],
            Orientation::Transpose => [0.0, 1.0, 0.0, 1.0, 0.0, 0.0],
            Orientation::Rotate90 => [0.0, 1.0, 0.0, -1.0, 0.0, bottom],
            Orientation::Transverse => [0.0, -1.0, right, -1.0, 0.0, bottom],
            Orientation::Rotate270 => [0.0, -1.0, right, 1.0, 0.0, 0.0],
        };
        AffineTransform { matrix }
    }

    /// Turns stored rows of `CHANNELS` bytes per pixel upright.
    ///
    /// # Panics
    /// When `stored` is not `width · height · CHANNELS` bytes long.
    pub fn turn_upright<const CHANNELS: usize>(self, stored: Vec<u8>, width: u32, height: u32) -> Vec<u8> {
        let (width, height) = (width as usize, height as usize);
        assert_eq!(stored.len(), width * height * CHANNELS, "a picture's bytes follow from its size");
        if self == Orientation::Upright {
            return stored;
        }
        let (upright_width, upright_height) = if self.swaps_sides() { (height, width) } else { (width, height) };
        // Offsets in pixels: of the upright picture's first pixel, and the steps to the next pixel and to the next row.
        let (row, last_column, last_row) = (width as isize, width as isize - 1, (height as isize - 1) * width as isize);
        let (start, right, down) = match self {
            Orientation::Upright => (0, 1, row),
            Orientation::MirrorHorizontally => (last_column, -1, row),
            Orientation::Rotate180 => (last_row + last_column, -1, -row),
            Orientation::MirrorVertically => (last_row, 1, -row),
            Orientation::Transpose => (0, row, 1),
            Orientation::Rotate90 => (last_row, -row, 1),
            Orientation::Transverse => (last_row + last_column, -row, -1),
            Orientation::Rotate270 => (last_column, row, -1),
        };
        let mut upright = vec![0; stored.len()];
        for y in 0..upright_height {
            let line = &mut upright[y * upright_width * CHANNELS..][..upright_width * CHANNELS];
            for (x, pixel) in line.chunks_exact_mut(CHANNELS).enumerate() {
                let from = (start + x as isize * right + y as isize * down) as usize * CHANNELS;
                pixel.copy_from_slice(&stored[from..from + CHANNELS]);
            }
        }
        upright
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turning_pixels_agrees_with_the_transform_for_every_orientation() {
        let (width, height) = (5u32, 3u32);
        let stored: Vec<u8> = (0..width * height * 3).map(|v| v as u8).collect();
        for orientation in Orientation::ALL {
            let upright = orientation.turn_upright::<3>(stored.clone(), width, height);
            let (upright_width, upright_height) =
                if orientation.swaps_sides() { (height, width) } else { (width, height) };
            let transform = orientation.upright_to_stored(width, height);
            for y in 0..upright_height {
                for x in 0..upright_width {
                    let (stored_x, stored_y) = transform.apply(x.into(), y.into());
                    let at = (stored_y as u32 * width + stored_x as u32) as usize * 3;
                    let here = (y * upright_width + x) as usize * 3;
                    assert_eq!(upright[here..here + 3], stored[at..at + 3], "{orientation:?} at {x}, {y}");
                }
            }
        }
    }

    #[test]
    fn rotating_clockwise_brings_the_lower_left_corner_to_the_upper_left() {
        assert_eq!(Orientation::Rotate90.turn_upright::<1>(vec![1, 2, 3, 4, 5, 6], 3, 2), [4, 1, 5, 2, 6, 3]);
    }

    #[test]
    fn a_number_that_exif_does_not_define_counts_as_upright() {
        for number in [0, 9, 255] {
            assert_eq!(Orientation::from_exif(number), Orientation::Upright);
        }
    }
}
