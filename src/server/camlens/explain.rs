//! `ExplainService`: one frame, or the opening of a stream.

use std::sync::Arc;
use std::time::Instant;

use tonic::{Request, Response, Status, Streaming};

use crate::proto::v1;
use crate::proto::v1::explain_service_server::ExplainService;
use crate::schedule::Served;
use crate::telemetry::Stage;

use super::request::{expected, frame, options};
use super::response;
use super::stream::StreamTask;
use crate::server::frame_account::FrameAccount;
use crate::server::refusal::Refusal;
use crate::server::service::Service;
use crate::server::submit::{Explained, FrameContent, ReadFrame};
use crate::server::transport::calls::{OnSent, TraceHeaders};
use crate::server::transport::connections::About;
use crate::server::transport::deadline;
use crate::server::transport::messages::Messages;

#[tonic::async_trait]
impl ExplainService for Service {
    async fn explain(&self, request: Request<v1::ExplainRequest>) -> Result<Response<v1::ExplainResponse>, Status> {
        let deadline = deadline::of(&request);
        let trace = TraceHeaders::of(&request);
        let call = self.clone().explain_one(request.into_inner(), trace, deadline);
        let (explanation, account) = self.calls.track_future(call).await.map_err(Refusal::into_status)?;
        let mut response = Response::new(v1::ExplainResponse { explanation: Some(explanation) });
        response.extensions_mut().insert(OnSent::new(move || account.mark(Stage::Send)));
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
        let trace = TraceHeaders::of(&request);
        let slot = self.stream_slot(connection.peer).map_err(Refusal::into_status)?;
        let (outbound, ending, messages) = Messages::new();
        let stream = StreamTask::new(self.clone(), request.into_inner(), outbound, connection, trace, deadline);
        let reclaim = self.reclaim.clone();
        self.calls.spawn(async move {
            stream.run(ending).await;
            drop(slot);
            reclaim.soon();
        });
        Ok(Response::new(messages))
    }
}

impl Service {
    /// The account closes when the response has been sent.
    async fn explain_one(
        self,
        request: v1::ExplainRequest,
        call: TraceHeaders,
        deadline: Option<Instant>,
    ) -> Result<(v1::Explanation, FrameAccount), Refusal> {
        self.refuse_while_draining()?;
        let accepted_at = self.engine.clock().now();
        let v1::ExplainRequest { model, options, frame } = request;
        let model = self.model(model.as_ref()).await?;
        let frame = frame.ok_or_else(|| Refusal::invalid("frame", "frame is missing"))?;
        let echo = frame::echo(&frame);
        let header = frame::header(&frame, call, accepted_at);
        let content = self.content(frame, options.unwrap_or_default(), &model, accepted_at);
        let explained = self.explain_frame(&model, ReadFrame { header, content }, deadline).await?;
        let Explained { answer, options, account } = explained;
        let mut explanation = response::explanation(answer, echo, account.trace_id(), &options, &model);
        explanation.timings = response::timings(&account.timings());
        Ok((explanation, account))
    }

    fn content(
        &self,
        mut frame: v1::Frame,
        mut options: v1::ExplainOptions,
        model: &Served,
        accepted_at: Instant,
    ) -> Result<FrameContent, Refusal> {
        if let Some(own) = frame.options.take() {
            options = options::merge(&options, &own);
        }
        let options = options::resolve(&options, model, &self.limits)?;
        let time_to_live = frame::time_to_live("frame.time_to_live", frame.time_to_live.as_ref())?;
        let expected = expected::resolve(frame.expected.as_ref(), &model.metadata)?;
        let payload = frame::payload(&mut frame, self.limits.max_frame_bytes)?;
        let expires_at = time_to_live.and_then(|time| accepted_at.checked_add(time));
        Ok(FrameContent::new(model, Arc::new(options), payload, expires_at)?.expecting(expected))
    }
}
