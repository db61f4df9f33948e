//! A limit of a device's memory.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The most memory that the process takes from a device.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum MemoryLimit {
    Bytes(u64),
    /// Of the device's memory, 1 to 100.
    Percent(u8),
}

const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

impl MemoryLimit {
    /// The limit in bytes for a device with `total` bytes.
    pub fn of(self, total: u64) -> u64 {
        match self {
            MemoryLimit::Bytes(bytes) => bytes.min(total),
            MemoryLimit::Percent(percent) => (u128::from(total) * u128::from(percent) / 100) as u64,
        }
    }
}

impl FromStr for MemoryLimit {
    type Err = String;

    /// Parses `6GiB`, `512MiB`, `1000000` (bytes) or `25%`.
    fn from_str(text: &str) -> Result<Self, String> {
        let refuse =
            || format!("`{text}` is no limit of memory: give bytes, such as 6GiB or 512MiB, or a share, as 25%");
        if let Some(percent) = text.strip_suffix('%') {
            let percent = percent.parse().ok().filter(|percent| (1..=100).contains(percent));
            return percent.map(MemoryLimit::Percent).ok_or_else(refuse);
        }
        let unit = UNITS.iter().find_map(|(name, bytes)| Some((text.strip_suffix(name)?, *bytes)));
        let (number, unit) = unit.unwrap_or((text, 1));
        let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
        bytes.filter(|&bytes| bytes > 0).map(MemoryLimit::Bytes).ok_or_else(refuse)
    }
}

impl TryFrom<String> for MemoryLimit {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<MemoryLimit> for String {
    fn from(limit: MemoryLimit) -> String {
        limit.to_string()
    }
}

impl fmt::Display for MemoryLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            MemoryLimit::Percent(percent) => write!(f, "{percent}%"),
            MemoryLimit::Bytes(bytes) => match UNITS.iter().find(|(_, unit)| bytes % unit == 0) {
                Some((name, unit)) => write!(f, "{}{name}", bytes / unit),
                None => write!(f, "{bytes}"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_and_written_back() {
        for text in ["6GiB", "512MiB", "3KiB", "1000", "25%", "100%"] {
            assert_eq!(text.parse::<MemoryLimit>().expect(text).to_string(), text);
        }
        assert_eq!("25%".parse::<MemoryLimit>().expect("a share").of(1000), 250);
        assert_eq!("2KiB".parse::<MemoryLimit>().expect("bytes").of(1000), 1000, "no more than there is");
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "0", "0%", "101%", "1.5GiB", "6GB", "-1", "99999999999GiB"] {
            assert!(text.parse::<MemoryLimit>().expect_err(text).contains("6GiB"), "{text}");
        }
    }
}
