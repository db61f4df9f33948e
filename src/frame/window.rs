//! The part of a resized picture that becomes the model's input, along one axis.

/// One axis of "resize, then centre crop". Only pixels that are visible after the crop are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    /// Pixels of the picture.
    pub source: u32,
    /// Pixels of the whole resized picture.
    pub resized: u32,
    /// The first visible pixel of the resized picture.
    pub first: u32,
    /// Pixels of the visible part; at least 1.
    pub visible: u32,
    /// Black pixels before the visible part.
    pub before: u32,
    /// Pixels of the model's input: black, visible, black.
    pub made: u32,
}

impl Window {
    /// torchvision's `CenterCrop` of `crop` pixels (of all when absent), with its rounding: a smaller picture gets half
    /// the difference, rounded down, as padding before it; the crop of a larger one begins at half the difference,
    /// rounded half to even.
    pub fn centred(source: u32, resized: u32, crop: Option<u32>) -> Window {
        let made = crop.unwrap_or(resized);
        if made >= resized {
            Window { source, resized, first: 0, visible: resized, before: (made - resized) / 2, made }
        } else {
            let surplus = resized - made;
            let half = surplus / 2;
            let first = if surplus % 2 == 1 && half % 2 == 1 { half + 1 } else { half };
            Window { source, resized, first, visible: made, before: 0, made }
        }
    }

    /// Whether the picture is not resized along this axis.
    pub fn keeps_pixels(&self) -> bool {
        self.source == self.resized
    }

    /// Whether the picture is neither resized nor cropped along this axis.
    pub fn keeps_all(&self) -> bool {
        self.keeps_pixels() && self.visible == self.source
    }

    /// `(scale, shift)` of the transform `scale · x + shift` from the input's pixel `x` to the picture's. Integers are
    /// pixel centres.
    pub fn to_source(self) -> (f64, f64) {
        let scale = f64::from(self.source) / f64::from(self.resized);
        let offset = f64::from(self.first) - f64::from(self.before);
        (scale, (offset + 0.5) * scale - 0.5)
    }
}

/// The `(width, height)` of torchvision's `Resize` of one number: the shorter side gets `shorter` pixels, the longer
/// one `int(shorter · long / short)`. `None` when a side does not fit 32 bits.
pub(super) fn with_shorter_side(width: u32, height: u32, shorter: u32) -> Option<(u32, u32)> {
    let (short, long) = (width.min(height), width.max(height));
    let longer = u32::try_from(u64::from(shorter) * u64::from(long) / u64::from(short)).ok()?;
    Some(if width <= height { (shorter, longer) } else { (longer, shorter) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crop_begins_where_pythons_rounding_puts_it() {
        // int(round(n / 2.0)) of 1, 2, 3, 4, 5, 7
        for (surplus, first) in [(1, 0), (2, 1), (3, 2), (4, 2), (5, 2), (7, 4)] {
            assert_eq!(Window::centred(10 + surplus, 10 + surplus, Some(10)).first, first, "{surplus}");
        }
    }

    #[test]
    fn a_small_picture_is_padded_more_after_than_before() {
        let window = Window::centred(7, 7, Some(10));
        assert_eq!((window.before, window.visible, window.made), (1, 7, 10));
        assert_eq!(window.to_source(), (1.0, -1.0));
    }

    #[test]
    fn the_shorter_side_gets_the_number_of_pixels() {
        assert_eq!(with_shorter_side(451, 300, 256), Some((384, 256)));
        assert_eq!(with_shorter_side(300, 451, 256), Some((256, 384)));
        assert_eq!(with_shorter_side(1, 4_000_000_000, 2), None);
    }

    #[test]
    fn corners_map_to_corners() {
        let (scale, shift) = Window::centred(100, 50, None).to_source();
        assert_eq!((-0.5 * scale + shift, 49.5 * scale + shift), (-0.5, 99.5));
    }
}
