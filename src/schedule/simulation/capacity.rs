//! The model of [`capacity`](crate::schedule::capacity) against the scheduler's own code: within 15 %.
//!
//! A goal is kept or missed, so streams and devices are compared by their thresholds: with 15 % less load than the
//! model allows the goal is kept, with 15 % more it is missed.

use std::collections::BTreeMap;

use super::cameras::{DECODING, Served, serve};
use crate::schedule::capacity::dice::Dice;
use crate::schedule::capacity::{DeviceTimes, Load, Placement, QUANTILE, answered_share, devices};

const AGREEMENT: f64 = 0.15;
/// Draws of the cameras' phases, and frames in all.
type Effort = (u32, f64);
const DEVICE: Effort = (24, 20_000.0);
/// Of each number of streams on a device of a fleet.
const IN_FLEET: Effort = (6, 3_000.0);
/// Streams that are placed at random, in as many draws as that takes.
const PLACED: u32 = 50_000;

fn one_by_one(frame_ms: f64) -> DeviceTimes {
    DeviceTimes::one_by_one(frame_ms / 1e3).expect("a device")
}

fn with_batches(frame_ms: f64, rows: u32, batch_ms: f64) -> DeviceTimes {
    DeviceTimes::new(frame_ms / 1e3, rows, batch_ms / 1e3).expect("a device")
}

/// Without a limit but the goal itself.
fn load(device: &DeviceTimes, rate_hz: f64, goal_s: f64) -> Load {
    let latency_s = goal_s - DECODING * device.batch_s(1);
    Load { rate_hz, latency_s, utilisation: 1.0, max_streams: u32::MAX }
}

fn simulate(device: &DeviceTimes, streams: u32, rate_hz: f64, (draws, frames): Effort) -> Served {
    let mut served = Served::default();
    let seconds = (frames / f64::from(draws * streams) / rate_hz).max(4.0 / rate_hz);
    for draw in 0..draws {
        served.add(serve(device, streams, rate_hz, seconds, &mut Dice(u64::from(draw))));
    }
    served
}

#[test]
fn a_device_keeps_its_latency_goal_up_to_the_streams_that_the_model_allows() {
    let points = [
        // Device, frames per second of a camera, goal in milliseconds.
        (one_by_one(22.0), 5.0, 150.0),
        (one_by_one(22.0), 1.0, 200.0),
        (one_by_one(7.5), 5.0, 40.0),
        (one_by_one(7.5), 15.0, 30.0),
        (one_by_one(7.5), 30.0, 33.0),
        (one_by_one(200.0), 0.1, 1500.0),
        (with_batches(2.5, 8, 6.0), 5.0, 10.0),
        (with_batches(2.5, 8, 6.0), 30.0, 12.0),
        (with_batches(4.0, 4, 10.0), 10.0, 20.0),
        (with_batches(20.0, 8, 120.0), 5.0, 200.0),
    ];
    for (device, rate_hz, goal_ms) in points {
        let goal_s = goal_ms / 1e3;
        let allowed = f64::from(device.streams(&load(&device, rate_hz, goal_s)));
        let fewer = (allowed * (1.0 - AGREEMENT)).floor() as u32;
        let more = (allowed * (1.0 + AGREEMENT)).ceil() as u32;
        let within = |streams| simulate(&device, streams, rate_hz, DEVICE).within(goal_s);
        let (kept, missed) = (within(fewer), within(more));
        eprintln!("{device:?} {rate_hz}/s {goal_ms} ms: {allowed} allowed; {fewer}: {kept:.4}, {more}: {missed:.4}");
        assert!(fewer > 0 && kept >= QUANTILE, "{device:?}: {allowed} allowed, {fewer} keep {kept}");
        assert!(missed < QUANTILE, "{device:?}: {allowed} allowed, {more} keep {missed}");
    }
}

#[test]
fn cameras_of_an_overloaded_device_share_what_it_can_do() {
    for (device, streams, rate_hz) in [
        (one_by_one(22.0), 10, 5.0),
        (one_by_one(22.0), 30, 5.0),
        (one_by_one(7.5), 20, 15.0),
        (with_batches(2.5, 8, 6.0), 100, 30.0),
        (with_batches(4.0, 4, 10.0), 60, 10.0),
        (one_by_one(200.0), 1, 30.0),
    ] {
        let share = answered_share(streams, rate_hz, device.max_hz(), 1, Placement::Even);
        let found = simulate(&device, streams, rate_hz, DEVICE).answered();
        eprintln!("{device:?}, {streams} streams of {rate_hz}/s: {share:.3} expected, {found:.3} found");
        assert!((found / share - 1.0).abs() <= AGREEMENT, "{device:?}: {share} expected, {found} found");
    }
}

/// The share of the streams that keep a goal, by the number of streams on their device.
struct Fleet {
    device: DeviceTimes,
    rate_hz: f64,
    goal_s: f64,
    simulated: BTreeMap<u32, Served>,
}

impl Fleet {
    fn on_device(&mut self, streams: u32) -> &Served {
        let Fleet { device, rate_hz, .. } = self;
        self.simulated.entry(streams).or_insert_with(|| simulate(device, streams, *rate_hz, IN_FLEET))
    }

    /// Draws the streams of each device, in enough placements; gives how often each number of streams came.
    fn place(streams: u32, devices: u32, dice: &mut Dice) -> BTreeMap<u32, u32> {
        let mut counts = BTreeMap::new();
        for _ in 0..PLACED.div_ceil(streams) {
            let mut on_device = vec![0u32; devices as usize];
            for _ in 0..streams {
                on_device[(dice.roll() * f64::from(devices)) as usize] += 1;
            }
            on_device.into_iter().filter(|count| *count > 0).for_each(|count| *counts.entry(count).or_default() += 1);
        }
        counts
    }

    fn kept(&mut self, counts: &BTreeMap<u32, u32>) -> f64 {
        let (mut kept, mut all) = (0, 0);
        for (streams, devices) in counts {
            all += streams * devices;
            let goal_s = self.goal_s;
            if self.on_device(*streams).within(goal_s) >= QUANTILE {
                kept += streams * devices;
            }
        }
        f64::from(kept) / f64::from(all)
    }

    fn answered(&mut self, counts: &BTreeMap<u32, u32>) -> f64 {
        let answered =
            |(streams, devices): (&u32, &u32)| f64::from(streams * devices) * self.on_device(*streams).answered();
        let all: u32 = counts.iter().map(|(streams, devices)| streams * devices).sum();
        counts.iter().map(answered).sum::<f64>() / f64::from(all)
    }
}

#[test]
fn clients_that_choose_devices_at_random_need_the_devices_that_the_model_says_and_lose_what_it_says_with_a_node() {
    for (device, rate_hz, goal_ms, streams) in [
        (one_by_one(22.0), 5.0, 150.0, 100),
        (one_by_one(22.0), 5.0, 150.0, 100_000),
        (one_by_one(7.5), 5.0, 60.0, 10_000),
        (with_batches(2.5, 8, 6.0), 30.0, 20.0, 100_000),
    ] {
        let goal_s = goal_ms / 1e3;
        let mut fleet = Fleet { device, rate_hz, goal_s, simulated: BTreeMap::new() };
        let per_device = device.streams(&load(&device, rate_hz, goal_s));
        let needed = devices(streams, per_device, Placement::Random);
        let mut dice = Dice(u64::from(streams));
        let more = (f64::from(needed) * (1.0 + AGREEMENT)).ceil() as u32;
        let fewer = (f64::from(needed) * (1.0 - AGREEMENT)).floor() as u32;
        let kept = fleet.kept(&Fleet::place(streams, more, &mut dice));
        let missed = fleet.kept(&Fleet::place(streams, fewer, &mut dice));
        eprintln!("{device:?}: {per_device} a device, {needed} devices; {more}: {kept:.4}, {fewer}: {missed:.4}");
        assert!(kept >= QUANTILE, "{device:?}: {needed} devices needed, {more} keep {kept}");
        assert!(missed < QUANTILE, "{device:?}: {needed} devices needed, {fewer} keep {missed}");

        // Of half of the devices that an even placement needs, a node is lost: its streams go to the others.
        let tight = devices(streams, per_device, Placement::Even).div_ceil(2);
        let left = tight - tight.div_ceil(5);
        let share = answered_share(streams, rate_hz, device.max_hz(), left, Placement::Random);
        let found = fleet.answered(&Fleet::place(streams, left, &mut dice));
        eprintln!("  {left} of {tight} devices are left: {share:.3} expected, {found:.3} found");
        assert!((found / share - 1.0).abs() <= AGREEMENT, "{device:?}: {share} expected, {found} found");
    }
}
