//! The result of a run: as JSON, as a table, and as an exit code.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::load::Meter;
use super::server_process::ProcessorTime;
use super::stream::StreamOutcome;
use crate::cli::failure::{Exit, Failure};
use crate::telemetry::status_name;

/// The fields of `--json`, printed at the end of `camlens bench --help`.
pub const FIELDS: &str = "\
The result of --json is one object. Times end in _ms, rates in _hz (per second):
  load           the settings: streams, loop, rate, policy, payload, maps
  model          name, version, digest and precision of the model that answered
  seconds        the measured time, without the warm-up and the wait for the
                 last answers
  frames         of the whole run:
    sent, answered, dropped (by reason), failed (by status code)
    not_accepted   not read by the server before it went away
    missing        frames without an ending
    unexpected     endings of frames that were not sent or had ended already
    out_of_order   endings that came before the ending of an earlier frame
    altered        frames whose tag came back changed
    unsent         due, but not accepted by the transport before the end
    accounted_for  true if every frame had exactly one ending, in order, with
                   its tag
  offered_hz     frames due in the measured time
  answered_hz    explanations received in the measured time
  sent_bytes_per_second
                 image bytes sent
  latency_ms     of answered frames: count, mean, p50, p90, p99, p99_9, max;
                 in an open loop, from the frame's due time
  send_delay_ms  from a frame's due time to its acceptance by the transport:
                 large if the server holds frames back or the client is slow
  stages_ms      the server's own timings of each stage
  processor      the server's processor time in the measured time; null unless
                 the server is another camlens process on this machine and, over
                 TCP, of the same user:
    time_ms        in user and kernel mode, of all threads
    per_frame_ms   time_ms per explanation received; null without any
    used           number of processors used, on average
  batch_size     mean and max over the answers
  fairness       the fewest and the most answers of a stream in the measured
                 time, and most / fewest
  streams_failed number of streams that ended with an error, by status code
  slow_readers   number of streams that never read, and of frames they sent
  interrupted    true if Ctrl-C ended the run";

/// The results of all streams of a run.
pub struct Outcome {
    pub load: Value,
    pub model: Value,
    pub streams: Vec<StreamOutcome>,
    /// For each slow reader, the number of frames that it sent.
    pub slow_readers: Vec<u64>,
    pub meter: Meter,
    /// Of the server's process in the measured time, if it is known.
    pub processor: Option<ProcessorTime>,
    pub seconds: f64,
    pub interrupted: bool,
    /// The streams are unordered: endings may come in any order.
    pub unordered: bool,
    /// The overflow policy is `reject`: RESOURCE_EXHAUSTED is an expected ending.
    pub may_refuse: bool,
}

/// The measured time: from the end of the warm-up to the end of sending, but at most to `length`. Without a `length`,
/// it lasts until the last answer.
pub fn measured_time(
    streams: &[StreamOutcome],
    meter: &Meter,
    warm_up: Duration,
    length: Option<Duration>,
) -> Duration {
    let sending = streams.iter().map(|stream| stream.sending_ended).max().unwrap_or_default();
    let end = match length {
        Some(length) => sending.min(length),
        None => sending.max(meter.last_answer),
    };
    end.saturating_sub(warm_up)
}

impl Outcome {
    fn sum(&self, part: impl Fn(&StreamOutcome) -> u64) -> u64 {
        self.streams.iter().map(part).sum()
    }

    fn by_name(&self, part: impl Fn(&StreamOutcome) -> &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
        let mut sums = BTreeMap::new();
        for (name, count) in self.streams.iter().flat_map(part) {
            *sums.entry(name.clone()).or_default() += count;
        }
        sums
    }

    fn per_second(&self, count: u64) -> f64 {
        if self.seconds > 0.0 { count as f64 / self.seconds } else { 0.0 }
    }

    /// The fewest and the most answers of a stream.
    fn fairness(&self) -> (u64, u64) {
        let answers = || self.streams.iter().map(|stream| stream.answered);
        (answers().min().unwrap_or(0), answers().max().unwrap_or(0))
    }

    fn processor_json(&self, answered: u64) -> Value {
        let Some(time) = self.processor else { return Value::Null };
        json!({
            "time_ms": 1e3 * time.taken.as_secs_f64(),
            "per_frame_ms": time.per_frame_ms(answered),
            "used": time.processors(),
        })
    }

    /// `processor  11.52 ms per answered frame; the server used 1.94 processors`.
    fn processor_line(&self, answered: u64) -> Option<String> {
        let time = self.processor?;
        let per_frame = time.per_frame_ms(answered).map(|ms| format!("{ms:.2} ms per answered frame; "));
        let used = time.processors();
        Some(format!("processor  {}the server used {used:.2} processors", per_frame.unwrap_or_default()))
    }

    fn missing(&self) -> u64 {
        self.sum(|stream| stream.missing.len() as u64)
    }

    fn out_of_order(&self) -> u64 {
        if self.unordered { 0 } else { self.sum(|stream| stream.tally.out_of_order) }
    }

    /// Whether every frame that the server accepted had exactly one ending, in order, with its tag.
    fn accounted_for(&self) -> bool {
        self.missing() == 0
            && self.sum(|stream| stream.tally.unexpected) == 0
            && self.out_of_order() == 0
            && self.streams.iter().all(|stream| stream.tally.altered.is_empty())
    }

    fn streams_failed(&self) -> BTreeMap<&'static str, u64> {
        let mut failed = BTreeMap::new();
        for status in self.streams.iter().filter_map(|stream| stream.error.as_ref()) {
            *failed.entry(status_name(status.code() as i32)).or_default() += 1;
        }
        failed
    }

    /// The result as JSON; [`FIELDS`] describes it.
    pub fn json(&self) -> Value {
        let Outcome { load, model, meter, slow_readers, .. } = self;
        let answered = self.sum(|stream| stream.answered);
        let (fewest, most) = self.fairness();
        let measured = meter.latency.count();
        let mean_batch = if measured == 0 { 0.0 } else { meter.batch_sizes as f64 / measured as f64 };
        json!({
            "load": load,
            "model": model,
            "seconds": self.seconds,
            "frames": {
                "sent": self.sum(|stream| stream.tally.sent),
                "answered": self.sum(|stream| stream.tally.answered),
                "dropped": self.by_name(|stream| &stream.tally.dropped),
                "failed": self.by_name(|stream| &stream.tally.failed),
                "not_accepted": self.sum(|stream| stream.tally.not_accepted),
                "missing": self.missing(),
                "unexpected": self.sum(|stream| stream.tally.unexpected),
                "out_of_order": self.out_of_order(),
                "altered": self.sum(|stream| stream.tally.altered.len() as u64),
                "unsent": self.sum(|stream| stream.unsent),
                "accounted_for": self.accounted_for(),
            },
            "offered_hz": self.per_second(self.sum(|stream| stream.offered)),
            "answered_hz": self.per_second(answered),
            "sent_bytes_per_second": self.per_second(meter.sent_bytes),
            "latency_ms": meter.latency.json_ms(),
            "send_delay_ms": meter.send_delay.json_ms(),
            "stages_ms": meter.stages.json_ms(),
            "processor": self.processor_json(answered),
            "batch_size": { "mean": mean_batch, "max": meter.max_batch_size },
            "fairness": {
                "streams": self.streams.len(),
                "fewest": fewest,
                "most": most,
                "most_over_fewest": (fewest > 0).then(|| most as f64 / fewest as f64),
            },
            "streams_failed": self.streams_failed(),
            "slow_readers": { "streams": slow_readers.len(), "sent": slow_readers.iter().sum::<u64>() },
            "interrupted": self.interrupted,
        })
    }

    /// The result as a short table.
    pub fn text(&self) -> String {
        let (sent, answered) = (self.sum(|stream| stream.tally.sent), self.sum(|stream| stream.tally.answered));
        let (dropped, failed) =
            (self.by_name(|stream| &stream.tally.dropped), self.by_name(|stream| &stream.tally.failed));
        let unsent = self.sum(|stream| stream.unsent);
        let not_accepted = self.sum(|stream| stream.tally.not_accepted);
        let (fewest, most) = self.fairness();
        let latency = &self.meter.latency;
        let [p50, p90, p99, p99_9] = [0.5, 0.9, 0.99, 0.999].map(|share| latency.percentile_ms(share));
        let mut lines = vec![
            format!(
                "frames     {sent} sent, {answered} answered{}{}",
                kinds("dropped", &dropped),
                kinds("failed", &failed)
            ),
            format!(
                "rate       {:.1}/s offered, {:.1}/s answered over {:.1} s",
                self.per_second(self.sum(|stream| stream.offered)),
                self.per_second(self.sum(|stream| stream.answered)),
                self.seconds
            ),
            format!(
                "latency    p50 {p50:.2} ms, p90 {p90:.2}, p99 {p99:.2}, p99.9 {p99_9:.2}, max {:.2}",
                latency.max_ms()
            ),
        ];
        lines.extend(self.processor_line(self.sum(|stream| stream.answered)));
        if self.streams.len() > 1 {
            lines.push(format!("fairness   {fewest} to {most} answers per stream"));
        }
        if unsent > 0 {
            lines.push(format!(
                "unsent     {unsent} frames were due, but the transport did not accept them before the end"
            ));
        }
        if not_accepted > 0 {
            lines.push(format!("unread     {not_accepted} frames: the server went away before it read them"));
        }
        if !self.slow_readers.is_empty() {
            let (count, sent) = (self.slow_readers.len(), self.slow_readers.iter().sum::<u64>());
            lines.push(format!("slow       {count} streams that never read sent {sent} frames"));
        }
        if self.accounted_for() {
            lines.push("every frame is accounted for".to_owned());
        }
        lines.extend(self.meter.stages.lines());
        lines.iter().map(|line| format!("{line}\n")).collect()
    }

    /// Fails unless each frame had exactly one ending, in order, and none was an unexpected error.
    pub fn verdict(&self) -> Result<(), Failure> {
        let missing = self.missing();
        if missing > 0 {
            let status = self.streams.iter().find(|s| !s.missing.is_empty()).and_then(|s| s.error.as_ref());
            let failure = Failure::failed(format!("{missing} frames have no ending"));
            return Err(match status {
                Some(status) => failure.hint(format!("a stream ended with: {}", status.message())),
                None => failure,
            });
        }
        if !self.accounted_for() {
            return Err(Failure::failed(format!(
                "the server violated the protocol: {} endings of frames that were not open, {} out of order, \
                 {} with another tag",
                self.sum(|stream| stream.tally.unexpected),
                self.out_of_order(),
                self.sum(|stream| stream.tally.altered.len() as u64),
            )));
        }
        if let Some(status) = self.streams.iter().find_map(|stream| stream.error.as_ref()) {
            let count = self.streams.iter().filter(|stream| stream.error.is_some()).count();
            let code = status_name(status.code() as i32);
            let sentence = format!("{count} streams ended with an error; the first: {} ({code})", status.message());
            return Err(Failure::new(Exit::Partly, sentence));
        }
        let not_accepted = self.sum(|stream| stream.tally.not_accepted);
        if not_accepted > 0 {
            let sentence = format!("the server went away before it read {not_accepted} frames");
            return Err(Failure::new(Exit::Unavailable, sentence));
        }
        let mut failed = self.by_name(|stream| &stream.tally.failed);
        if self.may_refuse {
            failed.remove(status_name(tonic::Code::ResourceExhausted as i32));
        }
        if !failed.is_empty() {
            let sent = self.sum(|stream| stream.tally.sent);
            let total: u64 = failed.values().sum();
            let sentence = format!("{total} of {sent} frames failed ({})", by_kind(&failed));
            return Err(Failure::new(Exit::Partly, sentence));
        }
        Ok(())
    }
}

/// `, 7 dropped (expired 2, replaced 5)`; empty without counts.
fn kinds(label: &str, counts: &BTreeMap<String, u64>) -> String {
    if counts.is_empty() {
        return String::new();
    }
    let total: u64 = counts.values().sum();
    format!(", {total} {label} ({})", by_kind(counts))
}

/// `expired 2, replaced 5`.
fn by_kind(counts: &BTreeMap<String, u64>) -> String {
    let kinds: Vec<String> = counts.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    kinds.join(", ")
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::client::tally::{Echo, Tally};

    fn stream(sent: u64, answered: u64, fill: impl FnOnce(&mut Tally)) -> StreamOutcome {
        let mut tally = Tally::default();
        (1..=sent).for_each(|sequence| tally.sent(sequence, Echo::default(), Instant::now()));
        (1..=answered).for_each(|sequence| assert!(tally.answered(sequence).is_some()));
        fill(&mut tally);
        let missing = tally.close();
        StreamOutcome {
            tally,
            missing,
            offered: sent,
            unsent: 0,
            answered,
            sending_ended: Duration::from_secs(3),
            error: None,
        }
    }

    fn outcome(streams: Vec<StreamOutcome>) -> Outcome {
        Outcome {
            load: Value::Null,
            model: Value::Null,
            streams,
            slow_readers: Vec::new(),
            meter: Meter::default(),
            processor: None,
            seconds: 2.0,
            interrupted: false,
            unordered: false,
            may_refuse: false,
        }
    }

    #[test]
    fn the_results_of_the_streams_are_summed() {
        let outcome = outcome(vec![
            stream(10, 4, |tally| tally.dropped(5, 10, 6, "replaced")),
            stream(10, 8, |tally| {
                tally.dropped(9, 9, 1, "expired");
                tally.failed(10, "INTERNAL");
            }),
        ]);
        let json = outcome.json();
        assert_eq!(json["frames"]["dropped"], json!({"expired": 1, "replaced": 6}));
        assert_eq!((&json["offered_hz"], &json["answered_hz"]), (&json!(10.0), &json!(6.0)));
        assert_eq!(json["fairness"], json!({"streams": 2, "fewest": 4, "most": 8, "most_over_fewest": 2.0}));
        assert_eq!(json["frames"]["accounted_for"], true);
        assert!(
            outcome.text().contains("20 sent, 12 answered, 7 dropped (expired 1, replaced 6), 1 failed (INTERNAL 1)")
        );
        let failure = outcome.verdict().expect_err("one frame failed");
        assert_eq!((failure.exit(), failure.to_string().contains("(INTERNAL 1)")), (Exit::Partly, true));
    }

    #[test]
    fn a_frame_without_an_ending_fails_the_run() {
        let outcome = outcome(vec![stream(2, 2, |_| {}), stream(3, 2, |_| {})]);
        assert_eq!(outcome.json()["frames"]["missing"], 1);
        let failure = outcome.verdict().expect_err("frame 3 of the second stream");
        assert_eq!((failure.exit(), failure.to_string().as_str()), (Exit::Failed, "1 frames have no ending"));
        assert!(!outcome.text().contains("accounted for"));
    }

    #[test]
    fn a_refusal_is_no_failure_under_the_policy_reject() {
        let refused = || vec![stream(2, 1, |tally| tally.failed(2, "RESOURCE_EXHAUSTED"))];
        assert!(outcome(refused()).verdict().is_err());
        assert_eq!(Outcome { may_refuse: true, ..outcome(refused()) }.verdict(), Ok(()));
    }

    #[test]
    fn the_order_of_endings_is_not_checked_on_unordered_streams() {
        let swapped = || {
            vec![stream(2, 0, |tally| {
                tally.answered(2);
                tally.answered(1);
            })]
        };
        assert_eq!(outcome(swapped()).verdict().expect_err("out of order").exit(), Exit::Failed);
        assert_eq!(Outcome { unordered: true, ..outcome(swapped()) }.verdict(), Ok(()));
    }

    #[test]
    fn the_fairness_ratio_is_null_when_a_stream_has_no_answer() {
        let json = outcome(vec![stream(1, 1, |_| {}), stream(1, 0, |tally| tally.dropped(1, 1, 1, "replaced"))]).json();
        assert_eq!(json["fairness"]["most_over_fewest"], Value::Null);
    }

    #[test]
    fn processor_time_is_divided_by_the_answers_in_the_measured_time_and_absent_if_it_is_not_known() {
        let time = ProcessorTime { taken: Duration::from_millis(300), span: Duration::from_secs(2) };
        let known = Outcome { processor: Some(time), ..outcome(vec![stream(7, 6, |_| {}), stream(4, 4, |_| {})]) };
        assert_eq!(known.json()["processor"], json!({"time_ms": 300.0, "per_frame_ms": 30.0, "used": 0.15}));
        assert!(known.text().contains("processor  30.00 ms per answered frame; the server used 0.15 processors\n"));
        let idle = Outcome { processor: Some(time), ..outcome(vec![stream(1, 0, |_| {})]) };
        assert_eq!(idle.json()["processor"]["per_frame_ms"], Value::Null);
        assert!(idle.text().contains("processor  the server used 0.15 processors\n"), "{}", idle.text());
        let unknown = outcome(vec![stream(1, 1, |_| {})]);
        assert_eq!(unknown.json()["processor"], Value::Null);
        assert!(!unknown.text().contains("processor"));
    }

    #[test]
    fn the_measured_time_ends_with_sending_or_without_a_length_with_the_last_answer() {
        let streams = vec![stream(1, 1, |_| {})];
        let meter = Meter { last_answer: Duration::from_secs(4), ..Meter::default() };
        let time = |length: Option<u64>| {
            measured_time(&streams, &meter, Duration::from_secs(1), length.map(Duration::from_secs)).as_secs()
        };
        assert_eq!((time(Some(2)), time(Some(10)), time(None)), (1, 2, 3));
    }
}
