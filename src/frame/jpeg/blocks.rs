//! Entropy decoding of one block of 8 × 8 coefficients (T.81, F.2 and G.2).

use super::bits::Bits;
use super::huffman::Table;

/// Coefficients in rows from top to bottom, from the lowest frequency to the highest.
pub(super) type Block = [i16; 64];

/// Where the coefficients of the zigzag order stand in a [`Block`].
#[rustfmt::skip]
pub(super) const ZIGZAG: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5,
    12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51,
    58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// The data is not what an encoder writes: an unknown code, or more coefficients than a block has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Invalid;

/// The position of the coefficient `k` of the zigzag order; `k` is at most 63.
#[inline(always)]
fn place(k: usize) -> usize {
    usize::from(ZIGZAG[k & 63] & 63)
}

/// The largest size of a difference between two DC coefficients of 8-bit samples.
const MAX_DC_SIZE: u8 = 11;

/// The DC coefficients of a component.
#[derive(Debug)]
pub(super) struct Means<'t> {
    pub(super) table: &'t Table,
    /// The largest DC coefficient that samples can have.
    pub(super) most: u32,
}

impl Means<'_> {
    /// Takes the difference to the prediction, which becomes the coefficient.
    #[inline(always)]
    fn next(&self, bits: &mut Bits<'_>, prediction: &mut i32) -> Result<i32, Invalid> {
        *prediction = prediction.wrapping_add(dc_difference(bits, self.table)?);
        if prediction.unsigned_abs() > self.most { Err(Invalid) } else { Ok(*prediction) }
    }
}

#[inline(always)]
fn dc_difference(bits: &mut Bits<'_>, table: &Table) -> Result<i32, Invalid> {
    bits.refill();
    let entry = table.decode(bits).ok_or(Invalid)?;
    if entry.complete() && entry.symbol <= MAX_DC_SIZE {
        return Ok(i32::from(entry.value));
    }
    match entry.symbol {
        0 => Ok(0),
        1..=MAX_DC_SIZE => Ok(bits.coefficient(entry.size())),
        _ => Err(Invalid),
    }
}

/// Decodes a block of a sequential scan into `block`, which is all zero. Returns whether a coefficient other than the
/// first was read.
#[inline(always)]
pub(super) fn sequential(
    bits: &mut Bits<'_>,
    means: &Means<'_>,
    ac: &Table,
    prediction: &mut i32,
    block: &mut Block,
) -> Result<bool, Invalid> {
    block[0] = means.next(bits, prediction)? as i16;
    let mut k = 1;
    loop {
        bits.ensure32();
        let entry = ac.decode(bits).ok_or(Invalid)?;
        if entry.complete() {
            k += entry.run();
            if k > 63 {
                return Err(Invalid);
            }
            block[place(k)] = entry.value;
        } else if entry.size() == 0 {
            if entry.run() != 15 {
                return Ok(k > 1);
            }
            k += 15;
        } else {
            k += entry.run();
            if k > 63 {
                return Err(Invalid);
            }
            block[place(k)] = bits.coefficient(entry.size()) as i16;
        }
        k += 1;
        if k >= 64 {
            return if k == 64 { Ok(true) } else { Err(Invalid) };
        }
    }
}

/// The first scan of a block's DC coefficient in a progressive file.
#[inline(always)]
pub(super) fn dc_first(
    bits: &mut Bits<'_>,
    means: &Means<'_>,
    prediction: &mut i32,
    low: u32,
    block: &mut Block,
) -> Result<(), Invalid> {
    block[0] = means.next(bits, prediction)?.wrapping_shl(low) as i16;
    Ok(())
}

/// A later scan of a block's DC coefficient: one more bit.
#[inline(always)]
pub(super) fn dc_refine(bits: &mut Bits<'_>, low: u32, block: &mut Block) {
    if bits.bit() {
        block[0] |= 1i16.wrapping_shl(low);
    }
}

/// A band of a progressive scan: the first and last coefficient in zigzag order, and the position of its lowest bit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Band {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) low: u32,
}

/// The first scan of a band. `ended` counts the blocks, from this one on, whose band ends at once.
#[inline(always)]
pub(super) fn ac_first(
    bits: &mut Bits<'_>,
    ac: &Table,
    band: Band,
    ended: &mut u32,
    block: &mut Block,
) -> Result<(), Invalid> {
    if *ended > 0 {
        *ended -= 1;
        return Ok(());
    }
    let mut k = band.start;
    while k <= band.end {
        bits.refill();
        let entry = ac.decode(bits).ok_or(Invalid)?;
        let value = if entry.complete() {
            i32::from(entry.value)
        } else if entry.size() > 0 {
            bits.coefficient(entry.size())
        } else if entry.run() == 15 {
            k += 16;
            continue;
        } else {
            *ended = (1 << entry.run()) - 1 + bits.take(entry.run() as u32) as u32;
            return Ok(());
        };
        k += entry.run();
        if k > band.end {
            return Err(Invalid);
        }
        block[place(k)] = value.wrapping_shl(band.low) as i16;
        k += 1;
    }
    if k == band.end + 1 { Ok(()) } else { Err(Invalid) }
}

/// A later scan of a band: one more bit for each coefficient that is not zero, and new coefficients.
#[inline(always)]
pub(super) fn ac_refine(
    bits: &mut Bits<'_>,
    ac: &Table,
    band: Band,
    ended: &mut u32,
    block: &mut Block,
) -> Result<(), Invalid> {
    let one = 1i16.wrapping_shl(band.low);
    let mut k = band.start;
    if *ended == 0 {
        while k <= band.end {
            bits.refill();
            let entry = ac.decode(bits).ok_or(Invalid)?;
            let mut run = entry.run();
            let value = match entry.size() {
                0 if run < 15 => {
                    *ended = (1 << run) + bits.take(run as u32) as u32;
                    break;
                }
                0 => 0,
                1 => {
                    let positive = if entry.complete() { entry.value > 0 } else { bits.bit() };
                    if positive { one } else { -one }
                }
                _ => return Err(Invalid),
            };
            while k <= band.end {
                let coefficient = &mut block[place(k)];
                if *coefficient != 0 {
                    refine(bits, one, coefficient);
                } else if run == 0 {
                    break;
                } else {
                    run -= 1;
                }
                k += 1;
            }
            if value != 0 {
                if k > band.end {
                    return Err(Invalid);
                }
                block[place(k)] = value;
            }
            k += 1;
        }
    }
    if *ended > 0 {
        while k <= band.end {
            let coefficient = &mut block[place(k)];
            if *coefficient != 0 {
                refine(bits, one, coefficient);
            }
            k += 1;
        }
        *ended -= 1;
    }
    Ok(())
}

/// Takes one more bit of a coefficient that is not zero.
#[inline(always)]
fn refine(bits: &mut Bits<'_>, one: i16, coefficient: &mut i16) {
    if bits.bit() && *coefficient & one == 0 {
        *coefficient = coefficient.wrapping_add(if *coefficient > 0 { one } else { one.wrapping_neg() });
    }
}
