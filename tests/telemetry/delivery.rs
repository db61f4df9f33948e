//! Export to a collector that is available, slow, broken or away.

use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use axum::body::Bytes;
use axum::http::StatusCode;
use camlens::telemetry::export::QUEUE_ITEMS;
use camlens::telemetry::{FrameOutcome, FrameRecord, Progress, Stage, Telemetry, TelemetryConfig};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use prost::Message as _;

use super::collector::{Collector, PATIENCE, telemetry, text, to};

/// Records a frame that went through every stage, in 1, 2, 3, … milliseconds.
fn frame(telemetry: &Telemetry, sequence: u64) {
    let accepted = Instant::now();
    let progress = Progress::start(accepted);
    let mut now = accepted;
    for (index, stage) in Stage::ALL.into_iter().enumerate() {
        now += Duration::from_millis(index as u64 + 1);
        progress.mark(stage, now);
    }
    let record = FrameRecord {
        trace: telemetry.place("", ""),
        source: telemetry.call_source(("lite0", 1)),
        sequence,
        outcome: FrameOutcome::Answered,
        progress,
        accepted_at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        captured_at: None,
        payload_bytes: 0,
        policy: "",
        classes: Vec::new(),
        target_layers: Vec::new(),
        agreement: None,
        batch: None,
    };
    telemetry.frame(record, now);
}

fn lost(telemetry: &Telemetry) -> u64 {
    telemetry.lost().expect("there is an exporter").traces()
}

/// An address on which nothing listens.
fn unused_address() -> SocketAddr {
    StdListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("a bound address")
}

/// Checks that neither frames nor the exit wait for this collector, and that lost traces are counted.
fn holds_up_nothing(endpoint: String) {
    let telemetry = telemetry(&to(endpoint));
    let began = Instant::now();
    // More than the queue and a message in transfer hold together.
    for sequence in 0..3 * QUEUE_ITEMS as u64 {
        frame(&telemetry, sequence);
    }
    assert!(began.elapsed() < Duration::from_secs(2), "frames were held up: {:?}", began.elapsed());
    assert!(lost(&telemetry) > 0, "the queue is bounded");
    let began = Instant::now();
    let flushed = telemetry.shutdown(Duration::from_millis(500));
    assert!(began.elapsed() < Duration::from_secs(2), "the exit was held up: {:?}", began.elapsed());
    assert!(flushed.is_err() || lost(&telemetry) > 2_000, "nothing was delivered");
}

#[test]
fn both_protocols_bring_the_spans_and_who_sent_them() {
    for (collector, protocol) in [(Collector::start(), "grpc"), (Collector::over_http(), "http/protobuf")] {
        let config = TelemetryConfig { otlp_protocol: Some(protocol.to_owned()), ..to(collector.endpoint()) };
        let telemetry = telemetry(&config);
        frame(&telemetry, 7);
        telemetry.shutdown(PATIENCE).expect("the collector is there");
        assert_eq!(collector.spans().len(), 1 + Stage::ALL.len(), "{protocol}");
        let received = collector.received();
        let resource = received.traces[0].resource_spans[0].resource.as_ref().expect("a resource");
        assert_eq!(text(&resource.attributes, "service.name").as_deref(), Some("camlens"));
        assert!(text(&resource.attributes, "service.instance.id").is_some());
        assert_eq!(lost(&telemetry), 0);
    }
}

#[test]
fn a_collector_that_hangs_holds_up_nothing() {
    // The kernel's backlog accepts connections; nothing is ever sent.
    let silent = StdListener::bind("127.0.0.1:0").expect("a free port");
    holds_up_nothing(format!("http://{}", silent.local_addr().expect("a bound address")));
}

#[test]
fn a_collector_that_is_away_holds_up_nothing() {
    holds_up_nothing(format!("http://{}", unused_address()));
}

#[test]
fn a_collector_that_answers_garbage_holds_up_nothing() {
    use std::io::{Read, Write};
    let listener = StdListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("a bound address");
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let Ok(mut connection) = connection else { break };
            let _ = connection.read(&mut [0; 1024]);
            let _ = connection.write_all(&[0xff; 4096]);
        }
    });
    holds_up_nothing(format!("http://{address}"));
}

/// A collector over HTTP that gives these answers and repeats the last one; counts the spans of each message.
fn answering(answers: Vec<(StatusCode, Vec<u8>)>) -> (TelemetryConfig, Arc<Mutex<Vec<usize>>>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = Box::leak(Box::new(runtime.expect("a runtime")));
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a free port");
    let address = listener.local_addr().expect("a bound address");
    let sent = Arc::<Mutex<Vec<usize>>>::default();
    let received = Arc::clone(&sent);
    let pages = axum::Router::new().fallback(move |body: Bytes| {
        let request = ExportTraceServiceRequest::decode(body).expect("spans");
        let mut received = received.lock().expect("no panic");
        let answer = answers[received.len().min(answers.len() - 1)].clone();
        received.push(request.resource_spans[0].scope_spans[0].spans.len());
        async move { answer }
    });
    runtime.spawn(async move { axum::serve(listener, pages).await });
    (TelemetryConfig { otlp_protocol: Some("http/protobuf".to_owned()), ..to(format!("http://{address}")) }, sent)
}

#[test]
fn a_collector_over_http_that_answers_errors_holds_up_nothing() {
    let (config, _) = answering(vec![(StatusCode::INTERNAL_SERVER_ERROR, Vec::new())]);
    let telemetry = telemetry(&config);
    frame(&telemetry, 1);
    telemetry.shutdown(PATIENCE).expect("it was told at once");
    assert_eq!(lost(&telemetry), 1);
}

#[test]
fn a_message_that_a_busy_collector_turns_away_comes_again() {
    let (config, sent) = answering(vec![(StatusCode::SERVICE_UNAVAILABLE, Vec::new()), (StatusCode::OK, Vec::new())]);
    let telemetry = telemetry(&config);
    frame(&telemetry, 1);
    let began = Instant::now();
    while sent.lock().expect("no panic").len() < 2 {
        assert!(began.elapsed() < PATIENCE, "the message is not sent again");
        std::thread::sleep(Duration::from_millis(20));
    }
    telemetry.shutdown(PATIENCE).expect("nothing is left");
    assert_eq!(*sent.lock().expect("no panic"), [14, 14]);
    assert_eq!(lost(&telemetry), 0);
}

#[test]
fn a_collector_that_refuses_is_not_bothered_with_every_frame() {
    let (config, sent) = answering(vec![(StatusCode::BAD_REQUEST, Vec::new())]);
    let telemetry = telemetry(&config);
    let began = Instant::now();
    let mut frames = 0;
    while began.elapsed() < Duration::from_millis(2_500) {
        for _ in 0..100 {
            frame(&telemetry, frames);
            frames += 1;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let messages = sent.lock().expect("no panic").len();
    // At 0 s, at 1 s and perhaps at 2 s, if the pauses do not grow; without pauses there would be hundreds.
    assert!((1..=3).contains(&messages), "{messages} messages");
    telemetry.shutdown(PATIENCE).expect("it was told at once");
    assert_eq!(lost(&telemetry), frames, "each is counted");
}

#[test]
fn spans_that_a_collector_refuses_of_a_message_are_counted() {
    let refusal = ExportTraceServiceResponse {
        partial_success: Some(ExportTracePartialSuccess { rejected_spans: 14, error_message: "too old".to_owned() }),
    };
    let (config, _) = answering(vec![(StatusCode::OK, refusal.encode_to_vec())]);
    let telemetry = telemetry(&config);
    frame(&telemetry, 1);
    telemetry.shutdown(PATIENCE).expect("it was taken");
    assert_eq!(lost(&telemetry), 1);
}

#[test]
fn traces_flow_again_when_the_collector_comes_up_late() {
    let address = unused_address();
    let telemetry = telemetry(&to(address.to_string()));
    frame(&telemetry, 1);
    std::thread::sleep(Duration::from_millis(1500));
    let collector = Collector::start_at(address);
    let began = Instant::now();
    for sequence in 2.. {
        frame(&telemetry, sequence);
        std::thread::sleep(Duration::from_millis(200));
        if !collector.spans().is_empty() {
            return;
        }
        assert!(began.elapsed() < PATIENCE * 2, "no trace arrived although the collector is there");
    }
}

#[test]
fn metrics_are_pushed_again_and_again() {
    let collector = Collector::start();
    let config = TelemetryConfig { metrics_interval_s: Some(1), ..to(collector.endpoint()) };
    let telemetry = Arc::new(telemetry(&config));
    frame(&telemetry, 1);
    collector.wait_until("a second page of metrics", |received| received.metrics.len() >= 2);
    telemetry.shutdown(PATIENCE).expect("the collector is there");
}
