//! The units of a scan: what its restart intervals count.

use std::ops::Range;

use super::bits::Bits;
use super::blocks::{Band, Means};
use super::huffman::Table;
use super::planes::{Loss, Picture};

/// Bytes between the last block of an interval and the next marker that are no sign of damage.
const STRAY_BYTES: usize = 2;

/// The same in what webcams send: they write up to nine.
const WEBCAM_STRAY_BYTES: usize = 10;

/// Zeros of this number of bytes before zeros that are left over are no end of a block: a buffer was not filled.
const UNFILLED_ZEROS: usize = 3;

/// What a scan brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Sequential,
    DcFirst,
    DcRefine,
    AcFirst,
    AcRefine,
}

/// A component of a scan, with what its blocks need.
pub(super) struct Lane {
    pub(super) plane: usize,
    /// Blocks of a unit.
    pub(super) wide: usize,
    pub(super) high: usize,
    pub(super) dc: Option<Box<Table>>,
    pub(super) ac: Option<Box<Table>>,
    pub(super) steps: Box<[i32; 64]>,
}

/// The units of a scan are MCUs, or the blocks of its only component.
pub(super) struct Units {
    pub(super) kind: Kind,
    pub(super) band: Band,
    pub(super) lanes: Vec<Lane>,
    /// Units in a row, and all of them.
    pub(super) wide: usize,
    pub(super) count: usize,
    /// The file has no Huffman tables, as motion JPEG of webcams.
    pub(super) webcam: bool,
}

/// Twice the largest product of a DC coefficient and its step that 8-bit samples make.
const MOST_DC: u32 = 2048;

impl Lane {
    /// The DC coefficients, as the scan stores them.
    pub(super) fn means(&self, low: u32) -> Option<Means<'_>> {
        let most = (MOST_DC / self.steps[0].unsigned_abs().max(1)) >> low;
        self.dc.as_deref().map(|table| Means { table, most })
    }
}

impl Units {
    /// The units of an interval of `length` units.
    pub(super) fn range(&self, interval: usize, length: usize) -> Range<usize> {
        (interval * length).min(self.count)..((interval + 1) * length).min(self.count)
    }

    /// Notes the loss of units.
    pub(super) fn lose(&self, picture: &mut Picture, range: Range<usize>, loss: Loss) {
        let (wide, high) = match self.lanes.as_slice() {
            [lane] => {
                let plane = &picture.planes[lane.plane];
                (picture.mcu.0 / plane.horizontal, picture.mcu.1 / plane.vertical)
            }
            _ => picture.mcu,
        };
        for unit in range {
            picture.lose(unit % self.wide * wide, unit / self.wide * high, wide, high, loss);
        }
    }

    /// Judges what stands behind the last block of an interval, to which `bits` was read.
    pub(super) fn behind(&self, bits: &Bits<'_>) -> Rest {
        let rest = bits.rest();
        let is_unfilled = !rest.is_empty()
            && rest.iter().all(|&byte| byte == 0)
            && bits.zeros_taken() >= UNFILLED_ZEROS
            && !self.flat_is_zero();
        if is_unfilled { Rest::Data } else { self.rest(rest) }
    }

    /// Whether zeros are what an encoder writes for blocks of one colour.
    pub(super) fn flat_is_zero(&self) -> bool {
        self.lanes.iter().all(|lane| {
            let mut bits = Bits::new(&[]);
            bits.refill();
            lane.ac.as_ref().and_then(|ac| ac.decode(&mut bits)).is_some_and(|entry| entry.size() == 0)
        })
    }

    /// Judges the bytes behind the last block of an interval.
    pub(super) fn rest(&self, rest: &[u8]) -> Rest {
        let most = if self.webcam { WEBCAM_STRAY_BYTES } else { STRAY_BYTES };
        if rest.len() <= most || is_fill(rest) || is_multipart(rest) {
            Rest::Padding
        } else if rest.len() <= WEBCAM_STRAY_BYTES {
            Rest::Stray
        } else {
            Rest::Data
        }
    }
}

fn is_fill(rest: &[u8]) -> bool {
    [0, 0xFF].iter().any(|fill| rest.iter().all(|byte| byte == fill))
}

/// Whether this is the boundary of a multipart stream, whose picture lacks its end marker.
fn is_multipart(rest: &[u8]) -> bool {
    let text = rest.trim_ascii_start();
    rest.len() - text.len() <= 4
        && text.starts_with(b"--")
        && text.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace())
}

/// What stands behind the last block of an interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// What encoders leave there.
    Padding,
    /// A few bytes, as webcams leave them. Where only one interval has them, it is damaged.
    Stray,
    /// More.
    Data,
}
