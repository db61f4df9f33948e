//! Times of the runs, and ratios between them.

/// Rounds of runs: the name and the seconds of each run.
#[derive(Default)]
pub struct Rounds(Vec<Vec<(String, f64)>>);

impl Rounds {
    pub fn push(&mut self, round: Vec<(String, f64)>) {
        self.0.push(round);
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.0.first().into_iter().flatten().map(|(name, _)| name.as_str())
    }

    fn of(&self, name: &str) -> Vec<f64> {
        self.0.iter().flatten().filter(|(known, _)| known == name).map(|(_, seconds)| *seconds).collect()
    }

    /// Round by round, `over` divided by `under`; `None` when one of them did not run.
    pub fn ratio(&self, over: &str, under: &str) -> Option<Quartiles> {
        Quartiles::of(self.of(over).into_iter().zip(self.of(under)).map(|(over, under)| over / under).collect())
    }

    /// Round by round, `of` less the sum of `less`, in milliseconds; `None` when one of them did not run.
    pub fn difference(&self, of: &str, less: &[&str]) -> Option<Quartiles> {
        let mut milliseconds: Vec<f64> = self.of(of).into_iter().map(|seconds| seconds * 1e3).collect();
        for name in less {
            let other = self.of(name);
            milliseconds.truncate(other.len());
            milliseconds.iter_mut().zip(other).for_each(|(left, seconds)| *left -= seconds * 1e3);
        }
        Quartiles::of(milliseconds)
    }

    pub fn print(&self) {
        println!("{:<34}{:>9}{:>9}{:>9}", "milliseconds", "quarter", "median", "three q.");
        for name in self.names() {
            let milliseconds = self.of(name).into_iter().map(|seconds| seconds * 1e3).collect();
            if let Some(quartiles) = Quartiles::of(milliseconds) {
                quartiles.print(name, "");
            }
        }
    }

    /// The seconds of every run by its name, in the order of the rounds.
    pub fn to_json(&self) -> serde_json::Value {
        self.names().map(|name| (name.to_owned(), serde_json::Value::from(self.of(name)))).collect()
    }
}

pub struct Quartiles {
    quarter: f64,
    pub median: f64,
    three_quarters: f64,
}

impl Quartiles {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let at = |part: f64| values.get(((values.len() as f64 - 1.0) * part).round() as usize).copied();
        Some(Quartiles { quarter: at(0.25)?, median: at(0.5)?, three_quarters: at(0.75)? })
    }

    pub fn print(&self, name: &str, note: &str) {
        println!("{name:<34}{:>9.2}{:>9.2}{:>9.2}  {note}", self.quarter, self.median, self.three_quarters);
    }
}
