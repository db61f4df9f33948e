//! Draws one frame as a waterfall: a line for each stage, with a bar from its start to its end on a common scale.

use std::time::Duration;

use serde_json::{Value, json};

use super::bars::{Scale, Style, decimals};
use super::record::{FrameRecord, printable};
use crate::client::names;
use crate::proto::v1;

/// Columns before the bars: name, milliseconds, share.
const BEFORE_BARS: usize = 10 + 1 + 9 + 1 + 7 + 2;
/// Most characters of a tag to print, so that the heading fits on one line.
const MAX_TAG: usize = 40;

/// Draws a frame. `title` is the reason for drawing it, such as "slowest".
pub fn draw(title: &str, frame: &FrameRecord, model: Option<&v1::ModelIdentity>, style: Style) -> String {
    let Style { width, charset, ink } = style;
    let server_ends = frame.stages.iter().map(end).max().unwrap_or_default();
    // A faulty server's stages may end after the sum of their durations: the scale includes every stage.
    let end_ms = ms(frame.whole().max(server_ends));
    let scale = Scale::new(end_ms, width.saturating_sub(BEFORE_BARS), charset);
    let table = Table { whole: frame.whole(), decimals: decimals(end_ms) };
    let longest = frame.stages.iter().map(|timing| timing.duration_ns).max().unwrap_or_default();

    let mut lines = vec![ink.bold(&heading(title, frame)), ink.faint(&facts(frame, model))];
    lines.push(format!("{:<10} {:>9} {:>7}  {}", "stage", "ms", "share", scale.labels()));
    lines.push(ink.faint(&format!("{:BEFORE_BARS$}{}", "", scale.rule())));
    for timing in &frame.stages {
        let (start, duration) = (Duration::from_nanos(timing.start_ns), Duration::from_nanos(timing.duration_ns));
        let bar = scale.bar(ms(start), ms(end(timing)));
        let line = table.line(&names::stage(timing.stage), duration, &bar);
        lines.push(if timing.duration_ns == longest { ink.bold(&line) } else { line });
    }
    lines.push(table.line("server", frame.server(), ""));
    lines.push(table.line("outside", frame.outside(), &scale.light_bar(ms(server_ends), ms(frame.round_trip))));
    lines.push(table.line("round trip", frame.round_trip, ""));
    if frame.is_inconsistent() {
        lines.push("the stages add up to more than the round trip: the server's timings are wrong".to_owned());
    }
    lines.iter().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// A frame as JSON, with times in milliseconds; the stages' durations add up to `server_ms`.
pub fn json(title: &str, frame: &FrameRecord) -> Value {
    let whole = ms(frame.whole());
    let stage = |timing: &v1::StageTiming| {
        let duration_ms = timing.duration_ns as f64 / 1e6;
        json!({
            "stage": names::stage(timing.stage),
            "start_ms": timing.start_ns as f64 / 1e6,
            "duration_ms": duration_ms,
            "share": if whole > 0.0 { duration_ms / whole } else { 0.0 },
        })
    };
    json!({
        "why": title,
        "sequence": frame.sequence,
        "tag": frame.tag,
        "trace_id": frame.trace_id,
        "batch_size": frame.batch_size,
        "stages": frame.stages.iter().map(stage).collect::<Vec<_>>(),
        "server_ms": ms(frame.server()),
        "outside_ms": ms(frame.outside()),
        "round_trip_ms": ms(frame.round_trip),
    })
}

/// Formats the numbers of the lines.
struct Table {
    whole: Duration,
    decimals: usize,
}

impl Table {
    fn line(&self, name: &str, duration: Duration, bar: &str) -> String {
        let whole = self.whole.as_secs_f64();
        let share = if whole > 0.0 { duration.as_secs_f64() / whole * 100.0 } else { 0.0 };
        format!("{name:<10} {:>9.*} {share:>5.1} %  {bar}", self.decimals, ms(duration))
    }
}

fn heading(title: &str, frame: &FrameRecord) -> String {
    let tag: String = frame.tag.chars().take(MAX_TAG).collect();
    let tag = if tag.is_empty() { tag } else { format!(", {tag}") };
    format!("{title}: frame {}{tag}", frame.sequence)
}

fn facts(frame: &FrameRecord, model: Option<&v1::ModelIdentity>) -> String {
    let mut facts = Vec::new();
    if let Some(model) = model {
        facts.push(format!("{}@{}", printable(&model.name), model.version));
    }
    facts.push(format!("batch of {}", frame.batch_size));
    if !frame.trace_id.is_empty() {
        facts.push(format!("trace {}", frame.trace_id));
    }
    facts.join(", ")
}

fn end(timing: &v1::StageTiming) -> Duration {
    Duration::from_nanos(timing.start_ns).saturating_add(Duration::from_nanos(timing.duration_ns))
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::super::bars::Charset;
    use super::super::record::frame;
    use super::*;
    use crate::cli::terminal::Ink;
    use crate::proto::v1::Stage;

    fn style(charset: Charset) -> Style {
        Style { width: 70, charset, ink: Ink::plain() }
    }

    fn model() -> v1::ModelIdentity {
        v1::ModelIdentity { name: "lite0".to_owned(), version: 3, ..Default::default() }
    }

    fn sample() -> FrameRecord {
        let stages = [(Stage::Receive, 10), (Stage::Queue, 3_990), (Stage::Decode, 2_000), (Stage::Forward, 12_000)];
        frame(7, 20_000, &stages)
    }

    #[test]
    fn the_bar_of_a_stage_reaches_from_its_start_to_its_end() {
        let expected = "\
slowest: frame 7, cup.png
lite0@3, batch of 1, trace 4bf92f3577b34da6a3ce929d0e0e4736
stage             ms   share  0         5         10        15
                              ┼─────────┼─────────┼─────────┼─────────
receive         0.01   0.1 %  ▏
queue           3.99  19.9 %  ████████
decode          2.00  10.0 %          ████
forward        12.00  60.0 %              ████████████████████████
server         18.00  90.0 %
outside         2.00  10.0 %                                      ░░░░
round trip     20.00 100.0 %
";
        // Forty cells: half a millisecond each.
        let drawn = draw("slowest", &sample(), Some(&model()), style(Charset::Unicode));
        assert_eq!(drawn, expected, "\n{drawn}");
    }

    #[test]
    fn ascii_shows_the_same_as_unicode() {
        let expected = "\
median: frame 7, cup.png
batch of 4
stage             ms   share  0         5         10        15
                              +---------+---------+---------+---------
receive         0.01   0.1 %  |
queue           3.99  19.9 %  ########
decode          2.00  10.0 %          ####
forward        12.00  60.0 %              ########################
server         18.00  90.0 %
outside         2.00  10.0 %                                      ....
round trip     20.00 100.0 %
";
        let frame = FrameRecord { batch_size: 4, trace_id: String::new(), ..sample() };
        let drawn = draw("median", &frame, None, style(Charset::Ascii));
        assert_eq!(drawn, expected, "\n{drawn}");
    }

    #[test]
    fn stages_longer_than_the_round_trip_are_drawn_with_a_remark() {
        let frame = FrameRecord { round_trip: Duration::from_millis(9), ..sample() };
        let drawn = draw("slowest", &frame, None, style(Charset::Ascii));
        assert!(
            drawn.contains("\nserver        18.000 100.0 %\n") || drawn.contains("\nserver         18.00 100.0 %\n"),
            "{drawn}"
        );
        assert!(drawn.contains("\noutside         0.00   0.0 %\n"), "{drawn}");
        assert!(
            drawn.ends_with("the stages add up to more than the round trip: the server's timings are wrong\n"),
            "{drawn}"
        );
    }

    #[test]
    fn a_frame_with_absent_or_absurd_timings_is_drawn() {
        let none = draw("slowest", &frame(1, 0, &[]), None, style(Charset::Unicode));
        assert!(none.contains("round trip     0.000   0.0 %"), "{none}");
        let mut absurd = sample();
        absurd.stages[0] = v1::StageTiming { stage: 99, start_ns: u64::MAX, duration_ns: u64::MAX };
        let drawn = draw("slowest", &absurd, None, style(Charset::Unicode));
        assert!(drawn.contains("stage_99 "), "{drawn}");
    }

    #[test]
    fn the_stages_of_the_json_add_up_to_the_servers_time() {
        let json = json("slowest", &sample());
        let stages = json["stages"].as_array().expect("a list");
        let sum: f64 = stages.iter().filter_map(|stage| stage["duration_ms"].as_f64()).sum();
        assert!((sum - json["server_ms"].as_f64().expect("a number")).abs() < 1e-9);
        assert_eq!((&json["round_trip_ms"], &json["outside_ms"]), (&20.0.into(), &2.0.into()));
        assert_eq!((&stages[2]["stage"], &stages[2]["start_ms"]), (&"decode".into(), &4.0.into()));
    }
}
