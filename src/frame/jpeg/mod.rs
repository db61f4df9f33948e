//! A decoder of JPEGs (ITU-T T.81) for cameras, which knows which parts of a picture were lost.
//!
//! It accounts for every block of every scan. A scan is damaged when a code is unknown, when its data ends before its
//! last block, or when data is left behind it. Restart intervals are found by their markers, so that the loss of one
//! does not shift the others. Damage that leaves valid codes for exactly the right number of blocks cannot be seen.
//!
//! Pixels agree with libjpeg-turbo's bit for bit.

mod bits;
mod blocks;
mod color;
mod error;
mod header;
mod huffman;
mod idct;
mod intervals;
mod planes;
mod progressive;
mod scan;
mod sequential;
mod units;
mod upsample;

use fearless_simd::{Level, Simd, dispatch};

use super::Damage;
use color::Space;
pub(super) use error::JpegError;
use header::{Frame, Header, Process, Scan, Stop};
use huffman::Class;
use planes::Picture;

/// Scans of a file that are decoded at most. Encoders write about ten.
const MAX_SCANS: usize = 100;

/// A JPEG whose segments have been read up to its first scan.
#[derive(Debug)]
pub(super) struct Jpeg<'a> {
    data: &'a [u8],
    header: Header<'a>,
    frame: Frame,
    scan: Scan,
    /// Where the data of the first scan begins.
    at: usize,
}

/// Decoded pixels.
#[derive(Debug, PartialEq)]
pub(super) struct Samples {
    /// Rows of grey or RGB pixels, as the file stores them.
    pub(super) samples: Vec<u8>,
    /// What was lost; it is grey.
    pub(super) damage: Option<Damage>,
}

impl<'a> Jpeg<'a> {
    /// Reads the segments before the first scan. This is cheap: no pixel is decoded.
    ///
    /// # Errors
    /// A kind of JPEG that is not read, an impossible header, or an end of the data before the first scan.
    pub(super) fn read(data: &'a [u8]) -> Result<Self, JpegError> {
        let mut header = Header::default();
        let mut at = 0;
        let scan = match header.read(data, &mut at)? {
            Stop::Scan(scan) => scan,
            Stop::EndOfData => return Err(JpegError::Truncated),
            Stop::EndOfImage => return Err(JpegError::malformed("there is no scan before its end")),
        };
        let frame = header.frame.clone().ok_or_else(|| JpegError::malformed("it has no frame header"))?;
        Ok(Jpeg { data, header, frame, scan, at })
    }

    /// Width and height as stored.
    pub(super) fn size(&self) -> (u32, u32) {
        (self.frame.width, self.frame.height)
    }

    /// Whether the pixels are grey; otherwise they are RGB.
    pub(super) fn is_gray(&self) -> bool {
        Space::of(&self.frame, &self.header) == Space::Gray
    }

    /// The content of the EXIF segment.
    pub(super) fn exif(&self) -> Option<&'a [u8]> {
        self.header.exif
    }

    /// Whether there are fewer bytes than the first scan takes at least, with every block in its shortest code.
    ///
    /// # Errors
    /// A table that is not there.
    pub(super) fn is_too_short(&self) -> Result<bool, JpegError> {
        let mut bits = 0;
        for component in &self.scan.components {
            let mut block = self.header.definition(Class::Dc, component.dc)?.shortest();
            if self.frame.process == Process::Sequential {
                block += self.header.definition(Class::Ac, component.ac)?.shortest();
            }
            let most =
                |side: fn(&header::Component) -> usize| self.frame.components.iter().map(side).max().unwrap_or(1);
            let part = &self.frame.components[component.index];
            let side = |length: u32, own: usize, most: usize| (length as usize * own).div_ceil(most).div_ceil(8);
            bits += block
                * side(self.frame.width, part.horizontal, most(|part| part.horizontal))
                * side(self.frame.height, part.vertical, most(|part| part.vertical));
        }
        Ok((self.data.len() - self.at) * 8 < bits)
    }

    /// Decodes the pixels. The caller has checked that the size is within limits and not 0.
    ///
    /// # Errors
    /// A file of which nothing can be decoded. Damage is no error.
    pub(super) fn decode(self) -> Result<Samples, JpegError> {
        dispatch!(Level::new(), simd => self.decode_with(simd))
    }

    fn decode_with<S: Simd>(mut self, simd: S) -> Result<Samples, JpegError> {
        let space = Space::of(&self.frame, &self.header);
        let mut picture = Picture::new(&self.frame)?;
        let cut = self.decode_scans(simd, &mut picture)?;
        picture.lose_missing_scans();
        if self.frame.process == Process::Progressive {
            for plane in &mut picture.planes {
                simd.vectorize(
                    #[inline(always)]
                    || plane.transform(simd),
                );
            }
        }
        let samples = simd.vectorize(
            #[inline(always)]
            || color::pixels(simd, &picture, space),
        );
        Ok(Samples { samples, damage: picture.damage(cut) })
    }

    /// Decodes all scans. Returns whether the data ends before the end-of-image marker.
    fn decode_scans<S: Simd>(&mut self, simd: S, picture: &mut Picture) -> Result<bool, JpegError> {
        let mut next = self.scan.clone();
        for count in 1..=MAX_SCANS {
            match scan::decode(simd, picture, &self.header, &next, self.data, &mut self.at) {
                Ok(cut) if cut || picture.is_complete() => return Ok(cut),
                Ok(_) => {}
                Err(error) if count == 1 => return Err(error),
                // A scan before this one was lost, or its header is damaged. What no scan brings is found at the end.
                Err(_) => {}
            }
            match self.header.read(self.data, &mut self.at) {
                Ok(Stop::Scan(scan)) => next = scan,
                Ok(Stop::EndOfData) => return Ok(true),
                Ok(Stop::EndOfImage) | Err(_) => return Ok(false),
            }
        }
        Err(JpegError::unsupported(format!("it has more than {MAX_SCANS} scans")))
    }
}

#[cfg(test)]
mod tests;
