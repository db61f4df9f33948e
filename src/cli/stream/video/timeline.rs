//! When a frame is shown in a video.

use std::time::{Duration, Instant};

use crate::client::{Answered, OutgoingFrame};

/// Places frames at times from the video's start, in order.
#[derive(Debug)]
pub struct Timeline {
    /// Of one picture of the video, and of one frame of a source without times.
    picture: Duration,
    frame: Duration,
    began: Option<Instant>,
    /// Where the recording's current round begins: a recording may be read several times.
    round: Duration,
    last: Duration,
    count: u32,
}

impl Timeline {
    pub fn new(fps: f64, rate_hz: f64) -> Self {
        let (picture, frame) = (Duration::from_secs_f64(1.0 / fps), Duration::from_secs_f64(1.0 / rate_hz));
        Timeline { picture, frame, began: None, round: Duration::ZERO, last: Duration::ZERO, count: 0 }
    }

    /// The frame's time: of a camera's frame its capture, of a recording's frame its position, else its number.
    pub fn place(&mut self, answered: &Answered, is_live: bool) -> Duration {
        self.at(&answered.frame, is_live)
    }

    fn at(&mut self, frame: &OutgoingFrame, is_live: bool) -> Duration {
        let at = match frame.position {
            Some(position) => {
                if self.round + position < self.last {
                    self.round = self.last + self.picture;
                }
                self.round + position
            }
            None if is_live => {
                let began = *self.began.get_or_insert(frame.captured.at);
                frame.captured.at.saturating_duration_since(began)
            }
            None => self.frame * self.count,
        };
        self.count += 1;
        self.last = self.last.max(at);
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Capture, Payload};

    fn frame(position_ms: Option<u64>, captured: Capture) -> OutgoingFrame {
        let position = position_ms.map(Duration::from_millis);
        OutgoingFrame { position, captured, ..OutgoingFrame::new("a", Payload::Encoded(Vec::new().into())) }
    }

    #[test]
    fn a_cameras_frames_are_placed_by_their_capture_and_never_back_in_time() {
        let mut timeline = Timeline::new(25.0, 25.0);
        let capture = |ms| {
            let Capture { at, wall } = Capture::now();
            Capture { at: at + Duration::from_millis(ms), wall }
        };
        let began = capture(1000);
        let after = |ms| Capture { at: began.at + Duration::from_millis(ms), ..began };
        let places =
            [began, after(40), after(300), after(290)].map(|at| timeline.at(&frame(None, at), true).as_millis());
        assert_eq!(places, [0, 40, 300, 300]);
    }

    #[test]
    fn a_recording_is_placed_by_position_and_its_rounds_follow_each_other() {
        let mut timeline = Timeline::new(25.0, 25.0);
        let now = Capture::now();
        let places = [0, 500, 1000, 0, 500].map(|ms| timeline.at(&frame(Some(ms), now), false).as_millis());
        assert_eq!(places, [0, 500, 1000, 1040, 1540]);
    }

    #[test]
    fn pictures_without_a_time_follow_at_their_rate() {
        let mut timeline = Timeline::new(25.0, 2.0);
        let places = [(); 3].map(|()| timeline.at(&frame(None, Capture::now()), false).as_millis());
        assert_eq!(places, [0, 500, 1000]);
    }
}
