//! Target for a stream's messages: the real server in this process, on a Unix socket, with a device that answers at
//! once.
//!
//! All messages are the body of one call, written at once. Whatever they are, each frame that the server has accepted
//! gets exactly one ending, in order; the status says whether all were accepted; and the server's budget is free
//! afterwards.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use bytes::Bytes;
use camlens::config::Config;
use camlens::config::ListenAddress;
use camlens::explain::{ExplainError, MapKind, Target};
use camlens::frame::Limits;
use camlens::model::{LoadLimits, Model};
use camlens::plan::Interrupt;
use camlens::proto::v1;
use camlens::proto::v1::explain_stream_request::Message as Request;
use camlens::proto::v1::explain_stream_response::Message as Response;
use camlens::schedule::{
    Batch, Device, Engine, EngineConfig, HostMap, Lane, RowMaps, RowResult, Served, ServedLimits, SystemClock,
    TargetValues,
};
use camlens::server::{Server, Shutdown};
use camlens::telemetry::{Stage, Telemetry};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use prost::Message as _;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tonic::codegen::http;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tower::{Service as _, ServiceExt as _};

/// A first byte below this: the rest are choices from which valid messages are made.
pub const RAW: u8 = 0x80;

const BUDGET_BYTES: u64 = 64 << 10;
const MOST_MESSAGES: usize = 40;
/// Longer than a call takes, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// A message of the client.
#[derive(Debug, Arbitrary)]
enum Sent {
    Open {
        options: Options,
        policy: Policy,
    },
    Frame {
        gap: u8,
        content: Content,
        options: Option<Options>,
        tag: u8,
    },
    Cancel {
        back: u8,
    },
    Update {
        options: Option<Options>,
        policy: Option<Policy>,
    },
    Nothing,
    /// Bytes that may not be a message.
    Bytes(Vec<u8>),
}

#[derive(Debug, Arbitrary)]
struct Options {
    targets: Vec<(u8, u32)>,
    layers: Vec<u8>,
    maps: Vec<(u8, u8, u8)>,
    pictures: Vec<(u8, u8, u8)>,
    top: Option<u32>,
    predictions_only: Option<bool>,
    rest: u8,
}

#[derive(Debug, Arbitrary)]
struct Policy {
    overflow: u8,
    depth: u8,
    unordered: bool,
    max_response_bytes: u16,
    rest: u8,
}

#[derive(Debug, Arbitrary)]
enum Content {
    /// A valid picture, 4 by 3.
    Valid,
    Raw {
        width: u8,
        height: u8,
        format: u8,
        data: Vec<u8>,
    },
    Encoded(Vec<u8>),
    Tensor {
        shape: Vec<u8>,
        sound: bool,
    },
    None,
}

impl Options {
    fn wire(&self) -> v1::ExplainOptions {
        let target = |(kind, value): &(u8, u32)| v1::Target {
            kind: match kind % 4 {
                0 => Some(v1::target::Kind::ClassIndex(*value)),
                1 => Some(v1::target::Kind::Label(if *value < 9 { "ant".to_owned() } else { "\u{e4}".repeat(9) })),
                2 => Some(v1::target::Kind::Top(*value % 20)),
                _ => None,
            },
        };
        let layer =
            |index: &u8| ["layer4", "layer3", "layer4.0.relu", "", "nowhere"][usize::from(index % 5)].to_owned();
        v1::ExplainOptions {
            targets: self.targets.iter().take(20).map(target).collect(),
            target_layers: self.layers.iter().take(20).map(layer).collect(),
            tensors: self
                .maps
                .iter()
                .take(20)
                .map(|(map, resolution, element_type)| v1::TensorOutput {
                    map: i32::from(map % 6),
                    resolution: i32::from(resolution % 5),
                    element_type: i32::from(element_type % 5),
                })
                .collect(),
            pictures: self
                .pictures
                .iter()
                .take(3)
                .map(|(picture, format, _)| v1::PictureOutput {
                    picture: i32::from(picture % 6),
                    format: i32::from(format % 5),
                    ..Default::default()
                })
                .collect(),
            top_predictions: self.top,
            predictions_only: self.predictions_only,
            convention: i32::from(self.rest % 4),
            precision: i32::from(self.rest / 4 % 4),
            cam_method: i32::from(self.rest / 16 % 4),
            condition: (self.rest > 250).then(Default::default),
            allow_damaged_frames: (self.rest % 2 == 1).then_some(true),
        }
    }
}

impl Policy {
    fn wire(&self) -> v1::StreamPolicy {
        v1::StreamPolicy {
            overflow: i32::from(self.overflow % 5),
            depth: u32::from(self.depth % 20),
            unordered: self.unordered,
            max_response_bytes: self.max_response_bytes.into(),
            time_to_live: (self.rest == 1).then(Default::default),
            max_rate_hz: (self.rest == 2).then_some(f64::NAN),
            priority: u32::from(self.rest == 3),
        }
    }
}

impl Content {
    fn wire(&self) -> Option<v1::frame::Payload> {
        Some(match self {
            Content::Valid => v1::frame::Payload::Raw(v1::RawImage {
                data: vec![7; 36].into(),
                width: 4,
                height: 3,
                pixel_format: v1::PixelFormat::Rgb8 as i32,
                ..Default::default()
            }),
            Content::Raw { width, height, format, data } => v1::frame::Payload::Raw(v1::RawImage {
                data: data.clone().into(),
                width: u32::from(*width),
                height: u32::from(*height),
                pixel_format: i32::from(format % 8),
                ..Default::default()
            }),
            Content::Encoded(data) => {
                v1::frame::Payload::Encoded(v1::EncodedImage { data: data.clone().into(), ..Default::default() })
            }
            Content::Tensor { shape, sound } => {
                let shape: Vec<u32> =
                    if *sound { vec![3, 33, 33] } else { shape.iter().map(|side| u32::from(*side)).collect() };
                let bytes = shape.iter().fold(4usize, |all, side| all.saturating_mul(*side as usize)).min(16 << 10);
                v1::frame::Payload::Tensor(v1::Tensor { shape, data: vec![0; bytes].into(), ..Default::default() })
            }
            Content::None => return None,
        })
    }
}

/// The encoded messages.
fn messages(data: &[u8]) -> Option<Vec<Vec<u8>>> {
    let (&first, rest) = data.split_first()?;
    if first >= RAW {
        return Some(split(rest));
    }
    let said = Vec::<Sent>::arbitrary_take_rest(Unstructured::new(rest)).ok()?;
    let mut sequence = 0u64;
    let encode = |message| v1::ExplainStreamRequest { message }.encode_to_vec();
    let message = |said: &Sent| match said {
        Sent::Open { options, policy } => encode(Some(Request::Open(v1::Open {
            options: Some(options.wire()),
            policy: Some(policy.wire()),
            ..Default::default()
        }))),
        Sent::Frame { gap, content, options, tag } => {
            // Mostly the next sequence, sometimes the same one.
            sequence += u64::from(if *gap > 0xF0 { 0 } else { 1 + gap / 64 });
            encode(Some(Request::Frame(v1::Frame {
                sequence,
                payload: content.wire(),
                options: options.as_ref().map(Options::wire),
                tag: vec![*tag; usize::from(*tag) * 17].into(),
                ..Default::default()
            })))
        }
        Sent::Cancel { back } => {
            encode(Some(Request::Cancel(v1::Cancel { sequence: sequence.wrapping_sub(u64::from(*back)) })))
        }
        Sent::Update { options, policy } => encode(Some(Request::Update(v1::Update {
            options: options.as_ref().map(Options::wire),
            policy: policy.as_ref().map(Policy::wire),
        }))),
        Sent::Nothing => encode(None),
        Sent::Bytes(bytes) => bytes.clone(),
    };
    Some(said.iter().take(MOST_MESSAGES).map(message).collect())
}

/// Splits the input into messages: each has a length of 16 bits, little-endian, before it; the last one may be shorter.
fn split(mut data: &[u8]) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    while let ([a, b, rest @ ..], true) = (data, all.len() < MOST_MESSAGES) {
        let length = usize::from(u16::from_le_bytes([*a, *b])).min(rest.len());
        all.push(rest[..length].to_vec());
        data = &rest[length..];
    }
    all
}

/// The input from which [`run`] reads these messages.
pub fn seed(messages: &[v1::ExplainStreamRequest]) -> Vec<u8> {
    let mut seed = vec![RAW];
    for message in messages {
        let bytes = message.encode_to_vec();
        seed.extend((bytes.len() as u16).to_le_bytes());
        seed.extend(bytes);
    }
    seed
}

/// A device that answers at once, with every requested map.
struct Instant;

impl Device for Instant {
    fn run(
        &mut self,
        batch: &Batch<'_>,
        _: &dyn Interrupt,
        ended: &mut dyn FnMut(Stage),
    ) -> Result<Vec<RowResult>, ExplainError> {
        ended(Stage::Forward);
        let [channels, height, width] = batch.shape;
        let map = |shape: Vec<u32>| HostMap { values: vec![0.5; shape.iter().product::<u32>() as usize], shape };
        let shape = |kind: MapKind| {
            if kind.has_channels() { vec![channels, height, width] } else { vec![height, width] }
        };
        let maps = batch.method.maps;
        let values = |class_index| TargetValues {
            class_index,
            score: 0.5,
            layer_map: maps.contains(MapKind::GradCam).then(|| map(vec![2, 2])),
            maps: maps.iter().map(|kind| (kind, map(shape(kind)))).collect(),
            ..TargetValues::default()
        };
        let classes = |target: &Target| match *target {
            Target::Class(class) => class..class + 1,
            Target::Top(count) => 0..count,
        };
        let row = |targets: &&[Target]| {
            let targets = targets.iter().flat_map(classes).map(values).collect();
            Ok(RowMaps { logits: vec![0.0; 10], targets })
        };
        Ok(batch.targets.iter().map(row).collect())
    }
}

struct World {
    runtime: Runtime,
    lane: Lane,
    channel: Channel,
    _folder: TempDir,
}

static WORLD: LazyLock<Mutex<World>> = LazyLock::new(|| Mutex::new(World::new()));

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let socket = folder.path().join("camlens.sock");
        let fixture = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().find_map(|root| {
            let file = root.join("tests/fixtures/conformance/resnet_basic/1/model.pt2");
            file.is_file().then_some(file)
        });
        let model = Model::load("small", 1, &fixture.expect("the fixture is there"), &LoadLimits::default());
        let mut metadata = (*model.expect("the small network loads").metadata).clone();
        metadata.labels =
            ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay"].map(String::from).into();
        let limits = ServedLimits {
            max_batch: 4,
            max_targets: 4,
            frame: Limits { max_pixels: 1 << 12, max_encoded_bytes: 1 << 14 },
        };
        let served = Arc::new(Served::new(Arc::new(metadata), limits, tch::Device::Cpu).expect("it can be served"));
        let config = EngineConfig {
            binds_models: false,
            queued_frames: 6,
            queued_bytes: BUDGET_BYTES,
            model_queued_frames: 5,
            model_queued_bytes: BUDGET_BYTES,
            stream_queued_bytes: BUDGET_BYTES,
            max_batch_delay: Duration::ZERO,
            priority_ageing: Duration::from_millis(5),
            frame_threads: 1,
            background: false,
        };
        let engine = Engine::start(config, vec![Arc::clone(&served)], vec![|| Instant], Arc::new(SystemClock))
            .expect("threads start");
        let mut config = Config::default();
        config.server.listen = vec![ListenAddress::Unix(socket.clone())];
        config.limits.max_in_flight = 4;
        config.limits.max_unsent_bytes = 32 << 10;
        config.limits.max_frame_bytes = 32 << 10;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let lane = engine.lane(&served);
        let channel = runtime.block_on(async move {
            let server = Server::start_with(&config, engine, Telemetry::disabled(), Shutdown::new());
            tokio::spawn(server.await.expect("the server starts").run());
            let dial = move |_| {
                let socket = socket.clone();
                async move { UnixStream::connect(socket).await.map(TokioIo::new) }
            };
            Endpoint::from_static("http://localhost").connect_with_connector(tower::service_fn(dial)).await
        });
        World { runtime, lane, channel: channel.expect("the server listens"), _folder: folder }
    }

    /// Calls `ExplainStream` with these messages; returns the answers and the status.
    fn call(&mut self, messages: &[Vec<u8>]) -> (Vec<Response>, Status) {
        let framed = |message: &Vec<u8>| {
            let length = (message.len() as u32).to_be_bytes();
            [&[0][..], &length, message].concat()
        };
        let body = Bytes::from(messages.iter().flat_map(framed).collect::<Vec<u8>>());
        let request = http::Request::post("/camlens.v1.ExplainService/ExplainStream")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(tonic::body::Body::new(Full::new(body)))
            .expect("a request");
        let World { runtime, channel, .. } = self;
        let call = async {
            let response = channel.ready().await.expect("connected").call(request).await.expect("a response");
            let (head, body) = response.into_parts();
            let collected = body.collect().await.expect("a whole response");
            let heads = [collected.trailers(), Some(&head.headers)];
            let status = heads.into_iter().flatten().find_map(Status::from_header_map).expect("a status");
            (responses(&collected.to_bytes()), status)
        };
        runtime.block_on(async { tokio::time::timeout(PATIENCE, call).await }).expect("the stream ends")
    }

    /// Checks that all frames have released their share of the budget.
    fn assert_idle(&mut self) {
        let lane = self.lane.clone();
        let whole = async { tokio::time::timeout(PATIENCE, lane.admit(BUDGET_BYTES)).await };
        drop(self.runtime.block_on(whole).expect("the budget is free again"));
    }
}

fn responses(mut body: &[u8]) -> Vec<Response> {
    let mut all = Vec::new();
    while let [0, a, b, c, d, rest @ ..] = body {
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        let message = v1::ExplainStreamResponse::decode(&rest[..length]).expect("the server speaks protobuf");
        all.push(message.message.expect("a message says something"));
        body = &rest[length..];
    }
    assert!(body.is_empty(), "whole messages");
    all
}

/// What the server must answer to these messages.
struct Expected {
    /// Sequences of the frames before the first violation of the protocol.
    sent: Vec<u64>,
    /// Possible numbers of accepted frames: those before an `Update`, which may be refused, or all.
    accepted: BTreeSet<usize>,
    /// Whether the messages certainly violate the protocol.
    broken: bool,
    unordered: bool,
}

impl Expected {
    fn of(messages: &[Vec<u8>]) -> Self {
        let mut expected = Expected { sent: Vec::new(), accepted: BTreeSet::new(), broken: false, unordered: false };
        for (index, message) in messages.iter().enumerate() {
            let message = v1::ExplainStreamRequest::decode(message.as_slice()).ok().and_then(|said| said.message);
            match message {
                Some(Request::Open(open)) if index == 0 => {
                    expected.unordered = open.policy.is_some_and(|policy| policy.unordered);
                    // `Open` may be refused as well.
                    expected.accepted.insert(0);
                }
                Some(Request::Frame(frame))
                    if index > 0 && expected.sent.last().is_none_or(|last| *last < frame.sequence) =>
                {
                    expected.sent.push(frame.sequence);
                }
                Some(Request::Cancel(_)) if index > 0 => {}
                Some(Request::Update(_)) if index > 0 => {
                    expected.accepted.insert(expected.sent.len());
                }
                _ => {
                    expected.broken = true;
                    break;
                }
            }
        }
        expected.accepted.insert(expected.sent.len());
        expected
    }

    fn check(&self, responses: &[Response], status: &Status) {
        let opened = matches!(responses.first(), Some(Response::Opened(_)));
        let endings = responses.get(usize::from(opened)..).unwrap_or_default();
        let reported: Vec<(u64, u64, u64)> = endings
            .iter()
            .map(|response| match response {
                Response::Explanation(explanation) => (explanation.sequence, explanation.sequence, 1),
                Response::FrameError(error) => (error.sequence, error.sequence, 1),
                Response::Dropped(run) => (run.first_sequence, run.last_sequence, run.count),
                other => panic!("an ending, not {other:?}"),
            })
            .collect();
        let count = reported.iter().map(|(_, _, count)| *count as usize).sum();
        assert!(opened || reported.is_empty(), "{responses:?}");
        assert!(self.accepted.contains(&count), "{count} endings of {:?}: {reported:?}, {status}", self.sent);
        if status.code() == Code::Ok {
            assert!(!self.broken && count == self.sent.len(), "{count} endings of {:?}", self.sent);
        } else {
            assert!(!status.message().is_empty(), "{status}");
        }
        let accepted = &self.sent[..count];
        let mut unreported: BTreeSet<u64> = accepted.iter().copied().collect();
        for (first, _, _) in reported.iter().filter(|(first, last, _)| first == last) {
            assert!(unreported.remove(first), "{first} once, of {accepted:?}: {reported:?}");
        }
        for (first, last, count) in reported.iter().filter(|(first, last, _)| first != last) {
            assert!(unreported.contains(first) && unreported.contains(last), "{reported:?} of {accepted:?}");
            assert!(unreported.range(first..=last).count() as u64 >= *count, "{reported:?} of {accepted:?}");
        }
        let runs: u64 = reported.iter().filter(|(first, last, _)| first != last).map(|(_, _, count)| count).sum();
        assert_eq!(runs, unreported.len() as u64, "{reported:?} of {accepted:?}");
        let in_order = reported.windows(2).all(|pair| pair[0].0 < pair[1].0);
        assert!(self.unordered || in_order, "{reported:?}");
    }
}

pub fn run(data: &[u8]) {
    let Some(messages) = messages(data) else { return };
    let mut world = WORLD.lock().unwrap_or_else(PoisonError::into_inner);
    let (responses, status) = world.call(&messages);
    Expected::of(&messages).check(&responses, &status);
    world.assert_idle();
}
