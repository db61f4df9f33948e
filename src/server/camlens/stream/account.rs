//! A stream's record for telemetry, from its opening to its end.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use tonic::{Code, Status};

use crate::schedule::Clock;
use crate::server::transport::calls::TraceHeaders;
use crate::telemetry::{FrameTrace, Source, StreamEvent, StreamEvents, StreamRecord, Telemetry};

/// The account of an open stream. Dropping it closes the account; a stream without another status broke.
pub(super) struct StreamAccount {
    telemetry: Telemetry,
    clock: Arc<dyn Clock>,
    trace: FrameTrace,
    pub(super) source: Arc<Source>,
    opened: Instant,
    opened_at: SystemTime,
    peer: Option<IpAddr>,
    policy: &'static str,
    status: (i32, String),
    gone: bool,
    events: StreamEvents,
}

/// What is known of a stream when it opens.
pub(super) struct Opening<'a> {
    pub(super) stream_id: &'a str,
    pub(super) name: &'a str,
    pub(super) model: (&'a str, i64),
    /// The trace that the call belongs to.
    pub(super) call: &'a TraceHeaders,
    pub(super) peer: Option<IpAddr>,
    pub(super) policy: &'static str,
}

impl StreamAccount {
    pub(super) fn open(telemetry: &Telemetry, clock: &Arc<dyn Clock>, opening: Opening<'_>) -> Self {
        let Opening { stream_id, name, model, call, peer, policy } = opening;
        let trace = telemetry.place(&call.traceparent, &call.tracestate);
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

    /// Records an event of the stream as a whole.
    pub(super) fn event(&mut self, name: &'static str, detail: impl Into<String>) {
        let after = self.clock.now().saturating_duration_since(self.opened);
        self.events.push(StreamEvent { after, name, detail: detail.into() });
    }

    /// Sets the status with which the stream ends.
    pub(super) fn ends(&mut self, status: &Result<(), Status>) {
        self.status = match status {
            Ok(()) => (Code::Ok as i32, String::new()),
            Err(status) => (status.code() as i32, status.message().to_owned()),
        };
    }

    /// The client has gone: nobody reads the status.
    pub(super) fn gone(&mut self) {
        self.gone = true;
        self.status = (Code::Cancelled as i32, "the client has gone".to_owned());
    }

    /// Whether the client has gone.
    pub(super) fn has_gone(&self) -> bool {
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
