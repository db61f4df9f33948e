//! The final account of a stream, as text, as JSON and as an exit code.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::failure::{Exit, Failure};
use super::source::camera::CameraAccount;
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

/// What reading the source has met.
#[derive(Debug, Default)]
pub struct SourceFacts {
    /// Errors that the decoder reported and went on.
    pub decode_errors: u64,
    /// `None`: the source is a recording.
    pub camera: Option<CameraAccount>,
}

/// The account of a stream that has ended.
#[derive(Debug)]
pub struct Summary {
    account: Account,
    tally: Tally,
    duration: Duration,
    source: SourceFacts,
}

impl Summary {
    pub fn new(mut account: Account, duration: Duration) -> Self {
        let mut tally = std::mem::take(&mut account.tally);
        account.missing.append(&mut tally.close());
        Summary { account, tally, duration, source: SourceFacts::default() }
    }

    pub fn of_source(self, source: SourceFacts) -> Self {
        Summary { source, ..self }
    }

    pub fn sent(&self) -> u64 {
        self.tally.sent
    }

    pub fn answered(&self) -> u64 {
        self.tally.answered
    }

    pub fn stages(&self) -> &Stages {
        &self.account.stages
    }

    /// Frames that were read from the source.
    fn read(&self) -> u64 {
        self.tally.sent + self.account.unsent
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
        if tally.lost > 0 {
            lines.push(format!("{} frames lost: their connection ended before their answer", tally.lost));
        }
        if self.account.unsent > 0 {
            lines.push(format!("{} more frames read and not sent, for a newer one or at the end", self.account.unsent));
        }
        lines.extend(self.source_line());
        if self.accounted_for() {
            lines.push("every frame is accounted for".to_owned());
        }
        lines
    }

    /// What the source has met; `None`: nothing.
    fn source_line(&self) -> Option<String> {
        let mut facts = Vec::new();
        if let Some(camera) = &self.source.camera
            && let Some(loss) = &camera.last_loss
        {
            facts.push(format!(
                "the camera was lost and came back {} times; the last loss: {loss}",
                camera.reconnections
            ));
        }
        if self.source.decode_errors > 0 {
            facts.push(format!("the decoder reported {} errors", self.source.decode_errors));
        }
        if self.account.connections > 1 {
            facts.push(format!("the stream was opened {} times", self.account.connections));
        }
        (!facts.is_empty()).then(|| facts.join("; "))
    }

    /// From the capture of a frame to its answer; `None`: the source is a recording, or nothing was answered.
    fn glass_to_answer(&self) -> Option<&Latencies> {
        let latencies = &self.account.glass_to_answer;
        (self.source.camera.is_some() && latencies.count() > 0).then_some(latencies)
    }

    /// The account, the rate, the round trips and the stages as text.
    pub fn text(&self) -> String {
        let mut lines = self.account_lines();
        if self.tally.answered > 0 {
            lines.push(format!(
                "{:.1} frames/s; round trip p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms",
                self.rate_hz(),
                self.account.round_trip.percentile_ms(0.5),
                self.account.round_trip.percentile_ms(0.99),
                self.account.round_trip.max_ms(),
            ));
        }
        lines.extend(self.glass_to_answer().map(|latencies| {
            let [p50, p95, p99] = [0.5, 0.95, 0.99].map(|share| latencies.percentile_ms(share));
            let max = latencies.max_ms();
            format!("glass to answer p50 {p50:.1} ms, p95 {p95:.1} ms, p99 {p99:.1} ms, max {max:.1} ms")
        }));
        lines.extend(self.account.stages.lines());
        lines.iter().map(|line| format!("{line}\n")).collect()
    }

    /// Names and values for the head of a report.
    pub fn facts(&self) -> Vec<(String, String)> {
        let tally = &self.tally;
        let dropped = format!("{}{}", tally.dropped_total(), by_kind(&tally.dropped));
        let failed = format!("{}{}", tally.failed_total(), by_kind(&tally.failed));
        let glass = self.glass_to_answer().map(|latencies| format!("{:.1} ms", latencies.percentile_ms(0.95)));
        [
            ("frames", tally.sent.to_string()),
            ("answered", tally.answered.to_string()),
            ("dropped", dropped),
            ("failed", failed),
            ("rate", format!("{:.1} frames/s", self.rate_hz())),
            ("round trip, p50", format!("{:.1} ms", self.account.round_trip.percentile_ms(0.5))),
        ]
        .into_iter()
        .chain(glass.map(|p95| ("glass to answer, p95", p95)))
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
    }

    /// The last line of `--json`.
    pub fn json(&self) -> Value {
        let mut json = self.account_json();
        json["event"] = "summary".into();
        json["round_trip_ms"] = self.account.round_trip.json_ms();
        json["glass_to_answer_ms"] = self.glass_to_answer().map(Latencies::json_ms).into();
        json["stages_ms"] = self.account.stages.json_ms();
        json["decode_errors"] = self.source.decode_errors.into();
        json["camera"] = self.source.camera.as_ref().map(camera_json).into();
        json
    }

    /// The frames' account as JSON.
    pub fn account_json(&self) -> Value {
        let tally = &self.tally;
        json!({
            "read": self.read(),
            "unsent": self.account.unsent,
            "sent": tally.sent,
            "answered": tally.answered,
            "dropped": tally.dropped,
            "failed": tally.failed,
            "not_accepted": tally.not_accepted,
            "lost": tally.lost,
            "connections": self.account.connections,
            "missing": self.account.missing.len(),
            "unexpected": tally.unexpected,
            "out_of_order": tally.out_of_order,
            "altered": tally.altered.len(),
            "accounted_for": self.accounted_for(),
            "seconds": self.duration.as_secs_f64(),
            "frames_per_second": self.rate_hz(),
        })
    }

    fn accounted_for(&self) -> bool {
        let tally = &self.tally;
        let ended = tally.answered + tally.dropped_total() + tally.failed_total() + tally.not_accepted + tally.lost;
        let is_sound = (tally.unexpected, tally.out_of_order) == (0, 0) && tally.altered.is_empty();
        self.account.missing.is_empty() && is_sound && ended == tally.sent
    }

    /// Fails unless each frame had exactly one ending, in order, and none was an error.
    pub fn verdict(&self) -> Result<(), Failure> {
        let tally = &self.tally;
        if let Some(first) = self.account.missing.first() {
            let count = self.account.missing.len();
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
        // A camera's next frame is worth more than one that was lost.
        if tally.lost > 0 && self.source.camera.is_none() {
            let sentence = format!("{} of {} frames were lost with their connection", tally.lost, tally.sent);
            return Err(Failure::new(Exit::Partly, sentence));
        }
        match tally.failed_total() {
            0 => Ok(()),
            failed => Err(Failure::new(Exit::Partly, format!("{failed} of {} frames failed", tally.sent))),
        }
    }
}

fn camera_json(camera: &CameraAccount) -> Value {
    json!({"reconnections": camera.reconnections, "last_loss": camera.last_loss})
}

/// The account of several sources: a row for each, and below it what only some of them have met.
pub fn table(rows: &[(&str, &Summary)]) -> String {
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0).max(6);
    let heads = ["read", "not sent", "sent", "answered", "dropped", "failed", "lost", "frames/s", "p50", "p95", "p99"];
    let line = |name: &str, cells: [String; 11]| {
        let cells: String = cells.iter().map(|cell| format!(" {cell:>8}")).collect();
        format!("{name:<width$}{cells}\n")
    };
    let mut text = format!("{:>1$}\n", "glass to answer, in ms", width + 11 * 9);
    text.push_str(&line("source", heads.map(str::to_owned)));
    for (name, summary) in rows {
        let tally = &summary.tally;
        let counts = [
            summary.read(),
            summary.account.unsent,
            tally.sent,
            tally.answered,
            tally.dropped_total(),
            tally.failed_total(),
            tally.lost + tally.not_accepted,
        ];
        let glass =
            |share| summary.glass_to_answer().map_or("-".to_owned(), |l| format!("{:.1}", l.percentile_ms(share)));
        let [a, b, c, d, e, f, g] = counts.map(|count| count.to_string());
        let rate = format!("{:.1}", summary.rate_hz());
        text.push_str(&line(name, [a, b, c, d, e, f, g, rate, glass(0.5), glass(0.95), glass(0.99)]));
    }
    for (name, summary) in rows {
        let kinds = [("dropped", &summary.tally.dropped), ("failed", &summary.tally.failed)];
        let kinds = kinds.into_iter().filter(|(_, counts)| !counts.is_empty());
        let facts: Vec<String> =
            kinds.map(|(what, counts)| format!("{what}{}", by_kind(counts))).chain(summary.source_line()).collect();
        if !facts.is_empty() {
            text.push_str(&format!("{name}: {}\n", facts.join("; ")));
        }
    }
    if rows.iter().all(|(_, summary)| summary.accounted_for()) {
        text.push_str("every frame is accounted for\n");
    }
    text
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
    fn a_cameras_lost_frames_are_told_and_a_recordings_fail_the_stream() {
        let lost = |camera: Option<CameraAccount>| {
            let mut summary = summary(3, |tally| {
                tally.answered(1);
                tally.lost += tally.disconnected().unanswered.len() as u64;
            });
            summary.account.unsent = 4;
            summary.account.glass_to_answer.record(Duration::from_millis(120));
            summary.of_source(SourceFacts { camera, decode_errors: 2 })
        };
        let last_loss = Some("ffmpeg says: Connection refused".to_owned());
        let camera = lost(Some(CameraAccount { reconnections: 1, last_loss, ..CameraAccount::default() }));
        let text = camera.text();
        for said in [
            "3 frames sent: 1 answered",
            "2 frames lost: their connection ended before their answer",
            "4 more frames read and not sent",
            "came back 1 times; the last loss: ffmpeg says: Connection refused; the decoder reported 2 errors",
            "every frame is accounted for",
            "glass to answer p50 120.0 ms, p95 120.0 ms, p99 120.0 ms",
        ] {
            assert!(text.contains(said), "{said}: {text}");
        }
        let json = camera.json();
        assert_eq!((&json["read"], &json["lost"], &json["unsent"]), (&7.into(), &2.into(), &4.into()));
        assert_eq!((&json["camera"]["reconnections"], &json["decode_errors"]), (&1.into(), &2.into()));
        assert_eq!(json["glass_to_answer_ms"]["count"], 1);
        assert_eq!(camera.verdict(), Ok(()));
        let recording = lost(None);
        assert!(recording.json()["glass_to_answer_ms"].is_null() && recording.json()["camera"].is_null());
        assert_eq!(recording.verdict().expect_err("two are lost").exit(), Exit::Partly);
    }

    #[test]
    fn the_table_has_a_row_for_each_source() {
        let one = summary(2, |tally| tally.dropped(1, 2, 2, "replaced"));
        let other = summary(1, |tally| assert!(tally.answered(1).is_some()));
        let text = table(&[("gate", &one), ("a longer name", &other)]);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1][..4], ["source", "read", "not", "sent"]);
        assert_eq!(lines[2], ["gate", "2", "0", "2", "0", "2", "0", "0", "0.0", "-", "-", "-"]);
        assert_eq!(lines[3][3..], ["1", "0", "1", "1", "0", "0", "0", "0.5", "-", "-", "-"]);
        assert!(text.ends_with("gate: dropped (replaced 2)\nevery frame is accounted for\n"), "{text}");
        assert!(text.lines().take(4).all(|line| line.chars().count() == 13 + 11 * 9), "{text}");
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
