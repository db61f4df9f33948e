//! Metrics as Prometheus and a collector read them, compared with the table of metrics.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use camlens::proto::v1;
use camlens::proto::v1::explain_stream_request::Message as Request;
use camlens::proto::v1::stream_policy::Overflow;
use camlens::telemetry::metrics::catalogue::{Kind, METRICS, Metric};
use camlens::telemetry::{Telemetry, TelemetryConfig};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{Metric as Exported, NumberDataPoint, number_data_point};

use super::admin;
use super::collector::{Collector, flush, text, to};
use super::conversation::{Conversation, open};
use super::images;
use super::server::TestServer;

/// A server with three answered frames, one refused frame and one open stream.
async fn busy(telemetry: &Telemetry) -> (TestServer, Conversation) {
    let server = TestServer::start_with_telemetry(telemetry.clone(), |config| {
        config.admin.listen = Some("127.0.0.1:0".to_owned());
    })
    .await;
    let (mut stream, _) = Conversation::open(&mut server.explain().await, open(Overflow::Block)).await;
    stream.frame(1).await;
    let top = stream.explanation().await.predictions[0].class_index;
    // The first frame's pixels again, with what was predicted of them, and with another class.
    // One of them was taken now, the other one half a century ago.
    let (now, old) = (SystemTime::now(), SystemTime::UNIX_EPOCH);
    for (sequence, class, taken) in [(2, top, now), (3, (top + 5) % 10, old)] {
        let kind = Some(v1::expected_prediction::Kind::ClassIndex(class));
        let capture_time = Some(taken.into());
        let expected = Some(v1::ExpectedPrediction { kind, ..Default::default() });
        stream.send(Request::Frame(v1::Frame { sequence, expected, capture_time, ..images::frame(1) })).await;
        stream.explanation().await;
    }
    stream.send(Request::Frame(images::encoded(4, b"no image".to_vec()))).await;
    stream.frame_error().await;
    server.models().await.list_models(v1::ListModelsRequest::default()).await.expect("the models");
    // The last frame ends when the transport has taken its answer.
    tokio::time::sleep(Duration::from_millis(200)).await;
    (server, stream)
}

/// The name in Prometheus.
fn prometheus_name(metric: &Metric) -> String {
    let unit = match metric.unit {
        "s" => "_seconds",
        "By" => "_bytes",
        _ => "",
    };
    let total = if metric.kind == Kind::Counter { "_total" } else { "" };
    format!("{}{unit}{total}", metric.name.replace('.', "_"))
}

/// Metrics that the server of this test does not record. `tests/device` reads those of a CUDA device.
const NOT_HERE: [&str; 4] = ["camlens.frame.dropped", "camlens.telemetry.lost", OF_CUDA[0], OF_CUDA[1]];
const OF_CUDA: [&str; 2] = ["camlens.device.memory.usage", "camlens.device.memory.limit"];

#[tokio::test(flavor = "multi_thread")]
async fn the_page_has_the_tables_metrics_and_counts_the_frames() {
    let telemetry = Telemetry::start(&TelemetryConfig::default(), true).expect("no collector is needed");
    let (server, stream) = busy(&telemetry).await;
    let (status, page) = admin::get(&server, "/metrics").await;
    assert_eq!(status, 200);
    for metric in METRICS.into_iter().filter(|metric| !NOT_HERE.contains(&metric.name)) {
        let name = prometheus_name(metric);
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::UpDownCounter => "gauge",
            Kind::Histogram(_) => "histogram",
        };
        assert!(page.contains(&format!("# TYPE {name} {kind}\n")), "no {name} on the page\n{page}");
        assert!(page.contains(&format!("# HELP {name} {}", metric.description)), "{name} is not explained");
    }
    let value = |line: &str| {
        let found = page.lines().find_map(|each| each.strip_prefix(line)?.strip_prefix(' '));
        found.unwrap_or_else(|| panic!("no {line} on the page\n{page}")).to_owned()
    };
    let of_model = r#"camlens_model_name="small",camlens_model_version="1""#;
    assert_eq!(value(&format!(r#"camlens_frame_ended_total{{{of_model},camlens_outcome="answered"}}"#)), "3");
    let failed =
        format!(r#"camlens_frame_ended_total{{{of_model},camlens_outcome="failed",error_type="INVALID_ARGUMENT"}}"#);
    assert_eq!(value(&failed), "1");
    let forward = format!(r#"camlens_frame_stage_duration_seconds_count{{{of_model},camlens_stage="forward"}}"#);
    assert_eq!(value(&forward), "3");
    assert_eq!(value(&format!("camlens_frame_age_seconds_count{{{of_model}}}")), "1", "the plausible one");
    for agreement in ["agrees", "disagrees"] {
        let compared = format!(r#"camlens_prediction_agreement_total{{camlens_agreement="{agreement}",{of_model}}}"#);
        assert_eq!(value(&compared), "1");
    }
    assert_eq!(value("camlens_stream_active"), "1");
    assert_eq!(value("camlens_connection_active"), "1");
    let processor_s = |mode| value(&format!(r#"process_cpu_time_seconds_total{{cpu_mode="{mode}"}}"#));
    let seconds = ["user", "system"].map(|mode| processor_s(mode).parse::<f64>().expect("a number"));
    assert!(seconds.iter().sum::<f64>() > 0.0, "{seconds:?}");
    drop(stream);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_label_is_a_clients_word() {
    let telemetry = Telemetry::start(&TelemetryConfig::default(), true).expect("no collector is needed");
    let (server, stream) = busy(&telemetry).await;
    let (_, page) = admin::get(&server, "/metrics").await;
    // The stream's source, a name that the client chose.
    assert!(!page.contains("a test"), "{page}");
    let known: BTreeSet<String> = METRICS
        .into_iter()
        .flat_map(|metric| metric.attributes)
        .map(|name| name.replace('.', "_"))
        .chain(["le".to_owned()])
        .collect();
    for line in page.lines().filter(|line| !line.starts_with('#') && !line.starts_with("target_info")) {
        let Some((_, labels)) = line.split_once('{') else { continue };
        let labels = labels.rsplit_once('}').expect("they are closed").0;
        for label in labels.split("\",").filter_map(|pair| pair.split_once('=')) {
            assert!(known.contains(label.0), "{} is not in the table: {line}", label.0);
        }
    }
    drop(stream);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_is_pushed_the_tables_metrics_with_their_units() {
    let collector = Collector::start();
    let config = TelemetryConfig { metrics_interval_s: Some(3600), ..to(collector.endpoint()) };
    let telemetry = Telemetry::start(&config, false).expect("the configuration is in order");
    let (server, stream) = busy(&telemetry).await;
    // The last values are pushed at the end, whatever the interval.
    flush(&telemetry).await;
    drop((stream, server));

    let metrics = collector.last_metrics();
    let exported: BTreeSet<&str> = metrics.iter().map(|metric| metric.name.as_str()).collect();
    let table: BTreeSet<&str> = METRICS.into_iter().map(|metric| metric.name).collect();
    let is_here = |name: &&&str| **name != "camlens.frame.dropped" && !OF_CUDA.contains(*name);
    let missing: Vec<_> = table.difference(&exported).filter(is_here).collect();
    assert!(missing.is_empty(), "{missing:?} are not exported");
    let unknown: Vec<_> = exported.difference(&table).collect();
    assert!(unknown.is_empty(), "{unknown:?} are not in the table");
    for metric in &metrics {
        let entry = METRICS.into_iter().find(|entry| entry.name == metric.name).expect("it is in the table");
        assert_eq!((metric.unit.as_str(), metric.description.as_str()), (entry.unit, entry.description));
        let kind_fits = match (&metric.data, entry.kind) {
            (Some(Data::Sum(sum)), Kind::Counter) => sum.is_monotonic,
            (Some(Data::Sum(sum)), Kind::UpDownCounter) => !sum.is_monotonic,
            (Some(Data::Histogram(histogram)), Kind::Histogram(bounds)) => {
                histogram.data_points.iter().all(|point| point.explicit_bounds == bounds)
            }
            _ => false,
        };
        assert!(kind_fits, "{} is no {}", metric.name, entry.kind.name());
    }
    assert_eq!(answered(&metrics), 3.0);
}

fn answered(metrics: &[Exported]) -> f64 {
    let ended = metrics.iter().find(|metric| metric.name == "camlens.frame.ended").expect("frames have ended");
    let Some(Data::Sum(sum)) = &ended.data else { panic!("a sum") };
    let is_answered =
        |point: &&NumberDataPoint| text(&point.attributes, "camlens.outcome").as_deref() == Some("answered");
    match sum.data_points.iter().find(is_answered).expect("some were answered").value {
        Some(number_data_point::Value::AsInt(count)) => count as f64,
        Some(number_data_point::Value::AsDouble(count)) => count,
        None => panic!("a value"),
    }
}

/// Words that look like the name of one of camlens's metrics in Prometheus.
fn metric_names(text: &str) -> BTreeSet<&str> {
    let prefixes = ["camlens_", "process_", "rpc_"];
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    words.filter(|word| prefixes.iter().any(|prefix| word.starts_with(prefix))).collect()
}

#[test]
fn the_dashboard_and_the_alerts_ask_for_metrics_and_labels_that_there_are() {
    let mut known: BTreeSet<String> =
        METRICS.into_iter().flat_map(|metric| metric.attributes).map(|name| name.replace('.', "_")).collect();
    for metric in METRICS {
        let name = prometheus_name(metric);
        if let Kind::Histogram(_) = metric.kind {
            known.extend(["_bucket", "_sum", "_count"].map(|part| format!("{name}{part}")));
        }
        known.insert(name);
    }
    let dashboard = include_str!("../../deploy/grafana/camlens.json");
    let alerts = include_str!("../../deploy/prometheus/alerts.yaml");
    for text in [dashboard, alerts] {
        let asked = metric_names(text);
        assert!(asked.len() > 5);
        for name in asked {
            assert!(known.contains(name), "there is no {name}");
        }
    }
}

#[test]
fn every_panel_and_every_alert_says_what_to_do() {
    let dashboard: serde_json::Value =
        serde_json::from_str(include_str!("../../deploy/grafana/camlens.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        assert!(panel["description"].as_str().is_some_and(|text| text.len() > 40), "{}", panel["title"]);
        assert!(panel["targets"].as_array().is_some_and(|targets| !targets.is_empty()), "{}", panel["title"]);
    }
    let alerts = include_str!("../../deploy/prometheus/alerts.yaml");
    let count = |word: &str| alerts.matches(word).count();
    assert!(count("- alert: ") > 5);
    assert_eq!((count("summary: "), count("action: ")), (count("- alert: "), count("- alert: ")));
}
