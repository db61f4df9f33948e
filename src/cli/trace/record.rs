//! The timings of one answered frame.

use std::time::Duration;

use crate::proto::v1;

/// An answered frame and its timings.
#[derive(Debug, Clone, PartialEq)]
pub struct FrameRecord {
    pub sequence: u64,
    /// The file's name, or the clip's name and the frame's number.
    pub tag: String,
    /// Empty if the frame has no trace.
    pub trace_id: String,
    /// Rows of the frame's batch on the device, this frame's included.
    pub batch_size: u32,
    /// Measured by the server, from the frame's acceptance.
    pub stages: Vec<v1::StageTiming>,
    /// From sending the frame to reading its answer, measured by the client.
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

    /// The sum of the stages.
    pub fn server(&self) -> Duration {
        self.stages.iter().map(|timing| Duration::from_nanos(timing.duration_ns)).sum()
    }

    /// The round trip minus the sum of the stages. It is a difference of durations: the two clocks are not compared.
    pub fn outside(&self) -> Duration {
        self.round_trip.saturating_sub(self.server())
    }

    /// The base of the shares: the round trip, or the sum of the stages if that is longer.
    pub fn whole(&self) -> Duration {
        self.round_trip.max(self.server())
    }

    /// Whether the stages add up to more than the round trip, which is possible only with a faulty clock or server.
    pub fn is_inconsistent(&self) -> bool {
        self.server() > self.round_trip
    }
}

/// Text from the server without control characters, which could move a terminal's cursor.
pub fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

/// A frame for tests: its stages follow each other without a gap.
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
    fn the_stages_and_the_time_outside_add_up_to_the_round_trip() {
        let frame = frame(1, 10_000, &[(v1::Stage::Queue, 1_500), (v1::Stage::Forward, 7_000)]);
        assert_eq!((frame.server(), frame.outside()), (Duration::from_micros(8_500), Duration::from_micros(1_500)));
        assert_eq!((frame.whole(), frame.is_inconsistent()), (frame.round_trip, false));
    }

    #[test]
    fn the_time_outside_is_not_negative_when_the_stages_exceed_the_round_trip() {
        let frame = frame(1, 10, &[(v1::Stage::Forward, 40)]);
        assert_eq!((frame.outside(), frame.whole()), (Duration::ZERO, Duration::from_micros(40)));
        assert!(frame.is_inconsistent());
    }

    #[test]
    fn control_characters_from_the_server_are_removed() {
        let answer = v1::Explanation { tag: "a\u{1b}[2Jb\n".into(), trace_id: "\r4b".into(), ..Default::default() };
        let record = FrameRecord::new(&answer, Duration::ZERO);
        assert_eq!((record.tag.as_str(), record.trace_id.as_str()), ("a[2Jb", "4b"));
    }
}
