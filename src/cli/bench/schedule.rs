//! The due times of an open loop's frames: a function of the frame's number alone, so that a slow answer does not
//! delay later frames.

use std::time::Duration;

/// The schedule of one stream. All times are from the start of the run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    pub rate_hz: f64,
    /// Due time of the first frame.
    pub phase: Duration,
    pub length: Length,
}

/// When a stream stops sending: after a time or after a number of frames.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Length {
    For(Duration),
    Frames(u64),
}

/// Due time of a stream's first frame. Like cameras, streams are not in phase: the first frames of `streams` streams
/// are spread evenly over one period.
pub fn phase(stream: usize, streams: usize, rate_hz: f64) -> Duration {
    Duration::from_secs_f64(stream as f64 / (streams.max(1) as f64 * rate_hz))
}

impl Schedule {
    /// Due time of frame `index` (from 0). None: the stream ends before it.
    pub fn due(&self, index: u64) -> Option<Duration> {
        // From the index, not from the previous frame: rounding errors do not accumulate.
        let due = self.phase + Duration::from_secs_f64(index as f64 / self.rate_hz);
        let within = match self.length {
            Length::For(length) => due < length,
            Length::Frames(count) => index < count,
        };
        within.then_some(due)
    }

    /// Number of frames due before `time`.
    pub fn due_before(&self, time: Duration) -> u64 {
        let estimate = (time.saturating_sub(self.phase).as_secs_f64() * self.rate_hz).ceil() as u64;
        // Rounding may put the estimate off by one in either direction.
        let mut count = estimate.saturating_sub(1);
        while self.due(count).is_some_and(|due| due < time) {
            count += 1;
        }
        match self.length {
            Length::For(length) if time > length => self.due_before(length),
            Length::Frames(frames) => count.min(frames),
            Length::For(_) => count,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_frame_is_due_at_its_index_divided_by_the_rate_without_drift() {
        let schedule = Schedule { rate_hz: 30.0, phase: ms(5), length: Length::For(Duration::from_secs(4000)) };
        assert_eq!(schedule.due(0), Some(ms(5)));
        for index in [30, 3_000, 90_000] {
            let exact = ms(5) + Duration::from_secs(index / 30);
            let due = schedule.due(index).expect("before the end");
            assert!(due.abs_diff(exact) <= Duration::from_nanos(1), "frame {index} at {due:?}");
        }
    }

    #[test]
    fn a_stream_ends_after_its_time_or_its_number_of_frames() {
        let timed = Schedule { rate_hz: 10.0, phase: Duration::ZERO, length: Length::For(ms(1000)) };
        assert_eq!((timed.due(9), timed.due(10)), (Some(ms(900)), None));
        let counted = Schedule { length: Length::Frames(3), ..timed };
        assert_eq!((counted.due(2), counted.due(3)), (Some(ms(200)), None));
    }

    #[test]
    fn the_number_of_frames_due_before_a_time_agrees_with_their_due_times() {
        for (rate_hz, phase, length) in [
            (30.0, ms(0), Length::For(ms(2000))),
            (29.97, ms(13), Length::For(ms(1234))),
            (1000.0, ms(1), Length::Frames(700)),
            (0.4, ms(0), Length::For(ms(10_000))),
        ] {
            let schedule = Schedule { rate_hz, phase, length };
            for time in [0, 1, 13, 33, 34, 999, 1000, 1234, 2000, 5000, 20_000].map(ms) {
                let counted = (0..).map_while(|index| schedule.due(index)).take_while(|due| *due < time).count();
                assert_eq!(schedule.due_before(time), counted as u64, "{schedule:?} before {time:?}");
            }
        }
    }

    #[test]
    fn the_first_frames_of_the_streams_are_spread_over_one_period() {
        let phases: Vec<_> = (0..4).map(|stream| phase(stream, 4, 10.0)).collect();
        assert_eq!(phases, [ms(0), ms(25), ms(50), ms(75)]);
    }
}
