//! `ExplainService`: one frame, or the opening of a stream.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::proto::v1;
use crate::proto::v1::explain_service_server::ExplainService;
use crate::schedule::{Job, JobError, Outcome, Reply};
use crate::telemetry::{FrameOutcome, Stage};

use super::connections::About;
use super::deadline;
use super::frame_account::{FrameAccount, SourceName};
use super::messages::Messages;
use super::places::{Full, Place};
use super::refusal::Refusal;
use super::request::{frame, options, selector};
use super::response::{self, Echo};
use super::service::{Service, SubmittedFrame};
use super::stream::StreamTask;

#[tonic::async_trait]
impl ExplainService for Service {
    async fn explain(&self, request: Request<v1::ExplainRequest>) -> Result<Response<v1::ExplainResponse>, Status> {
        let deadline = deadline::of(&request);
        let call = self.clone().explain_one(request.into_inner(), deadline);
        let explanation = self.calls.track_future(call).await.map_err(Refusal::into_status)?;
        Ok(Response::new(v1::ExplainResponse { explanation: Some(explanation) }))
    }

    type ExplainStreamStream = Messages<v1::ExplainStreamResponse>;

    async fn explain_stream(
        &self,
        request: Request<Streaming<v1::ExplainStreamRequest>>,
    ) -> Result<Response<Self::ExplainStreamStream>, Status> {
        self.refuse_while_draining().map_err(Refusal::into_status)?;
        let deadline = deadline::of(&request);
        let connection = About::of(&request);
        let place = self.place_for_stream(connection.peer).map_err(Refusal::into_status)?;
        let (outbound, ending, messages) = Messages::new();
        let stream = StreamTask::new(self.clone(), request.into_inner(), outbound, connection, deadline);
        self.calls.spawn(async move {
            stream.run(ending).await;
            drop(place);
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
        deadline: Option<Instant>,
    ) -> Result<v1::Explanation, Refusal> {
        self.refuse_while_draining()?;
        let clock = Arc::clone(self.engine.clock());
        let accepted = clock.now();
        let v1::ExplainRequest { model, options, frame } = request;
        let model = Arc::clone(selector::select(self.engine.served(), model.as_ref())?);
        let mut frame = frame.ok_or_else(|| Refusal::invalid("frame", "frame is missing"))?;
        let name = SourceName::new("", "", &model.metadata);
        let mut account = FrameAccount::open(&self.telemetry, &name, &frame, accepted);
        let mut options = options.unwrap_or_default();
        if let Some(own) = frame.options.take() {
            options = options::overlay(&options, &own);
        }
        let result = async {
            let asked = options::resolve(&options, &model, &self.limits)?;
            let bytes = frame::payload_bytes(&frame);
            let payload = frame::payload(&mut frame, self.limits.max_frame_bytes)?;
            model.check_header(&payload, &asked.outputs).map_err(|error| Refusal::from(&error))?;
            let admission = self.engine.try_admit(bytes)?;
            let (reply, outcome) = oneshot::channel::<Outcome>();
            let handle = self.engine.submit(Job {
                stream: self.engine.new_stream(),
                model: Arc::clone(&model),
                method: asked.method.clone(),
                targets: asked.targets.clone(),
                outputs: asked.outputs.clone(),
                payload,
                timings: account.timings().clone(),
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
                let message = refusal.message.clone();
                account.outcome(FrameOutcome::Failed { code: refusal.code as i32, message });
                return Err(refusal);
            }
        };
        account.answered(answer.timings.clone(), answer.batch_size);
        account.mark(Stage::Deliver, &*clock);
        let echo = Echo {
            sequence: frame.sequence,
            capture_time: frame.capture_time,
            tag: frame.tag,
            trace_id: account.trace().trace_id.to_string(),
        };
        let mut explanation = response::explanation(answer, echo, &asked, &model.metadata);
        explanation.timings = response::timings(account.timings());
        Ok(explanation)
    }
}
