//! What an answer says about its frame's time.

use std::time::Duration;

use crate::proto::v1;

/// One answered frame: where its time went.
#[derive(Debug, Clone, PartialEq)]
pub struct FrameRecord {
    pub sequence: u64,
    /// The file's name, or the clip's and the frame's number.
    pub tag: String,
    /// Empty: it has none.
    pub trace_id: String,
    /// Rows that ran together on the device, this one included.
    pub batch_size: u32,
    /// As the server measured them, from the frame's acceptance.
    pub stages: Vec<v1::StageTiming>,
    /// From sending the frame to reading its answer, as the client measured it.
    pub round_trip: Duration,
}

impl FrameRecord {
    pub fn new(answer: &v1::Explanation, round_trip: Duration) -> Self {
        FrameRecord {
            sequence: answer.sequence,
            tag: printable(&String::from_utf8_lossy(&answer.tag)),
            trace_id: printable(&answer.trace_id),
            batch_size: answer.batch_size,
            stages: answer.timings.clone(),
            round_trip,
        }
    }

    /// All stages together.
    pub fn server(&self) -> Duration {
        self.stages.iter().map(|timing| Duration::from_nanos(timing.duration_ns)).sum()
    }

    /// What the client waited beyond the server's stages. Two durations are compared, never two clocks' times.
    pub fn outside(&self) -> Duration {
        self.round_trip.saturating_sub(self.server())
    }

    /// What shares are of: the round trip, or what the server counts where that is more.
    pub fn whole(&self) -> Duration {
        self.round_trip.max(self.server())
    }

    /// Whether the server counts more than the client waited, which cannot be.
    pub fn is_impossible(&self) -> bool {
        self.server() > self.round_trip
    }
}

/// Text from elsewhere, without what would move a terminal's cursor.
pub fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

/// For the tests of what is drawn.
#[cfg(test)]
pub fn frame(sequence: u64, round_trip_us: u64, stages: &[(v1::Stage, u64)]) -> FrameRecord {
    let mut start_us = 0;
    let timing = |&(stage, us): &(v1::Stage, u64)| {
        let timing = v1::StageTiming { stage: stage as i32, start_ns: start_us * 1000, duration_ns: us * 1000 };
        start_us += us;
        timing
    };
    FrameRecord {
        sequence,
        tag: "cup.png".to_owned(),
        trace_id: "4bf92f3577b34da6a3ce929d0e0e4736".to_owned(),
        batch_size: 1,
        stages: stages.iter().map(timing).collect(),
        round_trip: Duration::from_micros(round_trip_us),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stages_and_what_is_outside_add_up_to_the_round_trip() {
        let frame = frame(1, 10_000, &[(v1::Stage::Queue, 1_500), (v1::Stage::Forward, 7_000)]);
        assert_eq!((frame.server(), frame.outside()), (Duration::from_micros(8_500), Duration::from_micros(1_500)));
        assert_eq!((frame.whole(), frame.is_impossible()), (frame.round_trip, false));
    }

    #[test]
    fn a_server_that_counts_more_than_the_client_waited_makes_nothing_negative() {
        let frame = frame(1, 10, &[(v1::Stage::Forward, 40)]);
        assert_eq!((frame.outside(), frame.whole()), (Duration::ZERO, Duration::from_micros(40)));
        assert!(frame.is_impossible());
    }

    #[test]
    fn what_a_server_says_cannot_move_the_cursor() {
        let answer = v1::Explanation { tag: "a\u{1b}[2Jb\n".into(), trace_id: "\r4b".into(), ..Default::default() };
        let record = FrameRecord::new(&answer, Duration::ZERO);
        assert_eq!((record.tag.as_str(), record.trace_id.as_str()), ("a[2Jb", "4b"));
    }
}
