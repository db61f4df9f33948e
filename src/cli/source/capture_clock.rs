//! When a camera took a frame, from the camera's clock and the frame's arrival.

use std::time::{Duration, Instant};

/// Seconds after which an old smallest delay is forgotten: the clocks of camera and computer drift.
const MEMORY_S: f64 = 30.0;
/// Larger delays, in seconds, mean that the camera's clock has jumped.
const LARGEST_DELAY_S: f64 = 30.0;

/// Estimates when frames were taken.
///
/// Times of frames are the camera's; the difference to this computer's clock is not known. The frame that came with
/// the smallest delay in the last 30 to 60 s counts as taken when it arrived, and the others relative to it. So a frame
/// that waited in a network or a decoder is known to be old, and only the delay that every frame has is not known.
#[derive(Debug)]
pub struct CaptureClock {
    began: Instant,
    /// Smallest difference of arrival and frame time, in seconds: since `since_s`, and in the period before.
    current: f64,
    before: f64,
    since_s: f64,
}

impl CaptureClock {
    pub fn new(now: Instant) -> Self {
        CaptureClock { began: now, current: f64::INFINITY, before: f64::INFINITY, since_s: 0.0 }
    }

    /// How old a frame is that has arrived at `now`. `time_s` is the time that the camera gave it; without it, the
    /// frame is taken for new.
    pub fn age(&mut self, time_s: Option<f64>, now: Instant) -> Duration {
        let Some(time_s) = time_s.filter(|time| time.is_finite()) else { return Duration::ZERO };
        let now_s = now.duration_since(self.began).as_secs_f64();
        let difference = now_s - time_s;
        if now_s - self.since_s > MEMORY_S {
            (self.before, self.current, self.since_s) = (self.current, f64::INFINITY, now_s);
        }
        if difference - self.current.min(self.before) > LARGEST_DELAY_S {
            (self.before, self.current, self.since_s) = (f64::INFINITY, f64::INFINITY, now_s);
        }
        self.current = self.current.min(difference);
        Duration::from_secs_f64((difference - self.current.min(self.before)).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ages, in milliseconds, of frames that the camera took at the first and that arrived at the second time.
    fn ages_ms(frames: &[(f64, f64)]) -> Vec<u128> {
        let began = Instant::now();
        let mut clock = CaptureClock::new(began);
        let age = |&(taken, arrived)| clock.age(Some(taken), began + Duration::from_secs_f64(arrived));
        frames.iter().map(age).map(|age| (age.as_secs_f64() * 1e3).round() as u128).collect()
    }

    #[test]
    fn a_frame_that_waited_is_old() {
        assert_eq!(ages_ms(&[(100.0, 1.0), (100.5, 1.5), (101.0, 2.3), (101.5, 2.5)]), [0, 0, 300, 0]);
    }

    #[test]
    fn the_smallest_delay_counts_and_is_forgotten_when_the_clocks_drift() {
        // The camera's clock loses a millisecond a second: after a minute its frames seem to be late.
        let frames: Vec<(f64, f64)> = (0..=3000).map(|second| (f64::from(second) * 0.999, f64::from(second))).collect();
        let ages = ages_ms(&frames);
        assert!(ages.iter().all(|age| *age <= 62), "{:?}", ages.iter().max());
    }

    #[test]
    fn a_jump_of_the_cameras_clock_is_no_delay() {
        assert_eq!(ages_ms(&[(5000.0, 1.0), (0.0, 2.0), (1.0, 3.2)]), [0, 0, 200]);
        assert_eq!(ages_ms(&[(0.0, 1.0), (5000.0, 2.0), (5001.0, 3.0)]), [0, 0, 0]);
    }

    #[test]
    fn a_frame_without_a_time_is_taken_for_new() {
        let now = Instant::now();
        assert_eq!(CaptureClock::new(now).age(None, now), Duration::ZERO);
    }
}
