//! Selects the frames to draw.

use super::record::FrameRecord;

/// A frame to draw, and the reason.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen<'a> {
    pub why: String,
    pub frame: &'a FrameRecord,
}

/// The frame with the median round trip, the `slowest` slowest frames, then those numbered in `further`; each frame
/// once.
pub fn choose<'a>(frames: &'a [FrameRecord], slowest: usize, further: &[u64]) -> Vec<Chosen<'a>> {
    let mut by_time: Vec<&FrameRecord> = frames.iter().collect();
    by_time.sort_by_key(|frame| frame.round_trip);
    let mut chosen = Vec::new();
    match by_time[..] {
        [] => {}
        [frame] => chosen.push(Chosen { why: "the one that was answered".to_owned(), frame }),
        // For an even number of frames, the faster of the two middle ones.
        _ => chosen.push(Chosen { why: "median".to_owned(), frame: by_time[(by_time.len() - 1) / 2] }),
    }
    for (rank, &frame) in by_time.iter().rev().take(slowest).enumerate() {
        let why = if slowest == 1 { "slowest".to_owned() } else { format!("slowest, number {}", rank + 1) };
        chosen.push(Chosen { why, frame });
    }
    for frame in further.iter().filter_map(|number| frames.iter().find(|frame| frame.sequence == *number)) {
        chosen.push(Chosen { why: "asked for".to_owned(), frame });
    }
    let mut seen = Vec::new();
    chosen.retain(|Chosen { frame, .. }| {
        let is_new = !seen.contains(&frame.sequence);
        seen.push(frame.sequence);
        is_new
    });
    chosen
}

/// The numbers in `further` whose frames have no answer.
pub fn unanswered<'a>(frames: &'a [FrameRecord], further: &'a [u64]) -> impl Iterator<Item = u64> + 'a {
    further.iter().copied().filter(|number| !frames.iter().any(|frame| frame.sequence == *number))
}

#[cfg(test)]
mod tests {
    use super::super::record::frame;
    use super::*;

    /// The choice from frames 1, 2, … with these round trips.
    fn chosen(round_trips_us: &[u64], slowest: usize, further: &[u64]) -> Vec<(String, u64)> {
        let frames: Vec<_> = (1..).zip(round_trips_us).map(|(n, &us)| frame(n, us, &[])).collect();
        choose(&frames, slowest, further).into_iter().map(|chosen| (chosen.why, chosen.frame.sequence)).collect()
    }

    fn owned(chosen: &[(&str, u64)]) -> Vec<(String, u64)> {
        chosen.iter().map(|&(why, sequence)| (why.to_owned(), sequence)).collect()
    }

    #[test]
    fn the_median_and_the_slowest_frame_are_chosen_by_default() {
        assert_eq!(chosen(&[50, 10, 30, 90, 20], 1, &[]), owned(&[("median", 3), ("slowest", 4)]));
        assert_eq!(chosen(&[20, 10], 1, &[]), owned(&[("median", 2), ("slowest", 1)]));
        assert_eq!(chosen(&[20], 1, &[]), owned(&[("the one that was answered", 1)]));
        assert_eq!(chosen(&[], 1, &[]), []);
    }

    #[test]
    fn further_frames_are_chosen_on_request_and_none_twice() {
        let expected = [("median", 3), ("slowest, number 1", 4), ("slowest, number 2", 1), ("asked for", 2)];
        assert_eq!(chosen(&[50, 10, 30, 90, 20], 2, &[2, 4, 7, 2]), owned(&expected));
        let frames = [frame(1, 5, &[])];
        assert_eq!(unanswered(&frames, &[1, 7]).collect::<Vec<_>>(), [7]);
    }
}
