//! Bars on a scale of milliseconds, out of characters.

use crate::cli::terminal::Ink;

/// What a bar is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Charset {
    /// Block elements: a bar begins and ends at half a cell.
    Unicode,
    Ascii,
}

/// How something is drawn.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    /// Columns in all.
    pub width: usize,
    pub charset: Charset,
    pub ink: Ink,
}

/// How dense a bar is, the densest first.
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

    /// For what is there and shorter than a cell shows.
    fn sliver(self) -> char {
        match self {
            Charset::Unicode => '▏',
            Charset::Ascii => '|',
        }
    }

    /// At the end of a bar that goes on beyond the scale.
    pub fn beyond(self) -> char {
        match self {
            Charset::Unicode => '»',
            Charset::Ascii => '>',
        }
    }
}

/// Cells that stand for the time from 0 to an end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    end_ms: f64,
    cells: usize,
    charset: Charset,
}

/// Cells between two labels, at least.
const LABEL_CELLS: f64 = 8.0;

impl Scale {
    pub fn new(end_ms: f64, cells: usize, charset: Charset) -> Self {
        Scale { end_ms, cells: cells.max(1), charset }
    }

    /// A time's place among `parts` equal parts of the scale.
    fn place(&self, ms: f64, parts: usize) -> usize {
        if self.end_ms > 0.0 { ((ms / self.end_ms).clamp(0.0, 1.0) * parts as f64).round() as usize } else { 0 }
    }

    /// 1, 2 or 5 times a power of ten.
    fn step_ms(&self) -> f64 {
        let least = self.end_ms * LABEL_CELLS / self.cells as f64;
        let power = 10f64.powf(least.log10().floor());
        [1.0, 2.0, 5.0, 10.0].map(|digit| digit * power).into_iter().find(|&step| step >= least).unwrap_or(least)
    }

    /// Where the scale has a tick, and the time there.
    fn ticks(&self) -> Vec<(usize, f64)> {
        if self.end_ms <= 0.0 {
            return vec![(0, 0.0)];
        }
        let step = self.step_ms();
        (0..self.cells)
            .map(|n| n as f64 * step)
            .take_while(|&ms| ms <= self.end_ms)
            .map(|ms| (self.place(ms, self.cells), ms))
            .collect()
    }

    /// The times along the scale, each above its tick.
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

    /// A line with a mark at each tick.
    pub fn rule(&self) -> String {
        let (tick, between) = match self.charset {
            Charset::Unicode => ('┼', '─'),
            Charset::Ascii => ('+', '-'),
        };
        let mut cells = vec![between; self.cells];
        for (cell, _) in self.ticks() {
            if let Some(place) = cells.get_mut(cell) {
                *place = tick;
            }
        }
        cells.into_iter().collect()
    }

    /// A bar from one time to another; something that takes no time has none.
    pub fn bar(&self, start_ms: f64, end_ms: f64) -> String {
        if end_ms <= start_ms {
            return String::new();
        }
        let parts = match self.charset {
            Charset::Unicode => 2,
            Charset::Ascii => 1,
        };
        let (from, to) = (self.place(start_ms, parts * self.cells), self.place(end_ms, parts * self.cells));
        if from == to {
            return self.alone(start_ms);
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

    /// A pale bar of whole cells.
    pub fn pale_bar(&self, start_ms: f64, end_ms: f64) -> String {
        let (from, to) = (self.place(start_ms, self.cells), self.place(end_ms, self.cells));
        if end_ms <= start_ms {
            String::new()
        } else if from == to {
            self.alone(start_ms)
        } else {
            let bar: String = std::iter::repeat_n(self.charset.fill(Fill::Light), to - from).collect();
            format!("{:from$}{bar}", "")
        }
    }

    /// A bar from 0 that gets paler: up to each of the times, in ascending order, with another fill.
    pub fn graded_bar(&self, parts: &[(f64, Fill)]) -> String {
        let mut bar: Vec<char> = Vec::new();
        for &(ms, fill) in parts {
            let end = self.place(ms, self.cells).max(bar.len());
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

    fn alone(&self, start_ms: f64) -> String {
        let cell = ((start_ms / self.end_ms).clamp(0.0, 1.0) * self.cells as f64).floor() as usize;
        format!("{:1$}{2}", "", cell.min(self.cells - 1), self.charset.sliver())
    }
}

/// Decimals with which times of up to `largest_ms` are told: four digits or so.
pub fn decimals(largest_ms: f64) -> usize {
    match largest_ms {
        ms if ms < 10.0 => 3,
        ms if ms < 1000.0 => 2,
        _ => 1,
    }
}

/// Breaks text at spaces into lines of at most `width` characters, where its words are no longer.
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
    fn bars_begin_where_the_one_before_ended() {
        let scale = scale(10.0, Charset::Unicode);
        assert_eq!(scale.bar(0.0, 2.75), "█████▌");
        assert_eq!(scale.bar(2.75, 5.0), "     ▐████");
        assert_eq!(scale.bar(5.0, 10.0), "          ██████████");
        assert_eq!(scale.bar(2.25, 2.5), "    ▐");
    }

    #[test]
    fn what_is_too_short_for_a_cell_is_still_seen_and_nothing_is_not() {
        let unicode = scale(10.0, Charset::Unicode);
        assert_eq!((unicode.bar(5.0, 5.01), unicode.bar(5.0, 5.0)), ("          ▏".to_owned(), String::new()));
        assert_eq!(unicode.bar(9.99, 10.0), "                   ▏");
        assert_eq!(scale(10.0, Charset::Ascii).bar(5.0, 5.01), "          |");
    }

    #[test]
    fn ascii_bars_have_whole_cells() {
        let scale = scale(10.0, Charset::Ascii);
        assert_eq!((scale.bar(0.0, 2.75), scale.bar(2.75, 5.0)), ("######".to_owned(), "      ####".to_owned()));
        assert_eq!(scale.pale_bar(5.0, 6.5), "          ...");
        assert_eq!(scale.pale_bar(5.0, 5.001), "          |");
    }

    #[test]
    fn a_graded_bar_shows_each_percentile_and_what_lies_beyond() {
        let parts = |ms: [f64; 3]| [(ms[0], Fill::Full), (ms[1], Fill::Dark), (ms[2], Fill::Light)];
        let scale = scale(10.0, Charset::Unicode);
        assert_eq!(scale.graded_bar(&parts([2.0, 3.0, 5.0])), "████▓▓░░░░");
        assert_eq!(scale.graded_bar(&parts([9.0, 10.0, 25.0])), "██████████████████▓»");
        assert_eq!(scale.graded_bar(&parts([0.0, 0.0, 0.01])), "▏");
        assert_eq!(scale.graded_bar(&parts([0.0; 3])), "");
    }

    #[test]
    fn labels_are_round_numbers_above_their_ticks() {
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
