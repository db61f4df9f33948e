//! Devices for a load, and what is left of it when some are lost.

use super::QUANTILE;
use super::binomial::LogFactorials;

/// How streams come to devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// Each device has as many as any other, or one more: one client that opens all streams in turn, or a balancer that
    /// counts.
    Even,
    /// Each stream's client chooses for itself, without regard to the others.
    Random,
}

/// The fewest devices for `streams` streams, where each serves `per_device`, at least 1. With [`Placement::Random`]:
/// those with which [`QUANTILE`] of the streams are on a device with no more than `per_device`.
pub fn devices(streams: u32, per_device: u32, placement: Placement) -> u32 {
    let per_device = per_device.max(1);
    let even = streams.div_ceil(per_device);
    if placement == Placement::Even || even <= 1 {
        return even;
    }
    let logs = LogFactorials::up_to(streams as usize);
    let others = streams as usize - 1;
    let keeps = |devices: u32| {
        let beside = logs.up_to_hits(others, per_device as usize - 1, 1.0 / f64::from(devices));
        beside.iter().sum::<f64>() >= QUANTILE
    };
    let (mut missed, mut kept) = (even - 1, even);
    while !keeps(kept) {
        (missed, kept) = (kept, kept.saturating_mul(2));
    }
    while kept - missed > 1 {
        let middle = missed + (kept - missed) / 2;
        if keeps(middle) { kept = middle } else { missed = middle }
    }
    kept
}

/// The share of all frames that `devices` devices explain when each explains `max_hz` frames per second at most and
/// newer frames replace those that wait.
pub fn answered_share(streams: u32, rate_hz: f64, max_hz: f64, devices: u32, placement: Placement) -> f64 {
    if streams == 0 {
        return 1.0;
    }
    if devices == 0 {
        return 0.0;
    }
    let most = max_hz / rate_hz;
    let answered = |on_device: usize| (on_device as f64).min(most);
    let mean = f64::from(streams) / f64::from(devices);
    let answered = match placement {
        Placement::Even => {
            let fuller = mean.fract();
            (1.0 - fuller) * answered(mean as usize) + fuller * answered(mean as usize + 1)
        }
        Placement::Random => {
            let logs = LogFactorials::up_to(streams as usize);
            // Beyond 12 standard deviations and as many streams nothing is left to add.
            let last = (mean + 12.0 * mean.sqrt() + 12.0).min(f64::from(streams)) as usize;
            let counts = logs.up_to_hits(streams as usize, last, 1.0 / f64::from(devices));
            counts.into_iter().enumerate().map(|(on_device, weight)| weight * answered(on_device)).sum()
        }
    };
    answered / mean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_even_placement_needs_the_quotient_and_a_random_one_room_for_its_spread() {
        assert_eq!(devices(0, 8, Placement::Even), 0);
        assert_eq!(devices(1, 8, Placement::Random), 1);
        assert_eq!(devices(1001, 8, Placement::Even), 126);
        let random = devices(1000, 200, Placement::Random);
        assert!((6..=7).contains(&random), "{random} for 5: a large device needs little");
        let small = devices(100_000, 7, Placement::Random);
        assert!(small > 2 * 100_000 / 7, "{small}: a small device needs much");
        // With one device fewer the goal is missed.
        let mean = 100_000.0 / f64::from(small);
        let poisson = |hits: u32| (0..hits).fold((-mean).exp(), |one, n| one * mean / f64::from(n + 1));
        let share: f64 = (0..7).map(poisson).sum();
        assert!((share - QUANTILE).abs() < 1e-3, "{share}");
    }

    #[test]
    fn too_few_devices_explain_what_they_can() {
        assert_eq!(answered_share(8, 5.0, 50.0, 1, Placement::Even), 1.0);
        assert_eq!(answered_share(20, 5.0, 50.0, 1, Placement::Even), 0.5);
        assert_eq!(answered_share(25, 5.0, 50.0, 2, Placement::Even), 20.0 / 25.0);
        assert_eq!(answered_share(25, 5.0, 50.0, 0, Placement::Even), 0.0);
        let random = answered_share(25, 5.0, 50.0, 2, Placement::Random);
        assert!((0.7..0.8).contains(&random), "{random}: the emptier one cannot help");
    }
}
