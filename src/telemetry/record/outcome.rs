//! How a frame ended, and how its prediction compares.

/// How a frame ended: each accepted frame ends in exactly one of these. A `code` is a google.rpc.Code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FrameOutcome {
    Answered,
    /// Ended without an answer and without a fault of its own. `reason` is the protocol's, in lower case: `replaced`,
    /// `expired`, `slow_reader`, …
    Dropped {
        reason: &'static str,
        code: i32,
    },
    Failed {
        code: i32,
        message: String,
    },
    /// The client cancelled it, or its stream broke.
    Cancelled,
}

impl FrameOutcome {
    /// The word in spans, metrics and logs.
    pub fn name(&self) -> &'static str {
        match self {
            FrameOutcome::Answered => "answered",
            FrameOutcome::Dropped { .. } => "dropped",
            FrameOutcome::Failed { .. } => "failed",
            FrameOutcome::Cancelled => "cancelled",
        }
    }

    /// The name of the canonical code.
    pub fn status(&self) -> &'static str {
        match self {
            FrameOutcome::Answered => "OK",
            FrameOutcome::Dropped { code, .. } | FrameOutcome::Failed { code, .. } => status_name(*code),
            FrameOutcome::Cancelled => "CANCELLED",
        }
    }
}

/// Whether the model predicted what the client expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agreement {
    Agrees,
    Disagrees,
}

impl Agreement {
    /// The word in spans, metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Agreement::Agrees => "agrees",
            Agreement::Disagrees => "disagrees",
        }
    }
}

/// The name of a google.rpc.Code, as the specification spells it; `UNKNOWN` for any other number.
pub fn status_name(code: i32) -> &'static str {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    usize::try_from(code).ok().and_then(|index| NAMES.get(index)).copied().unwrap_or("UNKNOWN")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_names_are_those_of_the_codes() {
        for code in 0..=16 {
            let debug = format!("{:?}", tonic::Code::from(code));
            let spelled: String = status_name(code).split('_').map(capitalised).collect();
            assert_eq!(spelled, debug);
        }
        assert_eq!((status_name(17), status_name(-1)), ("UNKNOWN", "UNKNOWN"));
    }

    fn capitalised(word: &str) -> String {
        if word == "OK" {
            return "Ok".to_owned();
        }
        let (first, rest) = word.split_at(1);
        format!("{first}{}", rest.to_lowercase())
    }
}
