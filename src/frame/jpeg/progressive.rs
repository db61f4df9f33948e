//! Progressive scans.

use std::ops::Range;

use fearless_simd::Simd;

use super::bits::Bits;
use super::blocks::{self, Invalid};
use super::intervals::{self, Segments};
use super::planes::{Loss, Picture, Plane, clear_band};
use super::units::{Kind, Rest, Units};

impl Units {
    /// Decodes a progressive scan.
    pub(super) fn progressive<S: Simd>(
        &self,
        simd: S,
        picture: &mut Picture,
        data: &[u8],
        segments: &Segments,
        length: usize,
    ) {
        let expected = self.count.div_ceil(length);
        let list = &segments.list;
        let places: Vec<Option<usize>> = if list.len() == expected && intervals::in_order(data, list) {
            (0..expected).map(Some).collect()
        } else {
            intervals::place(data, list, expected, segments.cut)
        };
        let mut read = vec![false; expected];
        let mut memory = Vec::new();
        let last = places.iter().rposition(Option::is_some);
        for (index, (segment, place)) in list.iter().zip(&places).enumerate() {
            let Some(place) = *place else {
                let is_harmless = self.rest(&data[segment.start..segment.end]) == Rest::Padding;
                picture.uncertain |= !is_harmless && !intervals::is_copy(data, list, index);
                continue;
            };
            read[place] = true;
            segment.copy(data, &mut memory);
            let mut bits = Bits::new(&memory);
            let range = self.range(place, length);
            let (until, overrun) = simd.vectorize(
                #[inline(always)]
                || self.decode_coefficients(&mut picture.planes, range.clone(), &mut bits),
            );
            if until == range.end && !overrun && !segment.is_broken() && self.behind(&bits) == Rest::Padding {
                continue;
            }
            let cut = Some(index) == last && segments.cut && !segment.is_broken() && overrun;
            let start = if cut || expected == 1 { until } else { range.start };
            picture.uncertain |= !cut && expected == 1;
            self.spoil(picture, start..range.end);
        }
        for (interval, _) in read.iter().enumerate().filter(|(_, read)| !**read) {
            self.spoil(picture, self.range(interval, length));
        }
    }

    /// Decodes the coefficients of units until one is invalid. Returns the first unit that is not decoded, and whether
    /// the data ends too early.
    #[inline(always)]
    fn decode_coefficients(&self, planes: &mut [Plane], range: Range<usize>, bits: &mut Bits<'_>) -> (usize, bool) {
        let mut predictions = [0; 4];
        let mut ended = 0;
        let (mut x, mut y) = (range.start % self.wide, range.start / self.wide);
        let mut unit = range.start;
        while unit < range.end {
            if self.kind == Kind::AcFirst && ended > 0 {
                let skipped = (ended as usize).min(range.end - unit);
                ended -= skipped as u32;
                unit += skipped;
                (x, y) = (unit % self.wide, unit / self.wide);
                continue;
            }
            for (lane, prediction) in self.lanes.iter().zip(&mut predictions) {
                let plane = &mut planes[lane.plane];
                let means = lane.means(self.band.low);
                for row in 0..lane.high {
                    for column in 0..lane.wide {
                        let at = (y * lane.high + row) * plane.blocks_wide + x * lane.wide + column;
                        let wrong = plane.wrong.get(at).copied().unwrap_or(false);
                        let block = &mut plane.blocks[at];
                        let result = match (self.kind, &means, &lane.ac) {
                            (Kind::DcFirst, Some(means), _) => {
                                blocks::dc_first(bits, means, prediction, self.band.low, block)
                            }
                            (Kind::DcRefine, ..) => {
                                blocks::dc_refine(bits, self.band.low, block);
                                Ok(())
                            }
                            (Kind::AcFirst, _, Some(ac)) => blocks::ac_first(bits, ac, self.band, &mut ended, block),
                            (Kind::AcRefine, _, Some(ac)) if !wrong => {
                                blocks::ac_refine(bits, ac, self.band, &mut ended, block)
                            }
                            _ => Err(Invalid),
                        };
                        if result.is_err() {
                            return (unit, bits.overrun());
                        }
                    }
                }
            }
            if bits.overrun() {
                return (unit, true);
            }
            unit += 1;
            x += 1;
            if x == self.wide {
                (x, y) = (0, y + 1);
            }
        }
        (range.end, ended > 0)
    }

    /// Makes units of a progressive scan as if it had not been, and notes their loss.
    fn spoil(&self, picture: &mut Picture, range: Range<usize>) {
        for unit in range.clone() {
            for lane in &self.lanes {
                let plane = &mut picture.planes[lane.plane];
                for row in 0..lane.high {
                    for column in 0..lane.wide {
                        let at = (unit / self.wide * lane.high + row) * plane.blocks_wide
                            + unit % self.wide * lane.wide
                            + column;
                        if matches!(self.kind, Kind::DcFirst | Kind::AcFirst) {
                            clear_band(&mut plane.blocks[at], self.band.start, self.band.end);
                        }
                        if matches!(self.kind, Kind::AcFirst | Kind::AcRefine) {
                            plane.spoil(at);
                        }
                    }
                }
            }
        }
        self.lose(picture, range, if self.kind == Kind::DcFirst { Loss::Whole } else { Loss::Detail });
    }
}
