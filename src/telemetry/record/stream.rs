//! The record of a stream that has ended.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::source::Source;
use crate::telemetry::sampling::FrameTrace;

/// Events that a stream's record holds; the ones after that are counted.
const MAX_EVENTS: usize = 64;

/// A stream that has ended.
#[derive(Debug, Clone)]
pub struct StreamRecord {
    pub trace: FrameTrace,
    pub source: Arc<Source>,
    pub opened_at: SystemTime,
    pub lasted: Duration,
    /// The client's address; `None` behind a Unix socket.
    pub peer: Option<IpAddr>,
    /// The policy it opened with: `latest`, `block`, `reject`.
    pub policy: &'static str,
    /// The code and the message of the status that it ended with; the code is a google.rpc.Code.
    pub status: (i32, String),
    pub events: StreamEvents,
}

/// What happened to a stream as a whole, in order.
#[derive(Debug, Clone, Default)]
pub struct StreamEvents {
    first: Vec<StreamEvent>,
    pub left_out: u32,
}

/// Something that happened to a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamEvent {
    pub after: Duration,
    /// `update`, `draining`, `given_up`.
    pub name: &'static str,
    pub detail: String,
}

impl StreamEvents {
    pub fn push(&mut self, event: StreamEvent) {
        if self.first.len() < MAX_EVENTS {
            self.first.push(event);
        } else {
            self.left_out = self.left_out.saturating_add(1);
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &StreamEvent> {
        self.first.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_is_updated_for_ever_keeps_the_first_events_and_counts_the_rest() {
        let mut events = StreamEvents::default();
        for number in 0..100 {
            events.push(StreamEvent { after: Duration::from_secs(number), name: "update", detail: String::new() });
        }
        assert_eq!(events.iter().count(), MAX_EVENTS);
        assert_eq!(events.left_out, 100 - MAX_EVENTS as u32);
    }
}
