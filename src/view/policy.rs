//! A stream's policy for people.

use std::fmt;
use std::time::Duration;

/// What happens when frames come faster than they are explained.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// `latest`, `block` or `reject`.
    pub overflow: &'static str,
    /// Frames that wait, or the stream's credit.
    pub depth: u32,
    pub time_to_live: Option<Duration>,
    pub max_rate_hz: Option<f64>,
    pub priority: u32,
    pub unordered: bool,
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Policy { overflow, depth, time_to_live, max_rate_hz, priority, unordered } = self;
        let frames = if *depth == 1 { "frame" } else { "frames" };
        match *overflow {
            "latest" => write!(f, "latest, {depth} {frames} may wait")?,
            other => write!(f, "{other}, credit of {depth} {frames}")?,
        }
        if let Some(time) = time_to_live {
            write!(f, "; time to live {} ms", time.as_millis())?;
        }
        if let Some(rate) = max_rate_hz {
            write!(f, "; at most {rate} frames/s")?;
        }
        if *priority > 0 {
            write!(f, "; priority {priority}")?;
        }
        if *unordered {
            f.write_str("; unordered")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_told_in_words() {
        let plain = Policy {
            overflow: "latest",
            depth: 1,
            time_to_live: None,
            max_rate_hz: None,
            priority: 0,
            unordered: false,
        };
        assert_eq!(plain.to_string(), "latest, 1 frame may wait");
        let full = Policy {
            overflow: "block",
            depth: 16,
            time_to_live: Some(Duration::from_millis(500)),
            max_rate_hz: Some(7.5),
            priority: 3,
            unordered: true,
        };
        let told = "block, credit of 16 frames; time to live 500 ms; at most 7.5 frames/s; priority 3; unordered";
        assert_eq!(full.to_string(), told);
    }
}
