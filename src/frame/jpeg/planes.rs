//! The planes of a picture, one per component, and which parts of them were lost.

use fearless_simd::Simd;

use super::blocks::{Block, ZIGZAG};
use super::error::JpegError;
use super::header::{Component, Frame, Process};
use super::idct;
use crate::frame::Damage;

/// A value of [`Plane::known`]: nothing of the coefficient has been read.
pub(super) const UNKNOWN: u8 = u8::MAX;

/// One component: whole blocks, padded to whole MCUs.
#[derive(Debug)]
pub(super) struct Plane {
    pub(super) horizontal: usize,
    pub(super) vertical: usize,
    /// Index of the quantization table.
    pub(super) quantization: usize,
    /// The quantization table, from the first scan on.
    pub(super) steps: Option<Box<[i32; 64]>>,
    /// Blocks in a row, padded to whole MCUs.
    pub(super) blocks_wide: usize,
    /// Those that hold samples of the picture: the units of a scan of this component alone.
    pub(super) own_wide: usize,
    pub(super) own_high: usize,
    /// Samples of the picture in a row, and rows of them.
    pub(super) width: usize,
    pub(super) height: usize,
    /// Rows of `blocks_wide · 8` samples. 128 where nothing was read.
    pub(super) samples: Vec<u8>,
    /// Of a progressive file, before [`Plane::transform`]; row by row.
    pub(super) blocks: Vec<Block>,
    /// For each coefficient in zigzag order, the position of the lowest bit that was read.
    pub(super) known: [u8; 64],
    /// Blocks whose coefficients are wrong, so that no later scan can refine them. Empty: none.
    pub(super) wrong: Vec<bool>,
}

impl Plane {
    fn new(component: &Component, frame: &Frame, most: (usize, usize), mcus: (usize, usize)) -> Plane {
        let &Component { horizontal, vertical, quantization, .. } = component;
        let width = (frame.width as usize * horizontal).div_ceil(most.0);
        let height = (frame.height as usize * vertical).div_ceil(most.1);
        let blocks_wide = mcus.0 * horizontal;
        let blocks = blocks_wide * mcus.1 * vertical;
        let progressive = frame.process == Process::Progressive;
        Plane {
            horizontal,
            vertical,
            quantization,
            steps: None,
            blocks_wide,
            own_wide: width.div_ceil(8),
            own_high: height.div_ceil(8),
            width,
            height,
            samples: if progressive { Vec::new() } else { vec![128; blocks * 64] },
            blocks: if progressive { vec![[0; 64]; blocks] } else { Vec::new() },
            known: [UNKNOWN; 64],
            wrong: Vec::new(),
        }
    }

    /// Samples from the start of one row to the start of the next.
    pub(super) fn stride(&self) -> usize {
        self.blocks_wide * 8
    }

    /// The row `y` of the picture's samples; rows beyond the first and last are those.
    #[inline(always)]
    pub(super) fn row(&self, y: usize) -> &[u8] {
        &self.samples[y.min(self.height - 1) * self.stride()..][..self.width]
    }

    /// Makes grey of a block.
    pub(super) fn blank(&mut self, x: usize, y: usize) {
        let stride = self.stride();
        for row in self.samples.chunks_exact_mut(stride).skip(y * 8).take(8) {
            row[x * 8..x * 8 + 8].fill(128);
        }
    }

    /// Marks a block of a progressive file as wrong.
    pub(super) fn spoil(&mut self, block: usize) {
        if self.wrong.is_empty() {
            self.wrong = vec![false; self.blocks.len()];
        }
        self.wrong[block] = true;
    }

    /// Makes samples of the coefficients of a progressive file, which are dropped.
    #[inline(always)]
    pub(super) fn transform<S: Simd>(&mut self, simd: S) {
        let blocks = std::mem::take(&mut self.blocks);
        let stride = self.stride();
        self.samples = vec![128; blocks.len() * 64];
        // Without a table, no scan has brought anything.
        let Some(steps) = self.steps.as_deref() else { return };
        for (rows, blocks) in self.samples.chunks_exact_mut(stride * 8).zip(blocks.chunks_exact(self.blocks_wide)) {
            for (x, block) in blocks.iter().enumerate() {
                if block[1..].iter().all(|&coefficient| coefficient == 0) {
                    idct::flat(block[0], steps[0], rows, x * 8, stride);
                } else {
                    idct::full(simd, block, steps, rows, x * 8, stride);
                }
            }
        }
    }
}

/// How much of a piece of the picture was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Loss {
    None,
    /// A later scan of a progressive file, so that the piece is coarser than it was.
    Detail,
    /// All of it.
    Whole,
}

/// All planes.
#[derive(Debug)]
pub(super) struct Picture {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) progressive: bool,
    pub(super) planes: Vec<Plane>,
    /// Blocks of an MCU along each side.
    pub(super) mcu: (usize, usize),
    pub(super) mcus: (usize, usize),
    /// The loss of each 8 × 8 pixels, `mcus.0 · mcu.0` in a row. Empty: nothing is known to be lost.
    losses: Vec<Loss>,
    /// Something that was read may be wrong, and it is not known what.
    pub(super) uncertain: bool,
    /// Scans were read with the standard Huffman tables, since the file's own are not there: if data was lost, it may
    /// have been these.
    pub(super) has_borrowed_tables: bool,
}

impl Picture {
    /// Grey planes.
    ///
    /// # Errors
    /// Sampling factors that do not divide the largest ones.
    pub(super) fn new(frame: &Frame) -> Result<Picture, JpegError> {
        let mut components = frame.components.clone();
        if let [only] = components.as_mut_slice() {
            // A scan of one component has blocks in rows, whatever its sampling factors say.
            (only.horizontal, only.vertical) = (1, 1);
        }
        let most = |side: fn(&Component) -> usize| components.iter().map(side).max().unwrap_or(1);
        let mcu = (most(|component| component.horizontal), most(|component| component.vertical));
        if components.iter().any(|part| mcu.0 % part.horizontal != 0 || mcu.1 % part.vertical != 0) {
            return Err(JpegError::unsupported("its components have sizes of no whole ratio"));
        }
        let (width, height) = (frame.width as usize, frame.height as usize);
        let mcus = (width.div_ceil(8 * mcu.0), height.div_ceil(8 * mcu.1));
        Ok(Picture {
            width,
            height,
            progressive: frame.process == Process::Progressive,
            planes: components.iter().map(|component| Plane::new(component, frame, mcu, mcus)).collect(),
            mcu,
            mcus,
            losses: Vec::new(),
            uncertain: false,
            has_borrowed_tables: false,
        })
    }

    /// Whether scans have brought all coefficients.
    pub(super) fn is_complete(&self) -> bool {
        self.planes.iter().all(|plane| plane.known.iter().all(|&low| low == 0))
    }

    /// Notes the loss of the pixels of `wide` × `high` blocks of the picture's own resolution.
    pub(super) fn lose(&mut self, x: usize, y: usize, wide: usize, high: usize, loss: Loss) {
        let across = self.mcus.0 * self.mcu.0;
        if self.losses.is_empty() {
            self.losses = vec![Loss::None; across * self.mcus.1 * self.mcu.1];
        }
        for row in self.losses.chunks_exact_mut(across).skip(y).take(high) {
            for cell in row.iter_mut().skip(x).take(wide) {
                *cell = loss.max(*cell);
            }
        }
    }

    /// Notes what no scan has brought, when all scans have been read.
    pub(super) fn lose_missing_scans(&mut self) {
        let mut loss = Loss::None;
        for plane in &self.planes {
            if plane.known[0] == UNKNOWN {
                loss = Loss::Whole;
            } else if plane.known.iter().any(|&low| low != 0) {
                loss = loss.max(Loss::Detail);
            }
        }
        if loss != Loss::None {
            self.lose(0, 0, usize::MAX, usize::MAX, loss);
        }
    }

    /// What was lost. `None`: nothing, as far as can be known.
    pub(super) fn damage(&self, cut: bool) -> Option<Damage> {
        let across = self.mcus.0 * self.mcu.0;
        let (mut lost, mut coarse) = (0u64, 0u64);
        for (y, row) in self.losses.chunks_exact(across).enumerate().take(self.height.div_ceil(8)) {
            let high = (self.height - y * 8).min(8) as u64;
            for (x, &loss) in row.iter().enumerate().take(self.width.div_ceil(8)) {
                let area = high * (self.width - x * 8).min(8) as u64;
                match loss {
                    Loss::None => {}
                    Loss::Detail => coarse += area,
                    Loss::Whole => lost += area,
                }
            }
        }
        let area = self.width as f64 * self.height as f64;
        let uncertain = self.uncertain || self.has_borrowed_tables;
        let damage = Damage { lost: lost as f64 / area, coarse: coarse as f64 / area, uncertain, cut };
        (lost > 0 || coarse > 0 || self.uncertain).then_some(damage)
    }
}

/// Sets a band of a block to zero.
pub(super) fn clear_band(block: &mut Block, start: usize, end: usize) {
    for &position in &ZIGZAG[start..=end] {
        block[usize::from(position)] = 0;
    }
}
