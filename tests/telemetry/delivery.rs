//! The way to the collector, when it is there and when it is not.

use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use camlens::telemetry::export::QUEUE_ITEMS;
use camlens::telemetry::{FrameOutcome, FrameRecord, Progress, Stage, Telemetry, TelemetryConfig};

use super::collector::{Collector, PATIENCE, telemetry, text, to};

/// A frame that went through every stage in 1, 2, 3, … milliseconds.
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
        payload_bytes: 0,
        policy: "",
        classes: Vec::new(),
        target_layers: Vec::new(),
        batch: None,
    };
    telemetry.frame(record, now);
}

fn lost(telemetry: &Telemetry) -> u64 {
    telemetry.lost().expect("there is an exporter").traces()
}

/// Of an address where nobody listens.
fn nobody() -> SocketAddr {
    StdListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("a bound address")
}

/// Neither frames nor the exit wait for such a collector, and what it does not take is counted.
fn holds_up_nothing(endpoint: String) {
    let telemetry = telemetry(&to(endpoint));
    let began = Instant::now();
    // As many as wait, as many as are on their way, and more.
    for sequence in 0..3 * QUEUE_ITEMS as u64 {
        frame(&telemetry, sequence);
    }
    assert!(began.elapsed() < Duration::from_secs(2), "frames were held up: {:?}", began.elapsed());
    assert!(lost(&telemetry) > 0, "the queue is bounded");
    let began = Instant::now();
    let flushed = telemetry.shutdown(Duration::from_millis(500));
    assert!(began.elapsed() < Duration::from_secs(2), "the exit was held up: {:?}", began.elapsed());
    assert!(flushed.is_err() || lost(&telemetry) > 2_000, "nobody took them");
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
    // Accepts connections, in the kernel's backlog, and never says a word.
    let silent = StdListener::bind("127.0.0.1:0").expect("a free port");
    holds_up_nothing(format!("http://{}", silent.local_addr().expect("a bound address")));
}

#[test]
fn a_collector_that_is_away_holds_up_nothing() {
    holds_up_nothing(format!("http://{}", nobody()));
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

#[test]
fn a_collector_over_http_that_answers_errors_holds_up_nothing() {
    let endpoint = {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = Box::leak(Box::new(runtime.expect("a runtime")));
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a free port");
        let address = listener.local_addr().expect("a bound address");
        let pages = axum::Router::new().fallback(|| async { axum::http::StatusCode::INTERNAL_SERVER_ERROR });
        runtime.spawn(async move { axum::serve(listener, pages).await });
        format!("http://{address}")
    };
    let config = TelemetryConfig { otlp_protocol: Some("http/protobuf".to_owned()), ..to(endpoint) };
    let telemetry = telemetry(&config);
    frame(&telemetry, 1);
    telemetry.shutdown(PATIENCE).expect("it was told at once");
    assert_eq!(lost(&telemetry), 1);
}

#[test]
fn traces_flow_again_when_the_collector_comes_up_late() {
    let address = nobody();
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
