//! Frames' traces, as an OpenTelemetry collector receives them.

use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use camlens::telemetry::{FrameOutcome, FrameRecord, Stage, Telemetry, TelemetryConfig, Timings};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// A collector that keeps what it is sent.
struct Collector {
    address: SocketAddr,
    requests: mpsc::Receiver<ExportTraceServiceRequest>,
    runtime: tokio::runtime::Runtime,
}

struct Inbox(mpsc::Sender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Inbox {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        self.0.send(request.into_inner()).map_err(|_| tonic::Status::unavailable("the test is over"))?;
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    fn start() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a free port");
        let address = listener.local_addr().expect("a bound address");
        let (sender, requests) = mpsc::channel();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let service = TraceServiceServer::new(Inbox(sender));
        runtime.spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        Collector { address, requests, runtime }
    }

    /// Everything that was delivered, after the exporter has been shut down.
    fn spans(self) -> (Vec<Span>, Vec<KeyValue>) {
        let requests: Vec<_> = self.requests.try_iter().collect();
        self.runtime.shutdown_background();
        let resource = requests[0].resource_spans[0].resource.clone().expect("a resource").attributes;
        let spans = requests
            .into_iter()
            .flat_map(|request| request.resource_spans)
            .flat_map(|resource| resource.scope_spans)
            .flat_map(|scope| scope.spans)
            .collect();
        (spans, resource)
    }
}

fn telemetry(endpoint: String) -> Telemetry {
    Telemetry::start(&TelemetryConfig { otlp_endpoint: Some(endpoint), trace_ratio: 1.0 }).expect("an endpoint")
}

/// A frame that went through every stage in 1, 2, 3, … milliseconds.
fn frame(telemetry: &Telemetry, sequence: u64, traceparent: &str, outcome: FrameOutcome) -> FrameRecord {
    let accepted = Instant::now();
    let mut timings = Timings::start(accepted);
    let mut now = accepted;
    for (index, stage) in Stage::ALL.into_iter().enumerate() {
        now += Duration::from_millis(index as u64 + 1);
        timings.mark(stage, now);
    }
    FrameRecord {
        trace: telemetry.place(traceparent, "rojo=1"),
        stream_id: "stream-1".into(),
        source: "gate 7".into(),
        sequence,
        model: "lite0".into(),
        version: 1,
        outcome,
        timings,
        accepted_at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        batch_size: 4,
    }
}

fn attribute<'s>(attributes: &'s [KeyValue], key: &str) -> Option<&'s Value> {
    let pair = attributes.iter().find(|pair| pair.key == key)?;
    pair.value.as_ref().and_then(|AnyValue { value }| value.as_ref())
}

#[test]
fn a_frame_arrives_as_one_tree_with_a_span_per_stage_and_true_times() {
    let collector = Collector::start();
    let telemetry = telemetry(format!("http://{}", collector.address));
    telemetry.frame(frame(&telemetry, 7, PARENT, FrameOutcome::Answered));
    telemetry.shutdown(Duration::from_secs(20)).expect("the collector is there");

    let (spans, resource) = collector.spans();
    assert_eq!(attribute(&resource, "service.name"), Some(&Value::StringValue("camlens".into())));
    let (frames, stages): (Vec<_>, Vec<_>) = spans.iter().partition(|span| span.name == "camlens.frame");
    let [root] = frames[..] else { panic!("one frame, not {}", frames.len()) };
    assert_eq!(root.parent_span_id, [0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]);
    assert_eq!(root.kind, SpanKind::Server as i32);
    assert_eq!(root.trace_state, "rojo=1");
    assert_eq!(attribute(&root.attributes, "camlens.frame.sequence"), Some(&Value::IntValue(7)));
    assert_eq!(attribute(&root.attributes, "camlens.batch.size"), Some(&Value::IntValue(4)));
    assert_eq!(attribute(&root.attributes, "camlens.outcome"), Some(&Value::StringValue("answered".into())));

    let names: Vec<_> = stages.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, Stage::ALL.map(Stage::name));
    let mut end = root.start_time_unix_nano;
    assert_eq!(end, 1_700_000_000_000_000_000);
    for (index, span) in stages.iter().enumerate() {
        assert_eq!((&span.trace_id, &span.parent_span_id), (&root.trace_id, &root.span_id), "{}", span.name);
        assert_eq!(span.start_time_unix_nano, end, "{}", span.name);
        end += (index as u64 + 1) * 1_000_000;
        assert_eq!(span.end_time_unix_nano, end, "{}", span.name);
    }
    assert_eq!(root.end_time_unix_nano, end);
}

#[test]
fn each_frame_of_a_stream_has_its_own_trace_and_an_unsampled_parent_is_heeded() {
    let collector = Collector::start();
    let telemetry = telemetry(collector.address.to_string());
    let failed = FrameOutcome::Failed { code: 3, message: "frame.encoded: truncated".into() };
    telemetry.frame(frame(&telemetry, 1, "", FrameOutcome::Answered));
    telemetry.frame(frame(&telemetry, 2, "", failed));
    telemetry.frame(frame(&telemetry, 3, &PARENT.replace("-01", "-00"), FrameOutcome::Answered));
    telemetry.shutdown(Duration::from_secs(20)).expect("the collector is there");

    let (spans, _) = collector.spans();
    let roots: Vec<_> = spans.iter().filter(|span| span.name == "camlens.frame").collect();
    assert_eq!(roots.len(), 2);
    assert_ne!(roots[0].trace_id, roots[1].trace_id);
    assert!(roots.iter().all(|root| root.parent_span_id.is_empty()));
    let status = roots[1].status.as_ref().expect("a status");
    assert_eq!((status.code, status.message.as_str()), (StatusCode::Error as i32, "frame.encoded: truncated"));
    assert_eq!(attribute(&roots[1].attributes, "error.type"), Some(&Value::StringValue("INVALID_ARGUMENT".into())));
}

#[test]
fn a_collector_that_hangs_holds_up_neither_frames_nor_the_exit() {
    // Accepts connections, in the kernel's backlog, and never says a word.
    let silent = StdListener::bind("127.0.0.1:0").expect("a free port");
    let telemetry = telemetry(format!("http://{}", silent.local_addr().expect("a bound address")));
    let count = camlens::telemetry::exporter::QUEUE_FRAMES as u64 + 2_000;
    let began = Instant::now();
    for sequence in 0..count {
        telemetry.frame(frame(&telemetry, sequence, "", FrameOutcome::Answered));
    }
    assert!(began.elapsed() < Duration::from_secs(2), "frames were held up: {:?}", began.elapsed());
    assert!(telemetry.lost_traces() > 0, "the queue is bounded");

    let began = Instant::now();
    telemetry.shutdown(Duration::from_millis(500)).expect_err("nobody took them");
    assert!(began.elapsed() < Duration::from_secs(2), "the exit was held up: {:?}", began.elapsed());
}

#[test]
fn a_collector_that_is_away_costs_the_traces_and_nothing_else() {
    let port = StdListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("a bound address").port();
    let telemetry = telemetry(format!("http://127.0.0.1:{port}"));
    telemetry.frame(frame(&telemetry, 1, "", FrameOutcome::Answered));
    let began = Instant::now();
    let flushed = telemetry.shutdown(Duration::from_millis(500));
    assert!(began.elapsed() < Duration::from_secs(2), "the exit was held up: {:?}", began.elapsed());
    assert!(flushed.is_err() || telemetry.lost_traces() == 1, "a trace without a taker is lost, and said to be");
}

#[test]
fn traces_flow_again_when_the_collector_comes_up_late() {
    let reserved = StdListener::bind("127.0.0.1:0").expect("a free port");
    let address = reserved.local_addr().expect("a bound address");
    drop(reserved);
    let telemetry = telemetry(address.to_string());
    let (sender, requests) = mpsc::channel();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    telemetry.frame(frame(&telemetry, 1, PARENT, FrameOutcome::Answered));
    std::thread::sleep(Duration::from_millis(1500));
    let service = TraceServiceServer::new(Inbox(sender));
    runtime.spawn(tonic::transport::Server::builder().add_service(service).serve(address));
    for sequence in 2..60 {
        telemetry.frame(frame(&telemetry, sequence, PARENT, FrameOutcome::Answered));
        if requests.recv_timeout(Duration::from_millis(500)).is_ok() {
            runtime.shutdown_background();
            return;
        }
    }
    panic!("no trace arrived within half a minute of the collector's start");
}
