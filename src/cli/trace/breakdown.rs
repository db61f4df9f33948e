//! Sums the time of many frames by stage.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::record::FrameRecord;
use crate::client::latency::Latencies;
use crate::client::names;

/// A percentile, and the number of frames it needs: with fewer, no frame lies beyond it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Percentile {
    pub name: &'static str,
    pub share: f64,
    pub fewest: u64,
}

/// The percentiles of each stage that are shown if there are enough frames.
pub const PERCENTILES: [Percentile; 3] = [
    Percentile { name: "p50", share: 0.5, fewest: 2 },
    Percentile { name: "p90", share: 0.9, fewest: 10 },
    Percentile { name: "p99", share: 0.99, fewest: 100 },
];

/// A part of the round trip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// A stage, by its number in the protocol.
    Stage(i32),
    /// The time before the server read the frame and after the last stage.
    Outside,
}

impl Part {
    /// `forward`, `outside`.
    pub fn name(self) -> String {
        match self {
            Part::Stage(stage) => names::stage(stage),
            Part::Outside => "outside".to_owned(),
        }
    }
}

/// The times of all frames by part. Shares are shares of the sum of the round trips.
#[derive(Debug, Clone, Default)]
pub struct Breakdown {
    /// In the order in which a frame passes the stages; `Outside` comes last.
    parts: BTreeMap<Part, Latencies>,
    pub server: Latencies,
    pub round_trip: Latencies,
    whole: Duration,
    batch_sizes: u64,
}

impl Breakdown {
    pub fn of<'a>(frames: impl IntoIterator<Item = &'a FrameRecord>) -> Self {
        let mut breakdown = Breakdown::default();
        for frame in frames {
            breakdown.add(frame);
        }
        breakdown
    }

    fn add(&mut self, frame: &FrameRecord) {
        // A batch that ran again after it ran out of memory has stages twice: both times count.
        let mut parts = BTreeMap::from([(Part::Outside, frame.outside())]);
        for timing in &frame.stages {
            *parts.entry(Part::Stage(timing.stage)).or_default() += Duration::from_nanos(timing.duration_ns);
        }
        for (part, duration) in parts {
            self.parts.entry(part).or_default().record(duration);
        }
        self.server.record(frame.server());
        self.round_trip.record(frame.round_trip);
        self.whole += frame.whole();
        self.batch_sizes += u64::from(frame.batch_size);
    }

    pub fn frames(&self) -> u64 {
        self.round_trip.count()
    }

    /// The mean batch size over the frames.
    pub fn mean_batch_size(&self) -> f64 {
        self.batch_sizes as f64 / self.frames().max(1) as f64
    }

    /// The parts and their times, in order.
    pub fn parts(&self) -> impl Iterator<Item = (Part, &Latencies)> {
        self.parts.iter().map(|(&part, times)| (part, times))
    }

    /// The sum of `times` as a share of the round trips, 0 to 1.
    pub fn share(&self, times: &Latencies) -> f64 {
        let whole_ms = self.whole.as_secs_f64() * 1e3;
        if whole_ms > 0.0 { times.total_ms() / whole_ms } else { 0.0 }
    }

    /// The part that takes the most time, and its share. None: all times are zero.
    pub fn largest(&self) -> Option<(Part, f64)> {
        let (part, times) = self.parts().max_by(|(_, a), (_, b)| a.total_ms().total_cmp(&b.total_ms()))?;
        (times.total_ms() > 0.0).then(|| (part, self.share(times)))
    }

    /// The percentiles for which there are enough frames.
    pub fn available(&self) -> impl Iterator<Item = Percentile> + Clone + use<> {
        let frames = self.frames();
        PERCENTILES.into_iter().filter(move |percentile| frames >= percentile.fewest)
    }

    /// Says which percentiles need more frames. None: there are enough for all.
    pub fn too_few(&self) -> Option<String> {
        let missing: Vec<String> = PERCENTILES
            .iter()
            .filter(|percentile| self.frames() < percentile.fewest)
            .map(|percentile| format!("{} needs {}", percentile.name, percentile.fewest))
            .collect();
        let frames = if self.frames() == 1 { "frame" } else { "frames" };
        (!missing.is_empty()).then(|| format!("only {} {frames}: {}", self.frames(), missing.join(", ")))
    }

    /// Times in milliseconds; percentiles that need more frames are null.
    pub fn times_json(&self, times: &Latencies) -> Value {
        let mut json = json!({
            "total_ms": times.total_ms(),
            "share": self.share(times),
            "mean_ms": times.mean_ms(),
            "max_ms": times.max_ms(),
        });
        for percentile in PERCENTILES {
            let available = self.frames() >= percentile.fewest;
            json[format!("{}_ms", percentile.name)] = available.then(|| times.percentile_ms(percentile.share)).into();
        }
        json
    }

    /// One object for each stage, in order.
    pub fn stages_json(&self) -> Value {
        let stage = |(part, times): (Part, &Latencies)| {
            let mut json = self.times_json(times);
            json["stage"] = part.name().into();
            (part != Part::Outside).then_some(json)
        };
        self.parts().filter_map(stage).collect()
    }

    /// The time outside the server's stages.
    pub fn outside_json(&self) -> Value {
        self.parts.get(&Part::Outside).map_or(Value::Null, |times| self.times_json(times))
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::frame;
    use super::*;
    use crate::proto::v1::Stage;

    #[test]
    fn parts_are_in_the_order_of_the_stages_and_their_shares_add_up() {
        let frames = [
            frame(1, 10_000, &[(Stage::Queue, 1_000), (Stage::Forward, 6_000), (Stage::Render, 2_000)]),
            frame(2, 10_000, &[(Stage::Queue, 500), (Stage::Decode, 500), (Stage::Forward, 8_000)]),
        ];
        let breakdown = Breakdown::of(&frames);
        let names: Vec<String> = breakdown.parts().map(|(part, _)| part.name()).collect();
        assert_eq!(names, ["queue", "decode", "forward", "render", "outside"]);
        let shares: Vec<f64> = breakdown.parts().map(|(_, times)| breakdown.share(times)).collect();
        for (share, expected) in shares.iter().zip([0.075, 0.025, 0.7, 0.1, 0.1]) {
            assert!((share - expected).abs() < 1e-12, "{shares:?}");
        }
        assert_eq!(breakdown.largest(), Some((Part::Stage(Stage::Forward as i32), 0.7)));
    }

    #[test]
    fn a_stage_that_ran_twice_counts_once_with_the_sum_of_its_times() {
        let again = frame(1, 9_000, &[(Stage::Forward, 2_000), (Stage::Forward, 3_000)]);
        let breakdown = Breakdown::of([&again]);
        let (_, times) = breakdown.parts().next().expect("forward");
        assert_eq!((times.count(), times.total_ms()), (1, 5.0));
    }

    #[test]
    fn percentiles_that_need_more_frames_are_left_out() {
        let frames: Vec<_> = (1..=100).map(|n| frame(n, 2_000, &[(Stage::Forward, 10 * n)])).collect();
        let names =
            |count: usize| -> Vec<&str> { Breakdown::of(&frames[..count]).available().map(|p| p.name).collect() };
        assert_eq!((names(1), names(2), names(9)), (vec![], vec!["p50"], vec!["p50"]));
        assert_eq!(
            (names(10), names(99), names(100)),
            (vec!["p50", "p90"], vec!["p50", "p90"], vec!["p50", "p90", "p99"])
        );
        let few = Breakdown::of(&frames[..9]);
        assert_eq!(few.too_few().as_deref(), Some("only 9 frames: p90 needs 10, p99 needs 100"));
        assert_eq!(Breakdown::of(&frames).too_few(), None);
        let forward = &few.stages_json()[0];
        assert_eq!(forward["p90_ms"], Value::Null);
        for (field, expected) in [("max_ms", 0.09), ("p50_ms", 0.05)] {
            assert!(forward[field].as_f64().is_some_and(|ms| (ms - expected).abs() < 1e-4), "{field} in {forward}");
        }
    }

    #[test]
    fn the_stages_of_the_json_add_up_to_the_servers_time() {
        let frames = [
            frame(1, 10_000, &[(Stage::Queue, 1_001), (Stage::Forward, 6_007)]),
            frame(2, 9_000, &[(Stage::Queue, 503), (Stage::Forward, 8_009)]),
        ];
        let breakdown = Breakdown::of(&frames);
        let stages = breakdown.stages_json();
        let sum: f64 = stages.as_array().expect("a list").iter().filter_map(|stage| stage["total_ms"].as_f64()).sum();
        assert!((sum - breakdown.server.total_ms()).abs() < 1e-9);
        let outside = breakdown.outside_json()["total_ms"].as_f64().expect("a number");
        assert!((sum + outside - breakdown.round_trip.total_ms()).abs() < 1e-9);
    }

    #[test]
    fn without_time_there_is_no_largest_part() {
        assert_eq!(Breakdown::default().largest(), None);
        assert_eq!(Breakdown::of([&frame(1, 0, &[(Stage::Queue, 0)])]).largest(), None);
    }
}
