//! The final account of a stream, as text, as JSON and as an exit code.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};

use super::failure::{Exit, Failure};
use crate::client::Account;
use crate::client::latency::{Latencies, Stages};
use crate::client::tally::Tally;
use crate::proto::v1;
use crate::render::report::StageRow;
use crate::telemetry::status_name;

/// The rows of a report's table of stages, in milliseconds.
pub fn stage_rows(stages: &Stages) -> Vec<StageRow> {
    let row = |(stage, latencies): (&str, &Latencies)| StageRow {
        stage: stage.to_owned(),
        mean: latencies.mean_ms(),
        p50: latencies.percentile_ms(0.5),
        p90: latencies.percentile_ms(0.9),
        p99: latencies.percentile_ms(0.99),
        max: latencies.max_ms(),
    };
    stages.iter().map(row).collect()
}

/// The account of a stream that has ended.
#[derive(Debug)]
pub struct Summary {
    tally: Tally,
    round_trip: Latencies,
    stages: Stages,
    /// Sent, accepted, and without an ending.
    missing: BTreeSet<u64>,
    duration: Duration,
}

impl Summary {
    pub fn new(account: Account, duration: Duration) -> Self {
        let Account { mut tally, round_trip, stages } = account;
        let missing = tally.close();
        Summary { tally, round_trip, stages, missing, duration }
    }

    pub fn sent(&self) -> u64 {
        self.tally.sent
    }

    pub fn answered(&self) -> u64 {
        self.tally.answered
    }

    pub fn stages(&self) -> &Stages {
        &self.stages
    }

    /// Answered frames per second of the stream's duration.
    pub fn rate_hz(&self) -> f64 {
        let seconds = self.duration.as_secs_f64();
        if seconds > 0.0 { self.tally.answered as f64 / seconds } else { 0.0 }
    }

    /// The frames' account as lines of text.
    pub fn account_lines(&self) -> Vec<String> {
        let tally = &self.tally;
        let mut lines = vec![format!(
            "{} frames sent: {} answered, {} dropped{}, {} failed{}",
            tally.sent,
            tally.answered,
            tally.dropped_total(),
            by_kind(&tally.dropped),
            tally.failed_total(),
            by_kind(&tally.failed),
        )];
        if tally.not_accepted > 0 {
            lines.push(format!("{} frames not accepted: the server went away before it read them", tally.not_accepted));
        }
        if self.accounted_for() {
            lines.push("every frame is accounted for".to_owned());
        }
        lines
    }

    /// The account, the rate, the round trips and the stages as text.
    pub fn text(&self) -> String {
        let mut lines = self.account_lines();
        if self.tally.answered > 0 {
            lines.push(format!(
                "{:.1} frames/s; round trip p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms",
                self.rate_hz(),
                self.round_trip.percentile_ms(0.5),
                self.round_trip.percentile_ms(0.99),
                self.round_trip.max_ms(),
            ));
        }
        lines.extend(self.stages.lines());
        lines.iter().map(|line| format!("{line}\n")).collect()
    }

    /// Names and values for the head of a report.
    pub fn facts(&self) -> Vec<(String, String)> {
        let tally = &self.tally;
        let dropped = format!("{}{}", tally.dropped_total(), by_kind(&tally.dropped));
        let failed = format!("{}{}", tally.failed_total(), by_kind(&tally.failed));
        [
            ("frames", tally.sent.to_string()),
            ("answered", tally.answered.to_string()),
            ("dropped", dropped),
            ("failed", failed),
            ("rate", format!("{:.1} frames/s", self.rate_hz())),
            ("round trip, p50", format!("{:.1} ms", self.round_trip.percentile_ms(0.5))),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    /// The last line of `--json`.
    pub fn json(&self) -> Value {
        let mut json = self.account_json();
        json["event"] = "summary".into();
        json["round_trip_ms"] = self.round_trip.json_ms();
        json["stages_ms"] = self.stages.json_ms();
        json
    }

    /// The frames' account as JSON.
    pub fn account_json(&self) -> Value {
        let tally = &self.tally;
        json!({
            "sent": tally.sent,
            "answered": tally.answered,
            "dropped": tally.dropped,
            "failed": tally.failed,
            "not_accepted": tally.not_accepted,
            "missing": self.missing.len(),
            "unexpected": tally.unexpected,
            "out_of_order": tally.out_of_order,
            "altered": tally.altered.len(),
            "accounted_for": self.accounted_for(),
            "seconds": self.duration.as_secs_f64(),
            "frames_per_second": self.rate_hz(),
        })
    }

    fn accounted_for(&self) -> bool {
        let Tally { unexpected, out_of_order, altered, .. } = &self.tally;
        self.missing.is_empty() && (*unexpected, *out_of_order) == (0, 0) && altered.is_empty()
    }

    /// Fails unless each frame had exactly one ending, in order, and none was an error.
    pub fn verdict(&self) -> Result<(), Failure> {
        let tally = &self.tally;
        if let Some(first) = self.missing.first() {
            let count = self.missing.len();
            return Err(Failure::failed(format!("{count} frames have no ending; the first is frame {first}")));
        }
        if let Some(first) = tally.altered.first() {
            let count = tally.altered.len();
            return Err(Failure::failed(format!(
                "the server returned another tag or capture time for {count} frames; the first is frame {first}"
            )));
        }
        if !self.accounted_for() {
            return Err(Failure::failed(format!(
                "the server violated the protocol: {} endings of frames that were not open, {} out of order",
                tally.unexpected, tally.out_of_order
            )));
        }
        if tally.not_accepted > 0 {
            return Err(Failure::new(
                Exit::Unavailable,
                format!("the server went away before it read {} frames", tally.not_accepted),
            ));
        }
        match tally.failed_total() {
            0 => Ok(()),
            failed => Err(Failure::new(Exit::Partly, format!("{failed} of {} frames failed", tally.sent))),
        }
    }
}

/// Most failed frames to print one by one; the summary counts all of them.
pub const FAILURES_SHOWN: usize = 10;

/// A failed frame as a line of text.
pub fn failure_line(error: &v1::FrameError) -> String {
    let tag = String::from_utf8_lossy(&error.tag);
    format!("frame {} ({tag}): {} ({})", error.sequence, error.message, status_name(error.code))
}

/// ` (expired 2, replaced 5)`; empty without counts.
fn by_kind(counts: &BTreeMap<String, u64>) -> String {
    if counts.is_empty() {
        return String::new();
    }
    let kinds: Vec<String> = counts.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    format!(" ({})", kinds.join(", "))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::client::tally::Echo;

    fn summary(sent: u64, fill: impl FnOnce(&mut Tally)) -> Summary {
        let mut account = Account::default();
        (1..=sent).for_each(|sequence| account.tally.sent(sequence, Echo::default(), Instant::now()));
        fill(&mut account.tally);
        account.stages.record("forward", Duration::from_millis(40));
        Summary::new(account, Duration::from_secs(2))
    }

    #[test]
    fn the_account_counts_every_kind_of_ending() {
        let summary = summary(5, |tally| {
            tally.dropped(1, 2, 2, "replaced");
            tally.answered(3);
            tally.failed(4, "INVALID_ARGUMENT");
            tally.answered(5);
        });
        let text = summary.text();
        assert!(
            text.starts_with(
                "5 frames sent: 2 answered, 2 dropped (replaced 2), 1 failed (INVALID_ARGUMENT 1)\nevery frame"
            ),
            "{text}"
        );
        assert!(text.contains("1.0 frames/s") && text.contains("forward"), "{text}");
        let json = summary.json();
        assert_eq!((&json["accounted_for"], &json["dropped"]["replaced"]), (&true.into(), &2.into()));
        assert_eq!(summary.verdict().expect_err("a frame failed").exit(), Exit::Partly);
    }

    #[test]
    fn missing_frames_fail_the_stream_and_dropped_ones_do_not() {
        assert_eq!(summary(2, |tally| tally.dropped(1, 2, 2, "replaced")).verdict(), Ok(()));
        let lost = summary(3, |tally| assert!(tally.answered(1).is_some()));
        assert!(!lost.text().contains("every frame is accounted for"));
        assert!(
            lost.verdict()
                .expect_err("two are missing")
                .to_string()
                .contains("2 frames have no ending; the first is frame 2")
        );
    }

    #[test]
    fn an_altered_tag_fails_the_stream() {
        let altered = summary(2, |tally| {
            for sequence in [1, 2] {
                tally.echoed(sequence, |_| sequence == 1);
                tally.answered(sequence);
            }
        });
        assert_eq!((&altered.json()["altered"], &altered.json()["accounted_for"]), (&1.into(), &false.into()));
        let failure = altered.verdict().expect_err("the tag of frame 2 changed");
        assert_eq!(failure.exit(), Exit::Failed);
        assert!(failure.to_string().ends_with("for 1 frames; the first is frame 2"), "{failure}");
    }

    #[test]
    fn a_server_that_went_away_is_unavailable() {
        let summary = summary(3, |tally| {
            tally.went_away(Some(1));
            tally.answered(1);
        });
        assert_eq!(summary.verdict().expect_err("two were not read").exit(), Exit::Unavailable);
    }
}
