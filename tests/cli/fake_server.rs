//! A server that speaks the protocol and computes nothing: its answer depends only on the frame's tag.

use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use camlens::proto::v1;
use camlens::proto::v1::explain_service_server::{ExplainService, ExplainServiceServer};
use camlens::proto::v1::explain_stream_request::Message as Request;
use camlens::proto::v1::explain_stream_response::Message as Response;
use camlens::proto::v1::model_service_server::{ModelService, ModelServiceServer};
use tokio::net::UnixListener;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Status, Streaming};

/// The credit that the fake server grants to a stream, in frames.
pub const CREDIT: u32 = 4;

/// The running server. Dropping it stops it.
pub struct FakeServer {
    folder: tempfile::TempDir,
    pub seen: Arc<Mutex<Seen>>,
    _runtime: tokio::runtime::Runtime,
}

/// The messages that the server has received.
#[derive(Debug, Default)]
pub struct Seen {
    pub opens: Vec<v1::Open>,
    pub frames: Vec<v1::Frame>,
    pub requests: Vec<v1::ExplainRequest>,
}

impl FakeServer {
    pub fn start() -> Self {
        FakeServer::start_in(tempfile::tempdir().expect("a temporary folder"))
    }

    /// Stops the server, which breaks its connections, and starts another one at the same address.
    pub fn restart(self) -> Self {
        let FakeServer { folder, seen: _, _runtime: runtime } = self;
        runtime.shutdown_timeout(std::time::Duration::from_secs(10));
        std::fs::remove_file(folder.path().join("fake.sock")).expect("the socket of the server before");
        FakeServer::start_in(folder)
    }

    fn start_in(folder: tempfile::TempDir) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let seen = Arc::<Mutex<Seen>>::default();
        let listener = {
            let _entered = runtime.enter();
            UnixListener::bind(folder.path().join("fake.sock")).expect("a socket in a fresh folder")
        };
        let service = Service { seen: seen.clone() };
        runtime.spawn(async move {
            let (health, health_service) = tonic_health::server::health_reporter();
            health.set_service_status("asleep", tonic_health::ServingStatus::NotServing).await;
            tonic::transport::Server::builder()
                .add_service(health_service)
                .add_service(ExplainServiceServer::new(service.clone()))
                .add_service(ModelServiceServer::new(service))
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
        });
        FakeServer { folder, seen, _runtime: runtime }
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("fake.sock")
    }

    pub fn address(&self) -> String {
        format!("unix:{}", self.socket().display())
    }
}

#[derive(Clone)]
struct Service {
    seen: Arc<Mutex<Seen>>,
}

fn identity() -> v1::ModelIdentity {
    v1::ModelIdentity {
        name: "fake".into(),
        version: 3,
        digest: "ab".repeat(32),
        precision: v1::Precision::Float32 as i32,
    }
}

/// An answer with each picture and each map that was requested.
fn explanation(frame: &v1::Frame, options: &v1::ExplainOptions) -> v1::Explanation {
    let pictures = options.pictures.iter().map(|picture| v1::EncodedPicture {
        picture: picture.picture,
        format: picture.format,
        data: format!("picture of {}", String::from_utf8_lossy(&frame.tag)).into(),
        ..Default::default()
    });
    let tensors = options.tensors.iter().map(|tensor| v1::MapTensor {
        map: tensor.map,
        tensor: Some(v1::Tensor { shape: vec![1, 2], data: vec![0; 8].into(), ..Default::default() }),
        ..Default::default()
    });
    let timing = |stage: v1::Stage, duration_ns| v1::StageTiming { stage: stage as i32, start_ns: 0, duration_ns };
    v1::Explanation {
        sequence: frame.sequence,
        capture_time: frame.capture_time,
        tag: frame.tag.clone(),
        model: Some(identity()),
        predictions: vec![v1::Prediction { class_index: 1, label: "cup <1>".into(), logit: 2.5, probability: 0.75 }],
        targets: vec![v1::TargetExplanation {
            class_index: 1,
            label: "cup <1>".into(),
            score: 2.5,
            target_layer: "layer4".into(),
            pictures: pictures.collect(),
            tensors: tensors.collect(),
        }],
        timings: vec![timing(v1::Stage::Queue, 1_000_000), timing(v1::Stage::Forward, 40_000_000)],
        batch_size: 1,
        ..Default::default()
    }
}

/// The behaviour that a tag requests: `bad`, `old`, `lost`, `twice`, `bye`, `mixed`, `late`, or anything else for an
/// answer. `break` is the caller's: it ends the stream.
fn responses(frame: &v1::Frame, options: &v1::ExplainOptions) -> Vec<Response> {
    let answer = || Response::Explanation(Box::new(explanation(frame, options)));
    let altered = |change: &dyn Fn(&mut v1::Explanation)| {
        let mut answer = explanation(frame, options);
        change(&mut answer);
        Response::Explanation(Box::new(answer))
    };
    let tag = String::from_utf8_lossy(&frame.tag).into_owned();
    let kind: String = tag.chars().take_while(|c| c.is_alphabetic()).collect();
    match kind.as_str() {
        "bad" => vec![Response::FrameError(v1::FrameError {
            sequence: frame.sequence,
            tag: frame.tag.clone(),
            code: tonic::Code::InvalidArgument as i32,
            message: "encoded.data: not an image".into(),
            field: "encoded.data".into(),
            retry_after: None,
        })],
        "old" => vec![Response::Dropped(v1::Dropped {
            first_sequence: frame.sequence,
            last_sequence: frame.sequence,
            count: 1,
            reason: v1::dropped::Reason::Replaced as i32,
        })],
        "lost" => vec![],
        "mixed" => vec![altered(&|answer| answer.tag = "of another frame".into())],
        "late" => vec![altered(&|answer| answer.capture_time = None)],
        "twice" => vec![answer(), answer()],
        "bye" => vec![Response::GoingAway(v1::GoingAway {
            last_accepted_sequence: frame.sequence.checked_sub(1),
            reason: "SIGTERM".into(),
            ..Default::default()
        })],
        _ => vec![answer()],
    }
}

#[tonic::async_trait]
impl ExplainService for Service {
    async fn explain(
        &self,
        request: tonic::Request<v1::ExplainRequest>,
    ) -> Result<tonic::Response<v1::ExplainResponse>, Status> {
        let request = request.into_inner();
        let frame = request.frame.clone().ok_or_else(|| Status::invalid_argument("frame: required"))?;
        let options = request.options.clone().unwrap_or_default();
        self.seen.lock().expect("no test panics while it holds this").requests.push(request);
        match responses(&frame, &options).into_iter().next() {
            Some(Response::Explanation(answer)) => {
                Ok(tonic::Response::new(v1::ExplainResponse { explanation: Some(*answer) }))
            }
            Some(Response::FrameError(error)) => Err(Status::new(error.code.into(), error.message)),
            _ => Err(Status::internal("the fake has no answer to this")),
        }
    }

    type ExplainStreamStream = Pin<Box<dyn Stream<Item = Result<v1::ExplainStreamResponse, Status>> + Send>>;

    async fn explain_stream(
        &self,
        request: tonic::Request<Streaming<v1::ExplainStreamRequest>>,
    ) -> Result<tonic::Response<Self::ExplainStreamStream>, Status> {
        let mut requests = request.into_inner();
        let (sender, receiver) = tokio::sync::mpsc::channel(64);
        let seen = self.seen.clone();
        tokio::spawn(async move {
            let mut options = v1::ExplainOptions::default();
            let mut gone = false;
            while let Some(Ok(request)) = requests.next().await {
                let answers = match request.message {
                    Some(Request::Open(open)) => {
                        options = open.options.clone().unwrap_or_default();
                        if open.model.as_ref().is_some_and(|model| model.name == "unknown") {
                            let status = Status::not_found("model.name: there is no unknown; there is fake");
                            return drop(sender.send(Err(status)).await);
                        }
                        seen.lock().expect("no test panics while it holds this").opens.push(open);
                        let opened = v1::Opened {
                            stream_id: "s-1".into(),
                            model: Some(identity()),
                            max_in_flight: CREDIT,
                            ..Default::default()
                        };
                        vec![Response::Opened(opened)]
                    }
                    Some(Request::Frame(frame)) if frame.tag.starts_with(b"break") => {
                        seen.lock().expect("no test panics while it holds this").frames.push(frame);
                        return drop(sender.send(Err(Status::unavailable("no healthy upstream"))).await);
                    }
                    Some(Request::Frame(frame)) if !gone => {
                        let is_again = |seen: &Seen| seen.frames.iter().any(|before| before.tag == frame.tag);
                        // A server that goes away does so once.
                        let is_next = frame.tag.starts_with(b"bye") && is_again(&seen.lock().expect("no panic"));
                        let answers = match is_next {
                            true => vec![Response::Explanation(Box::new(explanation(&frame, &options)))],
                            false => responses(&frame, &options),
                        };
                        gone = matches!(answers.first(), Some(Response::GoingAway(_)));
                        seen.lock().expect("no test panics while it holds this").frames.push(frame);
                        answers
                    }
                    _ => vec![],
                };
                for message in answers {
                    if sender.send(Ok(v1::ExplainStreamResponse { message: Some(message) })).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(tonic::Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

#[tonic::async_trait]
impl ModelService for Service {
    async fn list_models(
        &self,
        _: tonic::Request<v1::ListModelsRequest>,
    ) -> Result<tonic::Response<v1::ListModelsResponse>, Status> {
        let model = |name: String| v1::ModelSummary { name, version: 3, class_count: Some(2), ..Default::default() };
        // Larger than a pipe's buffer, so that writing fails once the reader has closed it.
        let models = (0..2000).map(|number| model(format!("fake-{number}-{}", "x".repeat(40)))).collect();
        Ok(tonic::Response::new(v1::ListModelsResponse { models, problems: Vec::new() }))
    }

    async fn get_model(
        &self,
        request: tonic::Request<v1::GetModelRequest>,
    ) -> Result<tonic::Response<v1::GetModelResponse>, Status> {
        let known = HashMap::from([("fake", 3)]);
        let selector = request.into_inner().model.unwrap_or_default();
        if !known.contains_key(selector.name.as_str()) {
            return Err(Status::not_found(format!("model.name: there is no {}; there is fake", selector.name)));
        }
        let metadata = v1::ModelMetadata {
            identity: Some(identity()),
            default_target_layers: vec!["layer4".into()],
            layers: vec![v1::LayerInfo { names: vec!["layer4".into()], shape: vec![1, 8, 7, 7], spatial: true }],
            ..Default::default()
        };
        Ok(tonic::Response::new(v1::GetModelResponse { metadata: Some(metadata) }))
    }
}
