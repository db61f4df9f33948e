//! One stream, from its `Open` to its status.
//!
//! A [`StreamTask`] reads `Open` and answers it. From then on an [`opened::OpenStream`] reads, submits and sends, as
//! its [`crate::stream::Session`] decides. [`arrival`] turns the client's messages into frames of the engine,
//! [`ending`] turns frames that have ended into the server's messages, [`frames`] has the frames in between, and
//! [`account`] is the stream's record for telemetry.

mod account;
mod arrival;
mod ending;
mod frames;
mod opened;

use std::time::Instant;

use tonic::{Code, Status, Streaming};

use crate::proto::v1;
use crate::proto::v1::explain_stream_request::Message as Request;
use crate::proto::v1::explain_stream_response::Message as Response;

use self::opened::OpenStream;
use crate::server::refusal::Refusal;
use crate::server::service::Service;
use crate::server::transport::calls::TraceHeaders;
use crate::server::transport::connections::{AGED, About};
use crate::server::transport::deadline;
use crate::server::transport::messages;
use crate::server::transport::messages::EndOfStream;

type Outbound = messages::Outbound<v1::ExplainStreamResponse>;

/// A stream before its `Open`.
pub(in crate::server) struct StreamTask {
    service: Service,
    inbound: Streaming<v1::ExplainStreamRequest>,
    outbound: Outbound,
    connection: About,
    trace: TraceHeaders,
    deadline: Option<Instant>,
}

impl StreamTask {
    pub(in crate::server) fn new(
        service: Service,
        inbound: Streaming<v1::ExplainStreamRequest>,
        outbound: Outbound,
        connection: About,
        trace: TraceHeaders,
        deadline: Option<Instant>,
    ) -> Self {
        StreamTask { service, inbound, outbound, connection, trace, deadline }
    }

    /// Runs the stream to its end; its status goes to `ending`.
    pub(in crate::server) async fn run(mut self, ending: EndOfStream) {
        let (outbound, shutdown, deadline) = (self.outbound.clone(), self.service.shutdown.clone(), self.deadline);
        let connection = self.connection.clone();
        let opened = tokio::select! {
            opened = self.open() => opened,
            () = outbound.closed() => return,
            () = shutdown.drain() => {
                let message = "the server is stopping; another one may take this stream";
                Err(Refusal::new(Code::Unavailable, "", message).into_status())
            }
            () = connection.aged() => {
                Err(Refusal::new(Code::Unavailable, "", AGED).into_status())
            }
            () = deadline::passed(deadline) => Err(Status::deadline_exceeded(deadline::EXCEEDED)),
        };
        let ended = match opened {
            Ok(Some(stream)) => stream.run(self.inbound, outbound, connection, deadline).await,
            Ok(None) => Ok(()),
            Err(status) => Err(status),
        };
        if let Err(status) = ended {
            ending.set(status);
        }
    }

    /// Reads `Open` and answers it. `None`: the client closed its side without a message.
    async fn open(&mut self) -> Result<Option<OpenStream>, Status> {
        let first = self.inbound.message().await.map_err(|status| self.service.read_error(status))?;
        let Some(first) = first else { return Ok(None) };
        let Some(Request::Open(open)) = first.message else {
            let message = "the first message of a stream is Open";
            return Err(Refusal::invalid("open", message).into_status());
        };
        let refused = |refusal: Refusal| refusal.under("open").into_status();
        let model = self.service.model(open.model.as_ref()).await.map_err(refused)?;
        let (stream, opened) =
            OpenStream::new(self.service.clone(), model, open, &self.trace, self.connection.peer).map_err(refused)?;
        let message = v1::ExplainStreamResponse { message: Some(Response::Opened(opened)) };
        // `run` notices when the client has gone.
        let _ = self.outbound.send(message).await;
        Ok(Some(stream))
    }
}

impl Service {
    /// Why the next message could not be read.
    fn read_error(&self, status: Status) -> Status {
        match status.code() {
            Code::OutOfRange => crate::server::transport::serve::oversized(self.limits.max_frame_bytes),
            _ => status,
        }
    }
}
