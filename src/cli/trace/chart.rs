//! Draws percentiles of each stage over many frames, as numbers and as graded bars.

use super::bars::{Fill, Scale, Style, decimals};
use super::breakdown::{Breakdown, Part, Percentile};
use crate::client::latency::Latencies;

/// Columns of the name and the share.
const NAME_AND_SHARE: usize = 10 + 1 + 7;
/// Columns of each number.
const NUMBER: usize = 9;
/// The scale excludes the longest time if it is more than this many times the highest percentile.
const OUTLIER: f64 = 2.0;
/// The end of such a scale, as a multiple of the highest percentile: longer times remain visible beyond it.
const ROOM_BEYOND: f64 = 1.1;

/// Draws the stages of the frames. Percentiles that need more frames are left out; a last line says which.
pub fn draw(breakdown: &Breakdown, style: Style) -> String {
    let Style { width, charset, ink } = style;
    let percentiles: Vec<Percentile> = breakdown.available().collect();
    let before_bars = NAME_AND_SHARE + NUMBER * (percentiles.len() + 1) + 2;
    let longest_ms = breakdown.parts().map(|(_, times)| times.max_ms()).fold(0.0, f64::max);
    let end_ms = scale_end_ms(breakdown, longest_ms, &percentiles);
    let scale = Scale::new(end_ms, width.saturating_sub(before_bars), charset);
    let row = Row { breakdown, percentiles: &percentiles, decimals: decimals(breakdown.round_trip.max_ms()) };
    let largest = breakdown.largest().map(|(part, _)| part);

    let frames = if breakdown.frames() == 1 { "frame" } else { "frames" };
    let mut lines = vec![ink.bold(&format!("{} {frames}, in ms", breakdown.frames()))];
    lines.push(format!("{}  {}", row.head(), scale.labels()));
    lines.push(ink.faint(&format!("{:before_bars$}{}", "", scale.rule())));
    for (part, times) in breakdown.parts() {
        if part == Part::Outside {
            lines.push(row.line("server", &breakdown.server, ""));
        }
        let line = row.line(&part.name(), times, &scale.graded_bar(&row.grades(times)));
        lines.push(if Some(part) == largest { ink.bold(&line) } else { line });
    }
    lines.push(row.line("round trip", &breakdown.round_trip, ""));
    let mut legend: Vec<String> =
        row.columns().map(|(name, fill)| format!("{} to {name}", charset.fill(fill))).collect();
    if longest_ms > end_ms {
        legend.push(format!("{} longer than the scale", charset.beyond()));
    }
    lines.push(ink.faint(&legend.join("  ")));
    lines.extend(breakdown.too_few());
    lines.iter().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// The longest time, unless it is an outlier that would shrink all other bars.
fn scale_end_ms(breakdown: &Breakdown, longest_ms: f64, percentiles: &[Percentile]) -> f64 {
    let Some(highest) = percentiles.last().filter(|percentile| percentile.share > 0.5) else { return longest_ms };
    let highest_ms = breakdown.parts().map(|(_, times)| times.percentile_ms(highest.share)).fold(0.0, f64::max);
    if longest_ms > OUTLIER * highest_ms { (highest_ms * ROOM_BEYOND).min(longest_ms) } else { longest_ms }
}

/// The common settings of the rows.
struct Row<'a> {
    breakdown: &'a Breakdown,
    percentiles: &'a [Percentile],
    decimals: usize,
}

impl Row<'_> {
    /// The heading of each number, and the fill of the bar up to it.
    fn columns(&self) -> impl Iterator<Item = (&'static str, Fill)> {
        let names = self.percentiles.iter().map(|percentile| percentile.name);
        names.zip([Fill::Full, Fill::Dark, Fill::Medium]).chain([("max", Fill::Light)])
    }

    fn head(&self) -> String {
        let numbers: String = self.columns().map(|(name, _)| format!("{name:>NUMBER$}")).collect();
        format!("{:<10} {:>7}{numbers}", "stage", "share")
    }

    fn line(&self, name: &str, times: &Latencies, bar: &str) -> String {
        let share = self.breakdown.share(times) * 100.0;
        let numbers: String = self.times_ms(times).map(|ms| format!("{ms:>NUMBER$.*}", self.decimals)).collect();
        format!("{name:<10} {share:>5.1} %{numbers}  {bar}")
    }

    fn grades(&self, times: &Latencies) -> Vec<(f64, Fill)> {
        self.times_ms(times).zip(self.columns()).map(|(ms, (_, fill))| (ms, fill)).collect()
    }

    fn times_ms(&self, times: &Latencies) -> impl Iterator<Item = f64> {
        self.percentiles.iter().map(|percentile| times.percentile_ms(percentile.share)).chain([times.max_ms()])
    }
}

#[cfg(test)]
mod tests {
    use super::super::bars::Charset;
    use super::super::record::{FrameRecord, frame};
    use super::*;
    use crate::cli::terminal::Ink;
    use crate::proto::v1::Stage;

    fn style(charset: Charset) -> Style {
        Style { width: 86, charset, ink: Ink::plain() }
    }

    /// `queue` takes 1, 2, 3, … tenths of a millisecond, `forward` 12 ms.
    fn frames(count: u64) -> Vec<FrameRecord> {
        let frame = |n| frame(n, 14_000 + 100 * n, &[(Stage::Queue, 100 * n), (Stage::Forward, 12_000)]);
        (1..=count).map(frame).collect()
    }

    #[test]
    fn a_bar_has_a_lighter_fill_for_each_higher_percentile() {
        let expected = "\
100 frames, in ms
stage        share      p50      p90      p99      max  0            5           10
                                                        ┼────────────┼───────────┼────
queue       26.5 %     5.00     9.00     9.90    10.00  █████████████▓▓▓▓▓▓▓▓▓▓▒▒
forward     63.0 %    12.00    12.00    12.00    12.00  ██████████████████████████████
server      89.5 %    17.01    21.00    21.91    22.00
outside     10.5 %     2.00     2.00     2.00     2.00  █████
round trip 100.0 %    19.01    23.00    23.90    24.00
█ to p50  ▓ to p90  ▒ to p99  ░ to max
";
        let drawn = draw(&Breakdown::of(&frames(100)), style(Charset::Unicode));
        assert_eq!(drawn, expected, "\n{drawn}");
    }

    #[test]
    fn percentiles_that_need_more_frames_are_listed() {
        let expected = "\
3 frames, in ms
stage        share      p50      max  0       2       4       6       8       10
                                      +-------+-------+-------+-------+-------+-------
queue        1.4 %     0.20     0.30  #
forward     84.5 %    12.00    12.00  ################################################
server      85.9 %    12.21    12.30
outside     14.1 %     2.00     2.00  ########
round trip 100.0 %    14.20    14.30
# to p50  . to max
only 3 frames: p90 needs 10, p99 needs 100
";
        let drawn = draw(&Breakdown::of(&frames(3)), style(Charset::Ascii));
        assert_eq!(drawn, expected, "\n{drawn}");
    }

    #[test]
    fn an_outlier_does_not_shrink_the_other_bars() {
        let mut frames = frames(20);
        frames.push(frame(21, 900_000, &[(Stage::Queue, 880_000), (Stage::Forward, 12_000)]));
        let drawn = draw(&Breakdown::of(&frames), style(Charset::Ascii));
        let line = |name: &str| drawn.lines().find(|line| line.starts_with(name)).expect("its line").to_owned();
        assert!(line("queue").ends_with('>') && line("forward").ends_with("####"), "{drawn}");
        assert!(line("forward").matches('#').count() > 25, "{drawn}");
        assert!(drawn.contains("> longer than the scale"), "{drawn}");
    }
}
