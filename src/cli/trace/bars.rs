//! Bars of characters on a scale in milliseconds.

use crate::cli::terminal::Ink;

/// The characters of a bar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Charset {
    /// Block elements, with a resolution of half a cell.
    Unicode,
    Ascii,
}

/// Width, characters and colours of a drawing.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    /// Total width in columns.
    pub width: usize,
    pub charset: Charset,
    pub ink: Ink,
}

/// Density of a bar, densest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    Full,
    Dark,
    Medium,
    Light,
}

impl Charset {
    pub fn fill(self, fill: Fill) -> char {
        match (self, fill) {
            (Charset::Unicode, Fill::Full) => '█',
            (Charset::Unicode, Fill::Dark) => '▓',
            (Charset::Unicode, Fill::Medium) => '▒',
            (Charset::Unicode, Fill::Light) => '░',
            (Charset::Ascii, Fill::Full) => '#',
            (Charset::Ascii, Fill::Dark) => '=',
            (Charset::Ascii, Fill::Medium) => '-',
            (Charset::Ascii, Fill::Light) => '.',
        }
    }

    /// Marks a time that is not zero but shorter than the resolution.
    fn sliver(self) -> char {
        match self {
            Charset::Unicode => '▏',
            Charset::Ascii => '|',
        }
    }

    /// Marks the end of a bar that exceeds the scale.
    pub fn beyond(self) -> char {
        match self {
            Charset::Unicode => '»',
            Charset::Ascii => '>',
        }
    }
}

/// A linear scale from 0 to `end_ms` over a number of character cells.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    end_ms: f64,
    cells: usize,
    charset: Charset,
}

/// Least number of cells between two labels.
const LABEL_CELLS: f64 = 8.0;

impl Scale {
    pub fn new(end_ms: f64, cells: usize, charset: Charset) -> Self {
        Scale { end_ms, cells: cells.max(1), charset }
    }

    /// Position of a time in units of 1/`parts` of the scale, rounded.
    fn position(&self, ms: f64, parts: usize) -> usize {
        if self.end_ms > 0.0 { ((ms / self.end_ms).clamp(0.0, 1.0) * parts as f64).round() as usize } else { 0 }
    }

    /// Distance between two labels: the least 1, 2 or 5 times a power of ten that leaves `LABEL_CELLS` cells.
    fn step_ms(&self) -> f64 {
        let least = self.end_ms * LABEL_CELLS / self.cells as f64;
        let power = 10f64.powf(least.log10().floor());
        [1.0, 2.0, 5.0, 10.0].map(|digit| digit * power).into_iter().find(|&step| step >= least).unwrap_or(least)
    }

    /// The cell and the time of each tick.
    fn ticks(&self) -> Vec<(usize, f64)> {
        if self.end_ms <= 0.0 {
            return vec![(0, 0.0)];
        }
        let step = self.step_ms();
        (0..self.cells)
            .map(|n| n as f64 * step)
            .take_while(|&ms| ms <= self.end_ms)
            .map(|ms| (self.position(ms, self.cells), ms))
            .collect()
    }

    /// The line of labels: the time of each tick, starting at the tick's cell.
    pub fn labels(&self) -> String {
        let ticks = self.ticks();
        let decimals = ticks.get(1).map_or(0, |&(_, step)| (-step.log10().floor()).max(0.0) as usize);
        let mut line = String::new();
        for (cell, ms) in ticks {
            let label = if ms > 0.0 { format!("{ms:.decimals$}") } else { "0".to_owned() };
            if cell + label.len() <= self.cells {
                line = format!("{line:<cell$}{label}");
            }
        }
        line
    }

    /// The axis: a line with a mark at each tick.
    pub fn rule(&self) -> String {
        let (tick, between) = match self.charset {
            Charset::Unicode => ('┼', '─'),
            Charset::Ascii => ('+', '-'),
        };
        let mut cells = vec![between; self.cells];
        for (cell, _) in self.ticks() {
            if let Some(symbol) = cells.get_mut(cell) {
                *symbol = tick;
            }
        }
        cells.into_iter().collect()
    }

    /// A bar from `start_ms` to `end_ms`; empty for no time.
    pub fn bar(&self, start_ms: f64, end_ms: f64) -> String {
        if end_ms <= start_ms {
            return String::new();
        }
        let parts = match self.charset {
            Charset::Unicode => 2,
            Charset::Ascii => 1,
        };
        let (from, to) = (self.position(start_ms, parts * self.cells), self.position(end_ms, parts * self.cells));
        if from == to {
            return self.sliver_at(start_ms);
        }
        let covered = |part: usize| (from..to).contains(&part);
        let cell = |cell: usize| match (covered(cell * parts), covered(cell * parts + parts - 1)) {
            (true, true) => self.charset.fill(Fill::Full),
            (true, false) => '▌',
            (false, true) => '▐',
            (false, false) => ' ',
        };
        (0..to.div_ceil(parts)).map(cell).collect()
    }

    /// A bar of whole cells in the lightest fill; empty for no time.
    pub fn light_bar(&self, start_ms: f64, end_ms: f64) -> String {
        let (from, to) = (self.position(start_ms, self.cells), self.position(end_ms, self.cells));
        if end_ms <= start_ms {
            String::new()
        } else if from == to {
            self.sliver_at(start_ms)
        } else {
            let bar: String = std::iter::repeat_n(self.charset.fill(Fill::Light), to - from).collect();
            format!("{:from$}{bar}", "")
        }
    }

    /// A bar from 0 in segments: each reaches to its time, in ascending order, and has its own fill.
    pub fn graded_bar(&self, parts: &[(f64, Fill)]) -> String {
        let mut bar: Vec<char> = Vec::new();
        for &(ms, fill) in parts {
            let end = self.position(ms, self.cells).max(bar.len());
            bar.resize(end, self.charset.fill(fill));
        }
        let longest = parts.last().map_or(0.0, |&(ms, _)| ms);
        match bar.last_mut() {
            Some(last) if longest > self.end_ms => *last = self.charset.beyond(),
            None if longest > 0.0 => bar.push(self.charset.sliver()),
            _ => {}
        }
        bar.into_iter().collect()
    }

    /// A sliver in the cell of `start_ms`.
    fn sliver_at(&self, start_ms: f64) -> String {
        let cell = ((start_ms / self.end_ms).clamp(0.0, 1.0) * self.cells as f64).floor() as usize;
        format!("{:1$}{2}", "", cell.min(self.cells - 1), self.charset.sliver())
    }
}

/// Decimals for times of up to `largest_ms`: about four significant digits.
pub fn decimals(largest_ms: f64) -> usize {
    match largest_ms {
        ms if ms < 10.0 => 3,
        ms if ms < 1000.0 => 2,
        _ => 1,
    }
}

/// Breaks text at spaces into lines of at most `width` characters; a longer word has its own line.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scale(end_ms: f64, charset: Charset) -> Scale {
        Scale::new(end_ms, 20, charset)
    }

    #[test]
    fn a_bar_begins_where_the_previous_one_ends() {
        let scale = scale(10.0, Charset::Unicode);
        assert_eq!(scale.bar(0.0, 2.75), "█████▌");
        assert_eq!(scale.bar(2.75, 5.0), "     ▐████");
        assert_eq!(scale.bar(5.0, 10.0), "          ██████████");
        assert_eq!(scale.bar(2.25, 2.5), "    ▐");
    }

    #[test]
    fn a_time_shorter_than_the_resolution_is_a_sliver_and_no_time_is_empty() {
        let unicode = scale(10.0, Charset::Unicode);
        assert_eq!((unicode.bar(5.0, 5.01), unicode.bar(5.0, 5.0)), ("          ▏".to_owned(), String::new()));
        assert_eq!(unicode.bar(9.99, 10.0), "                   ▏");
        assert_eq!(scale(10.0, Charset::Ascii).bar(5.0, 5.01), "          |");
    }

    #[test]
    fn ascii_bars_consist_of_whole_cells() {
        let scale = scale(10.0, Charset::Ascii);
        assert_eq!((scale.bar(0.0, 2.75), scale.bar(2.75, 5.0)), ("######".to_owned(), "      ####".to_owned()));
        assert_eq!(scale.light_bar(5.0, 6.5), "          ...");
        assert_eq!(scale.light_bar(5.0, 5.001), "          |");
    }

    #[test]
    fn a_graded_bar_has_a_segment_for_each_time_and_a_mark_beyond_the_scale() {
        let parts = |ms: [f64; 3]| [(ms[0], Fill::Full), (ms[1], Fill::Dark), (ms[2], Fill::Light)];
        let scale = scale(10.0, Charset::Unicode);
        assert_eq!(scale.graded_bar(&parts([2.0, 3.0, 5.0])), "████▓▓░░░░");
        assert_eq!(scale.graded_bar(&parts([9.0, 10.0, 25.0])), "██████████████████▓»");
        assert_eq!(scale.graded_bar(&parts([0.0, 0.0, 0.01])), "▏");
        assert_eq!(scale.graded_bar(&parts([0.0; 3])), "");
    }

    #[test]
    fn labels_are_round_numbers_at_their_ticks() {
        let cases = [
            (10.0, "0         5", "+---------+---------"),
            (97.0, "0         50", "+---------+---------"),
            (0.9, "0          0.5", "+----------+--------"),
            (0.0, "0", "+-------------------"),
        ];
        for (end_ms, labels, rule) in cases {
            let scale = scale(end_ms, Charset::Ascii);
            assert_eq!((scale.labels().as_str(), scale.rule().as_str()), (labels, rule), "{end_ms}");
        }
        assert_eq!(scale(10.0, Charset::Unicode).rule(), "┼─────────┼─────────");
    }

    #[test]
    fn text_is_broken_between_words() {
        assert_eq!(wrap("one two  three four", 9), ["one two", "three", "four"]);
        assert_eq!(wrap("immeasurable", 4), ["immeasurable"]);
    }
}
