//! `ExplainService`: one frame, or the opening of a stream.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::proto::v1;
use crate::proto::v1::explain_service_server::ExplainService;
use crate::schedule::{Job, JobError, Outcome, Reply};
use crate::telemetry::Stage;

use super::request::{frame, options, selector};
use super::response::{self, Echo};
use super::stream::StreamTask;
use crate::server::frame_account::{Accepted, FrameAccount};
use crate::server::quota::slots::{Full, Place};
use crate::server::refusal::Refusal;
use crate::server::service::{Service, SubmittedFrame};
use crate::server::transport::calls::{CallTrace, Sending};
use crate::server::transport::connections::About;
use crate::server::transport::deadline;
use crate::server::transport::messages::Messages;

#[tonic::async_trait]
impl ExplainService for Service {
    async fn explain(&self, request: Request<v1::ExplainRequest>) -> Result<Response<v1::ExplainResponse>, Status> {
        let deadline = deadline::of(&request);
        let trace = CallTrace::of(&request);
        let call = self.clone().explain_one(request.into_inner(), trace, deadline);
        let (explanation, account) = self.calls.track_future(call).await.map_err(Refusal::into_status)?;
        let mut response = Response::new(v1::ExplainResponse { explanation: Some(explanation) });
        // It closes when the transport has the answer.
        response.extensions_mut().insert(Sending::new(account));
        Ok(response)
    }

    type ExplainStreamStream = Messages<v1::ExplainStreamResponse>;

    async fn explain_stream(
        &self,
        request: Request<Streaming<v1::ExplainStreamRequest>>,
    ) -> Result<Response<Self::ExplainStreamStream>, Status> {
        self.refuse_while_draining().map_err(Refusal::into_status)?;
        let deadline = deadline::of(&request);
        let connection = About::of(&request);
        let trace = CallTrace::of(&request);
        let place = self.place_for_stream(connection.peer).map_err(Refusal::into_status)?;
        let (outbound, ending, messages) = Messages::new();
        let stream = StreamTask::new(self.clone(), request.into_inner(), outbound, connection, trace, deadline);
        let reclaim = self.reclaim.clone();
        self.calls.spawn(async move {
            stream.run(ending).await;
            drop(place);
            reclaim.soon();
        });
        Ok(Response::new(messages))
    }
}

impl Service {
    fn refuse_while_draining(&self) -> Result<(), Refusal> {
        if self.shutdown.is_draining() {
            return Err(Refusal::new(Code::Unavailable, "", "the server is stopping; another one may take this call"));
        }
        Ok(())
    }

    fn place_for_stream(&self, peer: Option<IpAddr>) -> Result<Place, Refusal> {
        self.places.take(peer).map_err(|full| {
            let message = match full {
                Full::InAll(most) => format!("the server has as many streams as it takes: limits.max_streams is {most}"),
                Full::ForPeer(most) => format!(
                    "there are as many streams from this address as the server takes: limits.max_streams_per_peer is {most}"
                ),
            };
            Refusal::new(Code::ResourceExhausted, "", message)
        })
    }

    async fn explain_one(
        self,
        request: v1::ExplainRequest,
        call: CallTrace,
        deadline: Option<Instant>,
    ) -> Result<(v1::Explanation, FrameAccount), Refusal> {
        self.refuse_while_draining()?;
        let clock = Arc::clone(self.engine.clock());
        let accepted = clock.now();
        let v1::ExplainRequest { model, options, frame } = request;
        let model = Arc::clone(selector::select(self.engine.served(), model.as_ref())?);
        let mut frame = frame.ok_or_else(|| Refusal::invalid("frame", "frame is missing"))?;
        let source = self.telemetry.call_source((&model.metadata.name, model.metadata.version));
        let payload_bytes = frame::payload_bytes(&frame);
        let accepted_frame = Accepted {
            source: &source,
            frame: &frame,
            call: (&call.traceparent, &call.tracestate),
            payload_bytes,
            policy: "",
            at: accepted,
        };
        let mut account = FrameAccount::open(&self.telemetry, &clock, accepted_frame);
        let mut options = options.unwrap_or_default();
        if let Some(own) = frame.options.take() {
            options = options::overlay(&options, &own);
        }
        let result = async {
            let asked = options::resolve(&options, &model, &self.limits)?;
            let time_to_live = frame::time_to_live("frame.time_to_live", frame.time_to_live.as_ref())?;
            let payload = frame::payload(&mut frame, self.limits.max_frame_bytes)?;
            let bytes = model.check_header(&payload, &asked.outputs).map_err(|error| Refusal::from(&error))?;
            let lane = self.engine.lane(&model);
            let admission = lane.try_admit(bytes)?;
            let (reply, outcome) = oneshot::channel::<Outcome>();
            let handle = self.engine.submit(Job {
                lane,
                priority: 0,
                expires_at: time_to_live.and_then(|time| accepted.checked_add(time)),
                method: asked.method.clone(),
                targets: asked.targets.clone(),
                outputs: asked.outputs.clone(),
                payload,
                progress: account.progress().clone(),
                admission,
                // Whoever asked may have gone.
                reply: Reply::new(move |outcome| drop(reply.send(outcome))),
            });
            let guard = SubmittedFrame::new(&self.engine, handle);
            // The guard goes with this: a frame that is too late is not worked on any further.
            let outcome = tokio::select! {
                outcome = outcome => outcome,
                () = deadline::passed(deadline) => return Err(Refusal::new(Code::DeadlineExceeded, "", deadline::EXCEEDED)),
            };
            let answer = outcome.unwrap_or(Err(JobError::Stopped)).map_err(|error| Refusal::from(&error))?;
            drop(guard);
            Ok::<_, Refusal>((answer, asked))
        }
        .await;
        let (answer, asked) = match result {
            Ok(result) => result,
            Err(refusal) => {
                account.failed(&refusal);
                return Err(refusal);
            }
        };
        account.answered(&answer);
        account.mark(Stage::Deliver);
        let echo = Echo {
            sequence: frame.sequence,
            capture_time: frame.capture_time,
            tag: frame.tag,
            trace_id: account.trace_id(),
        };
        let mut explanation = response::explanation(answer, echo, &asked, &model);
        explanation.timings = response::timings(&account.timings());
        Ok((explanation, account))
    }
}
