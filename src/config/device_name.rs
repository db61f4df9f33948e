//! The devices that run models.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Which devices run models.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceName {
    /// The processor.
    #[default]
    Cpu,
    /// The CUDA devices with these indices; none named: all that the process may use.
    Cuda(Vec<u32>),
    /// As `Cuda(vec![])` if CUDA can be used, else the processor.
    Auto,
}

impl FromStr for DeviceName {
    type Err = String;

    /// Parses `cpu`, `auto`, `cuda`, `cuda:0`, `cuda:0,2`.
    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || format!("`{text}` is no device: give cpu, cuda, cuda:0, cuda:0,1 or auto");
        match text {
            "cpu" => Ok(DeviceName::Cpu),
            "auto" => Ok(DeviceName::Auto),
            "cuda" => Ok(DeviceName::Cuda(Vec::new())),
            _ => {
                let indices = text.strip_prefix("cuda:").ok_or_else(refuse)?;
                let indices: Vec<u32> =
                    indices.split(',').map(|index| index.parse().map_err(|_| refuse())).collect::<Result<_, _>>()?;
                let is_twice = (1..indices.len()).any(|at| indices[..at].contains(&indices[at]));
                if is_twice { Err(format!("`{text}` names a device twice")) } else { Ok(DeviceName::Cuda(indices)) }
            }
        }
    }
}

impl TryFrom<String> for DeviceName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<DeviceName> for String {
    fn from(name: DeviceName) -> String {
        name.to_string()
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceName::Cpu => f.write_str("cpu"),
            DeviceName::Auto => f.write_str("auto"),
            DeviceName::Cuda(indices) if indices.is_empty() => f.write_str("cuda"),
            DeviceName::Cuda(indices) => {
                let indices: Vec<String> = indices.iter().map(u32::to_string).collect();
                write!(f, "cuda:{}", indices.join(","))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written_back() {
        for text in ["cpu", "auto", "cuda", "cuda:0", "cuda:2,0"] {
            assert_eq!(text.parse::<DeviceName>().expect(text).to_string(), text);
        }
        assert_eq!("cuda:2,0".parse(), Ok(DeviceName::Cuda(vec![2, 0])));
    }

    #[test]
    fn other_names_are_refused_with_those_that_there_are() {
        for text in ["", "gpu", "cuda:", "cuda:a", "cuda:-1", "cuda:0,", "CUDA"] {
            assert!(text.parse::<DeviceName>().expect_err(text).contains("cuda:0,1 or auto"), "{text}");
        }
        assert!("cuda:1,1".parse::<DeviceName>().expect_err("twice").contains("twice"));
    }
}
