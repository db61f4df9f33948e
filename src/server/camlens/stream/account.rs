//! A stream's record for telemetry, from its opening to its end.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use tonic::{Code, Status};

use crate::schedule::Clock;
use crate::telemetry::{FrameTrace, Source, StreamEvent, StreamEvents, StreamRecord, Telemetry};

/// A stream that is open. Dropping it closes the account; a stream of which nothing else was said broke.
pub(in crate::server) struct StreamAccount {
    telemetry: Telemetry,
    clock: Arc<dyn Clock>,
    trace: FrameTrace,
    pub(in crate::server) source: Arc<Source>,
    opened: Instant,
    opened_at: SystemTime,
    peer: Option<IpAddr>,
    policy: &'static str,
    status: (i32, String),
    gone: bool,
    events: StreamEvents,
}

/// What an account begins with.
pub(in crate::server) struct Opening<'a> {
    pub(in crate::server) stream_id: &'a str,
    pub(in crate::server) name: &'a str,
    pub(in crate::server) model: (&'a str, i64),
    /// The trace that the call belongs to: its two headers.
    pub(in crate::server) call: (&'a str, &'a str),
    pub(in crate::server) peer: Option<IpAddr>,
    pub(in crate::server) policy: &'static str,
}

impl StreamAccount {
    pub(in crate::server) fn open(telemetry: &Telemetry, clock: &Arc<dyn Clock>, opening: Opening<'_>) -> Self {
        let Opening { stream_id, name, model, call, peer, policy } = opening;
        let trace = telemetry.place(call.0, call.1);
        StreamAccount {
            telemetry: telemetry.clone(),
            clock: Arc::clone(clock),
            source: telemetry.stream_source(stream_id, name, model, &trace),
            trace,
            opened: clock.now(),
            opened_at: SystemTime::now(),
            peer,
            policy,
            status: (Code::Internal as i32, "the stream broke".to_owned()),
            gone: false,
            events: StreamEvents::default(),
        }
    }

    /// Something happened to the stream as a whole.
    pub(in crate::server) fn event(&mut self, name: &'static str, detail: impl Into<String>) {
        let after = self.clock.now().saturating_duration_since(self.opened);
        self.events.push(StreamEvent { after, name, detail: detail.into() });
    }

    /// The stream ends like this.
    pub(in crate::server) fn ends(&mut self, status: &Result<(), Status>) {
        self.status = match status {
            Ok(()) => (Code::Ok as i32, String::new()),
            Err(status) => (status.code() as i32, status.message().to_owned()),
        };
    }

    /// The client has gone, and with it whoever might have read a status.
    pub(in crate::server) fn gone(&mut self) {
        self.gone = true;
        self.status = (Code::Cancelled as i32, "the client has gone".to_owned());
    }

    /// Whether nobody is there any more who could be told anything.
    pub(in crate::server) fn has_gone(&self) -> bool {
        self.gone
    }
}

impl Drop for StreamAccount {
    fn drop(&mut self) {
        self.telemetry.stream(StreamRecord {
            trace: self.trace.clone(),
            source: Arc::clone(&self.source),
            opened_at: self.opened_at,
            lasted: self.clock.now().saturating_duration_since(self.opened),
            peer: self.peer,
            policy: self.policy,
            status: std::mem::take(&mut self.status),
            events: std::mem::take(&mut self.events),
        });
    }
}
