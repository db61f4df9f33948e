//! The restart intervals of a scan: where their data is, and which of them it is when some are lost.

use super::header::{END_OF_IMAGE, START_OF_IMAGE};

/// The data between two restart markers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) start: usize,
    pub(super) end: usize,
    /// The number of the restart marker before it, 0 to 7; 7 for the first one, so that numbers go on.
    number: u8,
    /// There is something in it that no encoder writes.
    broken: bool,
}

impl Segment {
    /// Copies the data to `out` without stuffed zeros.
    pub(super) fn copy(&self, data: &[u8], out: &mut Vec<u8>) {
        out.clear();
        let mut rest = &data[self.start..self.end];
        while let Some(found) = memchr::memchr(0xFF, rest) {
            let (before, after) = rest.split_at(found + 1);
            out.extend_from_slice(before);
            rest = after.strip_prefix(&[0]).unwrap_or(after);
        }
        out.extend_from_slice(rest);
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }
}

/// The segments of a scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segments {
    pub(super) list: Vec<Segment>,
    /// Where the next marker begins, or the data ends.
    pub(super) end: usize,
    /// Whether the data ends there.
    pub(super) cut: bool,
}

/// Splits the data of a scan that begins at `start` and should have `expected` intervals.
pub(super) fn split(data: &[u8], start: usize, expected: usize) -> Segments {
    let mut list = Vec::new();
    let mut current = Segment { start, end: start, number: 7, broken: false };
    let mut at = start;
    // More would only be noise, which must not take memory without bound.
    let most = expected.saturating_mul(2).saturating_add(16);
    loop {
        let Some(found) = memchr::memchr(0xFF, &data[at..]) else {
            current.end = data.len();
            list.push(current);
            return Segments { list, end: data.len(), cut: true };
        };
        let begin = at + found;
        let fill = data[begin..].iter().take_while(|&&byte| byte == 0xFF).count();
        at = begin + fill + 1;
        match data.get(begin + fill) {
            None => {
                current.end = begin;
                list.push(current);
                return Segments { list, end: data.len(), cut: true };
            }
            Some(0) => current.broken |= fill > 1,
            Some(&marker @ 0xD0..=0xD7) if list.len() < most => {
                current.end = begin;
                list.push(current);
                current = Segment { start: at, end: at, number: marker & 7, broken: false };
            }
            Some(&marker) if may_follow(marker, &data[at..]) => {
                current.end = begin;
                list.push(current);
                return Segments { list, end: begin, cut: false };
            }
            Some(_) => current.broken = true,
        }
    }
}

/// Whether a marker with `rest` behind it may stand behind the data of a scan. A stuffed zero that is lost makes a
/// marker of what is none: a segment has a length, and another marker follows it.
fn may_follow(marker: u8, rest: &[u8]) -> bool {
    let length = rest.first_chunk::<2>().map_or(0, |length| usize::from(u16::from_be_bytes(*length)));
    match marker {
        END_OF_IMAGE => true,
        START_OF_IMAGE => rest.first() == Some(&0xFF),
        // A scan's header: one to four components, of two bytes each, between eight others.
        0xDA => rest.get(2).is_some_and(|&count| (1..=4).contains(&count) && length == 6 + 2 * usize::from(count)),
        0xC4 | 0xDB..=0xDD | 0xE0..=0xEF | 0xFE => {
            // Where the data ends within the segment, a length that headers have.
            length >= 2 && rest.get(length).map_or(length < 1000, |&byte| byte == 0xFF)
        }
        _ => false,
    }
}

/// Finds which of the `expected` intervals each segment is, from the numbers of the restart markers. `None`: none, the
/// segment is to be left out. Numbers return after eight, so the loss of eight intervals in a row does not show.
pub(super) fn place(segments: &[Segment], expected: usize) -> Vec<Option<usize>> {
    let mut places = Vec::with_capacity(segments.len());
    // The interval that comes next, if nothing is lost.
    let mut next = 0usize;
    for (index, segment) in segments.iter().enumerate() {
        let room = expected.saturating_sub(next);
        if room == 0 {
            places.push(None);
            continue;
        }
        // The marker before interval i has the number (i − 1) mod 8.
        let number = |interval: usize| (interval + 7) & 7;
        let skipped = (usize::from(segment.number) + 8 - number(next)) & 7;
        let following = segments.get(index + 1).map(|segment| usize::from(segment.number));
        let goes_on = following.is_none_or(|following| following == number(next + skipped + 1));
        let place = if skipped == 0 {
            Some(next)
        } else if following == Some(number(next)) {
            // The one that was expected is still to come: this marker is no marker.
            None
        } else if following == Some(number(next + 1)) && !goes_on {
            // The marker's number is wrong.
            Some(next)
        } else if skipped < room && segments.len() - index <= room - skipped {
            Some(next + skipped)
        } else {
            Some(next)
        };
        if let Some(place) = place {
            next = place + 1;
        }
        places.push(place);
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(numbers: &[u8], expected: usize) -> Vec<Option<usize>> {
        let segment = |&number: &u8| Segment { start: 0, end: 0, number, broken: false };
        let segments: Vec<Segment> = [7].iter().chain(numbers).map(segment).collect();
        place(&segments, expected)
    }

    fn all(places: impl IntoIterator<Item = usize>) -> Vec<Option<usize>> {
        places.into_iter().map(Some).collect()
    }

    #[test]
    fn numbers_say_how_many_intervals_are_missing() {
        assert_eq!(placed(&[0, 1, 2, 3], 5), all(0..5));
        assert_eq!(placed(&[0, 3, 4], 8), all([0, 1, 4, 5]));
        assert_eq!(placed(&[5, 6, 7, 0, 1], 12), all([0, 6, 7, 8, 9, 10]));
        let numbers: Vec<u8> = (0..40).map(|n| n % 8).filter(|n| *n != 4).collect();
        let kept = (0..41).filter(|interval| interval % 8 != 5);
        assert_eq!(placed(&numbers, 41), all(kept));
    }

    #[test]
    fn one_wrong_number_and_one_marker_too_many_move_nothing() {
        assert_eq!(placed(&[0, 6, 2, 3], 9), all([0, 1, 2, 3, 4]));
        assert_eq!(placed(&[0, 5, 1, 2, 3], 9), [Some(0), Some(1), None, Some(2), Some(3), Some(4)]);
    }

    #[test]
    fn no_segment_is_placed_beyond_the_last_interval() {
        assert_eq!(placed(&[0, 1, 2], 2), [Some(0), Some(1), None, None]);
        for numbers in [[7, 7, 7], [3, 1, 6], [4, 5, 6]] {
            for expected in 1..6 {
                let places: Vec<usize> = placed(&numbers, expected).into_iter().flatten().collect();
                assert!(places.is_sorted_by(|a, b| a < b) && places.iter().all(|&place| place < expected));
            }
        }
    }

    #[test]
    fn data_is_split_at_markers_and_stuffed_zeros_are_no_markers() {
        let data = [1, 0xFF, 0, 2, 0xFF, 0xD0, 3, 0xFF, 0xFF, 0xD1, 0xFF, 0x02, 4, 0xFF, 0xFF, 0xD9, 9];
        let split = split(&data, 0, 3);
        let ranges: Vec<_> = split.list.iter().map(|segment| (segment.start, segment.end, segment.broken)).collect();
        assert_eq!(ranges, [(0, 4, false), (6, 7, false), (10, 13, true)]);
        assert_eq!((split.end, split.cut), (13, false));
        let mut bytes = Vec::new();
        split.list[0].copy(&data, &mut bytes);
        assert_eq!(bytes, [1, 0xFF, 2]);
    }

    #[test]
    fn a_file_of_markers_takes_no_more_memory_than_its_intervals() {
        let data = [0xFF, 0xD0].repeat(1000);
        assert!(split(&data, 0, 3).list.len() < 30);
    }
}
