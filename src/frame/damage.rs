//! What is wrong with a picture that is explained all the same.

use std::fmt;

/// What a reader of the explanation should know of the frame.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Flaw {
    /// Parts of a JPEG were lost.
    Damaged(Damage),
    /// The 16-bit samples of a PNG use the lower `used` bits alone, and nothing says that these are all: the picture is
    /// nearly black.
    UnusedBits { used: u32 },
}

/// The parts of a picture that its file lacks. Lost parts are grey.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Damage {
    /// The share of the picture's area that was lost, 0 to 1.
    pub lost: f64,
    /// The share that lost its fine detail only, as in a progressive JPEG whose last scans are missing.
    pub coarse: f64,
    /// Other parts may be wrong: the data does not add up, and where it went wrong is not known.
    pub uncertain: bool,
    /// The file ends early.
    pub cut: bool,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Damage { lost, coarse, uncertain, cut } = *self;
        if cut {
            f.write_str("it ends early, and ")?;
        }
        match (lost > 0.0, coarse > 0.0) {
            // Nothing is left that could be wrong.
            (true, _) if lost >= 1.0 => f.write_str("all of the picture was lost"),
            (true, _) => {
                match lost {
                    0.001.. if uncertain => write!(f, "at least {} of the picture was lost", Percent(lost))?,
                    _ if uncertain => f.write_str("a part of the picture was lost")?,
                    _ => write!(f, "{} of the picture was lost", Percent(lost))?,
                }
                if coarse > 0.0 {
                    write!(f, " and {} lost its detail", Percent(coarse))?;
                }
                if uncertain { f.write_str(", and other parts may be wrong") } else { Ok(()) }
            }
            (false, true) => {
                write!(f, "{} of the picture lost its detail", Percent(coarse))?;
                if uncertain { f.write_str(", and other parts may be wrong") } else { Ok(()) }
            }
            (false, false) => f.write_str("its data does not add up, so that a part of the picture may be wrong"),
        }
    }
}

/// A share in percent, never rounded to 0 or 100 unless it is.
struct Percent(f64);

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 * 100.0 {
            percent if percent < 0.1 => f.write_str("less than 0.1 %"),
            percent if percent >= 100.0 => f.write_str("100 %"),
            percent => write!(f, "{:.1} %", percent.min(99.9)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_says_how_much_was_lost_and_how_sure_that_is() {
        let sound = Damage { lost: 0.0, coarse: 0.0, uncertain: false, cut: false };
        for (damage, sentence) in [
            (Damage { lost: 0.3333, ..sound }, "33.3 % of the picture was lost"),
            (Damage { lost: 1e-9, cut: true, ..sound }, "it ends early, and less than 0.1 % of the picture was lost"),
            (
                Damage { lost: 0.9999, uncertain: true, ..sound },
                "at least 99.9 % of the picture was lost, and other parts may be wrong",
            ),
            (
                Damage { lost: 1e-9, uncertain: true, ..sound },
                "a part of the picture was lost, and other parts may be wrong",
            ),
            (Damage { lost: 1.0, ..sound }, "all of the picture was lost"),
            (
                Damage { lost: 1.0, uncertain: true, cut: true, ..sound },
                "it ends early, and all of the picture was lost",
            ),
            (Damage { coarse: 1.0, ..sound }, "100 % of the picture lost its detail"),
            (
                Damage { uncertain: true, ..sound },
                "its data does not add up, so that a part of the picture may be wrong",
            ),
        ] {
            assert_eq!(damage.to_string(), sentence);
        }
    }
}
