//! Sequential scans: baseline and extended.

use std::ops::Range;

use fearless_simd::Simd;

use super::bits::Bits;
use super::intervals::{self, Segment, Segments};
use super::planes::{Loss, Picture, Plane};
use super::units::{Rest, Units};
use super::{blocks, idct};

/// Zeros of this number of bytes in a scan that does not add up are data that was lost.
const LOST_ZEROS: usize = 32;

/// How far an interval was decoded.
struct Decoded {
    /// The first unit that was not decoded.
    until: usize,
    /// The data ends in the middle of a unit, or does not continue.
    overrun: bool,
    /// What follows when all units were decoded.
    rest: Option<Rest>,
    /// How many bytes these are.
    rest_bytes: usize,
}

impl Decoded {
    fn is_sound(&self) -> bool {
        self.rest == Some(Rest::Padding)
    }
}

/// Intervals with stray bytes that show that the camera leaves them there: a few, or the same ones each time.
const STRAY_INTERVALS: usize = 3;

impl Units {
    /// Decodes a sequential scan. Its intervals can be decoded again and again, which finds where each of them belongs.
    pub(super) fn sequential<S: Simd>(
        &self,
        simd: S,
        picture: &mut Picture,
        data: &[u8],
        segments: &Segments,
        length: usize,
    ) {
        let expected = self.count.div_ceil(length);
        let list = segments.list.as_slice();
        let mut memory = Vec::new();
        // As many segments as intervals, one after the other.
        if list.len() >= expected && intervals::in_order(data, &list[..expected]) {
            let (mut stray, mut repeated, mut repeats) = (0, Vec::new(), 0);
            let complete = list[..expected].iter().enumerate().all(|(interval, segment)| {
                let range = self.range(interval, length);
                let decoded = self.try_segment(simd, picture, data, segment, range, &mut memory);
                match decoded.rest {
                    Some(Rest::Padding) => true,
                    Some(Rest::Stray) => {
                        stray += 1;
                        true
                    }
                    Some(Rest::Data) => {
                        let rest = &memory[memory.len() - decoded.rest_bytes..];
                        if repeats == 0 {
                            repeated.extend_from_slice(rest);
                        }
                        repeats += 1;
                        rest == repeated
                    }
                    None => false,
                }
            });
            let is_habit = |count: usize| count == 0 || count >= STRAY_INTERVALS;
            let nothing_follows =
                list[expected..].iter().all(|segment| self.rest(&data[segment.start..segment.end]) == Rest::Padding);
            if complete && nothing_follows && is_habit(stray) && is_habit(repeats) {
                return;
            }
        }
        // The restart interval is declared and not used.
        if list.len() == 1
            && expected > 1
            && self.try_segment(simd, picture, data, &list[0], 0..self.count, &mut memory).is_sound()
        {
            return;
        }
        // Restart markers whose interval is not declared.
        if expected == 1 && list.len() > 1 {
            let first = self.try_segment(simd, picture, data, &list[0], 0..self.count, &mut memory);
            let length = first.until;
            if length > 0 && self.count.div_ceil(length) == list.len() {
                let split = Segments { list: list.to_vec(), ..*segments };
                return self.sequential(simd, picture, data, &split, length);
            }
        }
        self.blank(picture, 0..self.count);
        let mut places = intervals::place(data, list, expected, segments.cut);
        let mut sound = self.decode_placed(simd, picture, data, segments, length, &places);
        let missing = missing_eights(&places, segments, expected);
        // The last segment is the last interval, which may be shorter than the others.
        if missing > 0
            && let Some(last) = places.iter().rposition(Option::is_some)
            && self
                .try_segment(simd, picture, data, &list[last], self.range(expected - 1, length), &mut memory)
                .is_sound()
        {
            // They were lost where a segment is damaged or numbers jump.
            let goes_on = |index: usize| matches!((places[index], places[index + 1]), (Some(a), Some(b)) if b == a + 1);
            let joints: Vec<usize> = (0..places.len() - 1).filter(|&index| !sound[index] || !goes_on(index)).collect();
            picture.uncertain |= joints.len() != 1;
            if let Some(&joint) = joints.first() {
                places[joint + 1..].iter_mut().flatten().for_each(|place| *place += missing);
                self.blank(picture, 0..self.count);
                sound = self.decode_placed(simd, picture, data, segments, length, &places);
            }
        }
        let mut lost = vec![true; expected];
        for (place, sound) in places.iter().zip(&sound) {
            if let Some(place) = *place {
                lost[place] = !sound;
            }
        }
        let last = places.iter().rposition(Option::is_some).filter(|_| expected == 1 || segments.cut);
        for (interval, _) in lost.iter().enumerate().filter(|(_, lost)| **lost) {
            let mut range = self.range(interval, length);
            // What came before a cut is right; elsewhere nothing of a damaged interval can be trusted.
            if let Some(last) = last.filter(|&last| places[last] == Some(interval)) {
                let decoded = self.try_segment(simd, picture, data, &list[last], range.clone(), &mut memory);
                let until = if segments.cut && !list[last].is_broken() && decoded.overrun {
                    decoded.until
                } else {
                    picture.uncertain = true;
                    self.until_zeros(simd, picture, range.clone(), decoded.until, &memory)
                };
                range.start = until;
            }
            self.blank(picture, range.clone());
            self.lose(picture, range, Loss::Whole);
        }
        // A segment too many is harmless when it is another one again.
        let is_harmless = |index: usize| {
            let bytes = &data[list[index].start..list[index].end];
            intervals::is_copy(data, list, index) || self.rest(bytes) == Rest::Padding
        };
        picture.uncertain |= (0..places.len()).any(|index| places[index].is_none() && !is_harmless(index));
    }

    /// Decodes segments at their places, and returns which are sound.
    fn decode_placed<S: Simd>(
        &self,
        simd: S,
        picture: &mut Picture,
        data: &[u8],
        segments: &Segments,
        length: usize,
        places: &[Option<usize>],
    ) -> Vec<bool> {
        let mut memory = Vec::new();
        let mut sound = Vec::with_capacity(places.len());
        for (segment, place) in segments.list.iter().zip(places) {
            let decoded = place
                .map(|place| self.try_segment(simd, picture, data, segment, self.range(place, length), &mut memory));
            sound.push(decoded.is_some_and(|decoded| decoded.is_sound()));
        }
        sound
    }

    /// Decodes a segment as the units of `range`.
    fn try_segment<S: Simd>(
        &self,
        simd: S,
        picture: &mut Picture,
        data: &[u8],
        segment: &Segment,
        range: Range<usize>,
        memory: &mut Vec<u8>,
    ) -> Decoded {
        segment.copy(data, memory);
        let mut bits = Bits::new(memory);
        let end = range.end;
        let (until, overrun) = simd.vectorize(
            #[inline(always)]
            || self.decode_blocks(simd, &mut picture.planes, range, &mut bits),
        );
        let rest = (until == end && !segment.is_broken()).then(|| self.behind(&bits));
        Decoded { until, overrun, rest, rest_bytes: bits.rest().len() }
    }

    /// Decodes units until one is invalid. Returns the first unit that is not decoded, and whether that is because the
    /// data ends.
    #[inline(always)]
    fn decode_blocks<S: Simd>(
        &self,
        simd: S,
        planes: &mut [Plane],
        range: Range<usize>,
        bits: &mut Bits<'_>,
    ) -> (usize, bool) {
        let mut predictions = [0; 4];
        let (mut x, mut y) = (range.start % self.wide, range.start / self.wide);
        for unit in range.clone() {
            for (lane, prediction) in self.lanes.iter().zip(&mut predictions) {
                let (Some(means), Some(ac)) = (lane.means(0), &lane.ac) else { return (unit, false) };
                let plane = &mut planes[lane.plane];
                let stride = plane.stride();
                for row in 0..lane.high {
                    for column in 0..lane.wide {
                        let mut block = [0; 64];
                        let Ok(detailed) = blocks::sequential(bits, &means, ac, prediction, &mut block) else {
                            return (unit, bits.overrun());
                        };
                        let at = (y * lane.high + row) * 8 * stride + (x * lane.wide + column) * 8;
                        if detailed {
                            idct::full(simd, &block, &lane.steps, &mut plane.samples, at, stride);
                        } else {
                            idct::flat(block[0], lane.steps[0], &mut plane.samples, at, stride);
                        }
                    }
                }
            }
            if bits.overrun() {
                return (unit, true);
            }
            x += 1;
            if x == self.wide {
                (x, y) = (0, y + 1);
            }
        }
        (range.end, false)
    }

    /// In a scan that does not add up, the first unit that reaches into a run of zeros that an encoder does not write.
    fn until_zeros<S: Simd>(
        &self,
        simd: S,
        picture: &mut Picture,
        range: Range<usize>,
        until: usize,
        memory: &[u8],
    ) -> usize {
        let run = memory.chunk_by(|a, b| *a == 0 && *b == 0).scan(0, |at, run| {
            let start = *at;
            *at += run.len();
            Some((start, run.len()))
        });
        let Some((start, _)) = run.into_iter().find(|&(_, length)| length >= LOST_ZEROS) else { return until };
        if self.flat_is_zero() {
            return until;
        }
        let mut bits = Bits::new(&memory[..start]);
        simd.vectorize(
            #[inline(always)]
            || self.decode_blocks(simd, &mut picture.planes, range, &mut bits),
        )
        .0
        .min(until)
    }

    /// Makes grey of units of a sequential scan.
    fn blank(&self, picture: &mut Picture, range: Range<usize>) {
        for unit in range {
            for lane in &self.lanes {
                for row in 0..lane.high {
                    for column in 0..lane.wide {
                        picture.planes[lane.plane]
                            .blank(unit % self.wide * lane.wide + column, unit / self.wide * lane.high + row);
                    }
                }
            }
        }
    }
}

/// The intervals that are missing at the end, if these are eight or a multiple of it and the data does not end early.
/// The numbers of restart markers return after eight, so these intervals may have been lost anywhere.
fn missing_eights(places: &[Option<usize>], segments: &Segments, expected: usize) -> usize {
    let missing = places.iter().flatten().last().map_or(0, |last| expected - 1 - last);
    if segments.cut || !missing.is_multiple_of(8) { 0 } else { missing }
}
