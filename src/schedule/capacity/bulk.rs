//! Cameras before a device that runs what waits together, up to its largest batch: the queue is run through for drawn
//! phases of the cameras, since a bulk-service queue with periodic arrivals has no closed form.

use super::DeviceTimes;
use super::dice::Dice;

/// Frames that are run through, at least, in as many draws of phases as that takes.
const FRAMES: u32 = 60_000;
/// Periods of a draw. The first ones, which begin with an idle device, do not count.
const PERIODS: u32 = 4;
const SETTLING: u32 = 2;

/// The `quantile` of the time from a frame's arrival to the end of its batch, in seconds. The frames of
/// all streams must take less than a period. The draws are the same for every call.
pub(super) fn latency_s(device: &DeviceTimes, streams: u32, period_s: f64, quantile: f64) -> f64 {
    let mut latencies = Vec::new();
    let mut phases = Dice(0);
    let draws = FRAMES.div_ceil(streams * (PERIODS - SETTLING));
    for _ in 0..draws {
        let mut arrivals_s: Vec<f64> = (0..streams).map(|_| period_s * phases.roll()).collect();
        arrivals_s.sort_by(f64::total_cmp);
        run_through(device, &arrivals_s, period_s, &mut latencies);
    }
    let index = ((quantile * latencies.len() as f64).ceil() as usize).clamp(1, latencies.len()) - 1;
    *latencies.select_nth_unstable_by(index, f64::total_cmp).1
}

/// Adds the latencies of cameras whose frames arrive at `arrivals_s`, in order, in each period.
fn run_through(device: &DeviceTimes, arrivals_s: &[f64], period_s: f64, latencies: &mut Vec<f64>) {
    let arrival = |number: usize| period_s * (number / arrivals_s.len()) as f64 + arrivals_s[number % arrivals_s.len()];
    let (all, settled) = (arrivals_s.len() * PERIODS as usize, arrivals_s.len() * SETTLING as usize);
    let (mut now_s, mut next) = (0.0_f64, 0);
    while next < all {
        now_s = now_s.max(arrival(next));
        let most = device.max_rows() as usize;
        let rows = (next..all).take(most).take_while(|number| arrival(*number) <= now_s).count();
        now_s += device.batch_s(rows as u32);
        latencies.extend((next..next + rows).filter(|number| *number >= settled).map(|number| now_s - arrival(number)));
        next += rows;
    }
}

#[cfg(test)]
mod tests {
    use super::super::periodic;
    use super::*;

    #[test]
    fn without_batches_it_is_the_queue_that_has_a_closed_form() {
        for (streams, period_s, frame_s) in [(2, 0.1, 0.02), (8, 0.2, 0.022), (100, 1.0, 0.0075), (12, 0.0667, 0.005)] {
            let device = DeviceTimes::one_by_one(frame_s).expect("a device");
            let right = frame_s + periodic::wait_s(streams, period_s, frame_s, 0.99);
            let found = latency_s(&device, streams, period_s, 0.99);
            assert!((found / right - 1.0).abs() < 0.06, "{streams} streams: {found} for {right}");
        }
    }

    #[test]
    fn a_single_camera_never_waits_and_a_crowded_device_makes_batches() {
        let device = DeviceTimes::new(0.0025, 8, 0.006).expect("a device");
        let latency = |streams, quantile| latency_s(&device, streams, 0.2, quantile);
        assert!((latency(1, 0.99) - 0.0025).abs() < 1e-9);
        let (quiet, busy) = (latency(20, 0.99), latency(200, 0.99));
        assert!((0.0025..0.006).contains(&quiet), "{quiet}");
        assert!((0.006..0.024).contains(&busy), "{busy}");
        assert!(latency(200, 0.5) < busy);
    }
}
