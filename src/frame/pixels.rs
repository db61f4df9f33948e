//! An upright picture of 8-bit pixels.

use super::{AffineTransform, Flaw, Orientation};

/// The channels of a pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Channels {
    Gray,
    Rgb,
}

impl Channels {
    /// Bytes per pixel.
    pub fn count(self) -> usize {
        match self {
            Channels::Gray => 1,
            Channels::Rgb => 3,
        }
    }
}

/// An upright picture: contiguous rows from top to bottom, one byte per channel.
#[derive(Debug, Clone, PartialEq)]
pub struct Pixels {
    width: u32,
    height: u32,
    channels: Channels,
    data: Vec<u8>,
    orientation: Orientation,
    flaw: Option<Flaw>,
}

impl Pixels {
    /// Turns stored rows upright.
    ///
    /// # Panics
    /// When a side is 0 or `stored` is not `stored_width · stored_height · channels.count()` bytes long.
    pub fn from_stored(
        stored_width: u32,
        stored_height: u32,
        channels: Channels,
        stored: Vec<u8>,
        orientation: Orientation,
    ) -> Self {
        assert!(stored_width > 0 && stored_height > 0, "a picture has at least one pixel");
        let data = match channels {
            Channels::Gray => orientation.turn_upright::<1>(stored, stored_width, stored_height),
            Channels::Rgb => orientation.turn_upright::<3>(stored, stored_width, stored_height),
        };
        let (width, height) =
            if orientation.swaps_sides() { (stored_height, stored_width) } else { (stored_width, stored_height) };
        Pixels { width, height, channels, data, orientation, flaw: None }
    }

    /// A picture whose rows are upright already.
    ///
    /// # Panics
    /// As [`Pixels::from_stored`].
    pub fn upright(width: u32, height: u32, channels: Channels, data: Vec<u8>) -> Self {
        Self::from_stored(width, height, channels, data, Orientation::Upright)
    }

    /// Pixels in a row of the upright picture; at least 1.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Rows of the upright picture; at least 1.
    pub fn height(&self) -> u32 {
        self.height
    }

    pub fn channels(&self) -> Channels {
        self.channels
    }

    /// `height · width · channels` bytes, `[H, W, C]`.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The orientation of the frame as it was stored.
    pub fn orientation(&self) -> Orientation {
        self.orientation
    }

    /// The same pixels, of a file with a flaw.
    pub fn with_flaw(self, flaw: Option<Flaw>) -> Self {
        Pixels { flaw, ..self }
    }

    /// What is wrong with the file. `None`: nothing, as far as is known.
    pub fn flaw(&self) -> Option<Flaw> {
        self.flaw
    }

    /// `(width, height)` of the frame as it was sent.
    pub fn stored_size(&self) -> (u32, u32) {
        if self.orientation.swaps_sides() { (self.height, self.width) } else { (self.width, self.height) }
    }

    /// The transform from this upright picture to the frame as it was sent.
    pub fn upright_to_stored(&self) -> AffineTransform {
        let (width, height) = self.stored_size();
        self.orientation.upright_to_stored(width, height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turned_picture_keeps_the_size_it_was_sent_with() {
        let pixels = Pixels::from_stored(3, 2, Channels::Gray, vec![0; 6], Orientation::Rotate270);
        assert_eq!((pixels.width(), pixels.height()), (2, 3));
        assert_eq!(pixels.stored_size(), (3, 2));
        assert_eq!(pixels.upright_to_stored().apply(0.0, 0.0), (2.0, 0.0));
    }
}
