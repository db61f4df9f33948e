//! A stream that a test drives one message at a time.

use camlens::proto::v1;
use camlens::proto::v1::explain_service_client::ExplainServiceClient;
use camlens::proto::v1::explain_stream_request::Message as Request;
use camlens::proto::v1::explain_stream_response::Message as Response;
use camlens::proto::v1::stream_policy::Overflow;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::images;
use super::server::PATIENCE;

pub struct Conversation {
    requests: Option<mpsc::Sender<v1::ExplainStreamRequest>>,
    responses: Streaming<v1::ExplainStreamResponse>,
}

impl Conversation {
    /// Calls the method without sending a message.
    pub async fn silent(client: &mut ExplainServiceClient<Channel>) -> Self {
        Self::attempt(client).await.expect("the call begins")
    }

    /// Calls the method; an error if the server refuses the call.
    pub async fn attempt(client: &mut ExplainServiceClient<Channel>) -> Result<Self, Status> {
        let (requests, outgoing) = mpsc::channel(64);
        let responses = client.explain_stream(ReceiverStream::new(outgoing)).await?.into_inner();
        Ok(Conversation { requests: Some(requests), responses })
    }

    pub async fn open(client: &mut ExplainServiceClient<Channel>, open: v1::Open) -> (Self, v1::Opened) {
        let mut conversation = Self::silent(client).await;
        conversation.send(Request::Open(open)).await;
        match conversation.next().await {
            Response::Opened(opened) => (conversation, opened),
            other => panic!("Opened comes first, not {other:?}"),
        }
    }

    pub async fn send(&self, message: Request) {
        self.send_raw(v1::ExplainStreamRequest { message: Some(message) }).await;
    }

    pub async fn send_raw(&self, message: v1::ExplainStreamRequest) {
        let requests = self.requests.as_ref().expect("not half-closed");
        // Sending fails once the server has ended the call.
        let _ = requests.send(message).await;
    }

    pub async fn frame(&self, sequence: u64) {
        self.send(Request::Frame(images::frame(sequence))).await;
    }

    pub fn half_close(&mut self) {
        self.requests = None;
    }

    pub async fn read(&mut self) -> Result<Option<Response>, Status> {
        let message =
            tokio::time::timeout(PATIENCE, self.responses.message()).await.expect("the server says something");
        Ok(message?.map(|message| message.message.expect("a message says something")))
    }

    pub async fn next(&mut self) -> Response {
        self.read().await.expect("the stream lives").expect("the stream goes on")
    }

    pub async fn explanation(&mut self) -> v1::Explanation {
        match self.next().await {
            Response::Explanation(explanation) => *explanation,
            other => panic!("an explanation, not {other:?}"),
        }
    }

    pub async fn dropped(&mut self) -> (u64, u64, u64, v1::dropped::Reason) {
        match self.next().await {
            Response::Dropped(run) => (run.first_sequence, run.last_sequence, run.count, run.reason()),
            other => panic!("a drop, not {other:?}"),
        }
    }

    pub async fn frame_error(&mut self) -> v1::FrameError {
        match self.next().await {
            Response::FrameError(error) => error,
            other => panic!("a frame's error, not {other:?}"),
        }
    }

    /// The status of the call, if the next thing received is its end.
    pub async fn status(&mut self) -> Status {
        match self.read().await {
            Ok(None) => Status::new(Code::Ok, ""),
            Ok(Some(message)) => panic!("the end, not {message:?}"),
            Err(status) => status,
        }
    }
}

/// Asks for predictions only: answers are small, and the gated device makes no maps.
pub fn predictions() -> v1::ExplainOptions {
    v1::ExplainOptions { predictions_only: Some(true), ..Default::default() }
}

pub fn open(overflow: Overflow) -> v1::Open {
    v1::Open {
        options: Some(predictions()),
        policy: Some(v1::StreamPolicy { overflow: overflow as i32, ..Default::default() }),
        source: "a test".to_owned(),
        ..Default::default()
    }
}
