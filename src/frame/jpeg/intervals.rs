//! The restart intervals of a scan: where their data is, and which of them it is when some are lost.

use super::header::{self, END_OF_IMAGE, START_OF_IMAGE};

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
/// marker of what is none: a segment has a length, and another marker follows it, at once where its content proves
/// nothing.
fn may_follow(marker: u8, rest: &[u8]) -> bool {
    let length = rest.first_chunk::<2>().map_or(0, |length| usize::from(u16::from_be_bytes(*length)));
    match marker {
        END_OF_IMAGE => true,
        START_OF_IMAGE => rest.first() == Some(&0xFF),
        // A scan's header: one to four components, of two bytes each, between eight others.
        0xDA => rest.get(2).is_some_and(|&count| (1..=4).contains(&count) && length == 6 + 2 * usize::from(count)),
        0xC4 | 0xDB..=0xDD | 0xE0..=0xEF | 0xFE => {
            // Where the data ends within the segment, a length that headers have.
            let is_followed = rest.get(length).map_or(length < 1000, |&byte| byte == 0xFF);
            length >= 2 && (is_followed || rest.get(2..length).is_some_and(|content| header::is_whole(marker, content)))
        }
        _ => false,
    }
}

/// The number of the marker before an interval.
fn number(interval: usize) -> usize {
    (interval + 7) & 7
}

/// Whether the numbers of the markers are those of segments that all follow each other: they count up from whatever
/// number, or some camera writes the same one everywhere. One alone may be wrong, unless its segment is a copy of a
/// neighbour's.
pub(super) fn in_order(data: &[u8], segments: &[Segment]) -> bool {
    let Some(markers) = segments.get(1..).filter(|markers| !markers.is_empty()) else { return true };
    let number = |segment: &Segment| usize::from(segment.number);
    if markers.len() > 1 && markers.iter().all(|segment| number(segment) == number(&markers[0])) {
        return true;
    }
    let mut counts = [0usize; 8];
    let start = |(index, segment): (usize, &Segment)| (number(segment) + 8 - index % 8) & 7;
    markers.iter().enumerate().for_each(|marker| counts[start(marker)] += 1);
    let most = (0..8).max_by_key(|&start| counts[start]).unwrap_or(0);
    match markers.len() - counts[most] {
        0 => true,
        1 if markers.len() > 2 => {
            let wrong = markers.iter().enumerate().position(|marker| start(marker) != most);
            wrong.is_some_and(|index| !is_copy(data, segments, index + 1))
        }
        _ => false,
    }
}

/// Whether a segment has the same data as the one before it or the one behind it.
pub(super) fn is_copy(data: &[u8], segments: &[Segment], index: usize) -> bool {
    let bytes = |segment: &Segment| &data[segment.start..segment.end];
    let own = bytes(&segments[index]);
    let before = index.checked_sub(1).and_then(|index| segments.get(index));
    before.into_iter().chain(segments.get(index + 1)).any(|neighbour| bytes(neighbour) == own)
}

/// Finds which of the `expected` intervals each segment is, from the numbers of the restart markers: the alignment that
/// needs the fewest losses, doublings and wrong numbers. `None`: none, the segment is to be left out. Numbers return
/// after eight, so the loss of eight intervals in a row does not show. `cut`: the file ends early.
pub(super) fn place(data: &[u8], segments: &[Segment], expected: usize, cut: bool) -> Vec<Option<usize>> {
    /// What the loss of intervals, a segment too many, and a wrong number cost. One wrong number is cheaper than a loss
    /// and a segment too many; of several, each is dearer: intervals that changed places have no wrong numbers.
    const LOST: u32 = 30;
    const TOO_MANY: u32 = 30;
    const WRONG: u32 = 55;
    const ONE_MORE_WRONG: u32 = 70;
    /// Alignments that are followed at a time.
    const MOST: usize = 12;

    #[derive(Clone, Copy)]
    struct State {
        /// The interval that comes next.
        next: usize,
        cost: u32,
        /// The state before the segment, and whether the segment is the interval before `next`.
        from: usize,
        is_placed: bool,
        has_wrong: bool,
    }
    let mut states = vec![State { next: 0, cost: 0, from: 0, is_placed: false, has_wrong: false }];
    let mut history: Vec<Vec<State>> = Vec::with_capacity(segments.len());
    for (index, segment) in segments.iter().enumerate() {
        let mut copy = None;
        let mut following = Vec::with_capacity(3 * states.len());
        for (from, state) in states.iter().enumerate() {
            let State { next, cost, has_wrong, .. } = *state;
            let mut add = |next: usize, more: u32, is_placed: bool, is_wrong: bool| {
                let has_wrong = has_wrong || is_wrong;
                following.push(State { next, cost: cost.saturating_add(more), from, is_placed, has_wrong });
            };
            add(next, TOO_MANY, false, false);
            let skipped = (usize::from(segment.number) + 8 - number(next)) & 7;
            if next < expected && skipped == 0 {
                add(next + 1, 0, true, false);
            } else if next < expected {
                // A copy of its neighbour with a number that is not due is there twice.
                let is_copy = *copy.get_or_insert_with(|| is_copy(data, segments, index));
                let cost = if has_wrong || is_copy { ONE_MORE_WRONG } else { WRONG };
                add(next + 1, cost, true, true);
                if next + skipped < expected {
                    add(next + skipped + 1, LOST + skipped as u32, true, false);
                }
            }
        }
        following.sort_by_key(|state| (state.next, state.cost));
        following.dedup_by_key(|state| state.next);
        following.sort_by_key(|state| state.cost);
        following.truncate(MOST);
        states.clone_from(&following);
        history.push(following);
    }
    let ending = |state: &State| match expected - state.next {
        0 => 0,
        _ if cut => 0,
        missing => LOST + missing.min(7) as u32,
    };
    let best = (0..states.len()).min_by_key(|&index| states[index].cost.saturating_add(ending(&states[index])));
    let mut at = best.unwrap_or(0);
    let mut places = vec![None; segments.len()];
    for (place, states) in places.iter_mut().zip(&history).rev() {
        let state = states[at];
        *place = state.is_placed.then(|| state.next - 1);
        at = state.from;
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(numbers: &[u8], expected: usize) -> Vec<Option<usize>> {
        let segment = |(at, &number): (usize, &u8)| Segment { start: at, end: at + 1, number, broken: false };
        let segments: Vec<Segment> = [7].iter().chain(numbers).enumerate().map(segment).collect();
        let data: Vec<u8> = (0..segments.len() as u8).collect();
        place(&data, &segments, expected, false)
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
    fn a_loss_and_a_doubling_in_one_file_are_both_found() {
        // The marker of interval 6 comes where that of 5 is due; interval 20 is there twice.
        let numbers: Vec<u8> =
            (0..30).filter(|n| *n != 4).flat_map(|n| vec![n % 8; if n == 19 { 2 } else { 1 }]).collect();
        let places = placed(&numbers, 31);
        let kept: Vec<usize> = places.iter().flatten().copied().collect();
        assert_eq!(kept, (0..31).filter(|interval| *interval != 5).collect::<Vec<_>>());
    }

    #[test]
    fn segments_that_changed_places_are_out_of_order() {
        let numbers = |numbers: &[u8]| {
            let segment = |(at, &number): (usize, &u8)| Segment { start: at, end: at + 1, number, broken: false };
            [7].iter().chain(numbers).enumerate().map(segment).collect::<Vec<_>>()
        };
        let data: Vec<u8> = (0..20).collect();
        for sound in [&[0, 1, 2, 3, 4][..], &[3, 4, 5, 6, 7, 0], &[0, 0, 0, 0], &[0, 1, 6, 3, 4], &[5]] {
            assert!(in_order(&data, &numbers(sound)), "{sound:?}");
        }
        for wrong in [&[0, 2, 1, 3, 4][..], &[4, 1, 2, 3, 0], &[0, 1, 2, 2, 3]] {
            assert!(!in_order(&data, &numbers(wrong)), "{wrong:?}");
        }
        // One number is wrong, and its data is there twice.
        assert!(!in_order(&[0, 1, 2, 3, 3, 5], &numbers(&[0, 1, 3, 3, 4])));
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
