//! Where telemetry goes: the configuration, and OpenTelemetry's standard variables where it says nothing.
//!
//! Headers hold secrets: they come from the environment alone, are marked as such, and no error and no log shows them.
//! The exporter for metrics reads those and the compression by itself.

use std::path::PathBuf;
use std::time::Duration;

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;
use thiserror::Error;

use crate::telemetry::TelemetryConfig;

/// How long the collector may take to answer, when nobody says.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How often metrics are pushed, when nobody says.
const METRICS_INTERVAL: Duration = Duration::from_secs(60);
/// Frames, batches and streams that wait for delivery, when nobody says; the one after that is lost.
pub const QUEUE_ITEMS: usize = 4096;
/// Spans in one message to the collector, give or take a frame's, when nobody says.
const BATCH_SPANS: usize = 512;
/// How long the first span of a message waits for others, when nobody says.
const BATCH_DELAY: Duration = Duration::from_secs(1);

/// A variable of the environment, or nothing.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// What is exported, and where to.
#[derive(Debug, Clone, PartialEq)]
pub struct ExportSettings {
    pub traces: Option<Destination>,
    pub metrics: Option<Destination>,
    pub metrics_interval: Duration,
    pub queue_items: usize,
    pub batch_spans: usize,
    pub batch_delay: Duration,
    /// The share of frames without a parent that are traced, 0 to 1.
    pub trace_ratio: f64,
}

/// A collector, for one signal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// For HTTP, with the signal's path.
    pub endpoint: String,
    pub protocol: Protocol,
    pub timeout: Duration,
    /// What each message has in its head beside what it must have.
    pub headers: HeaderMap,
    pub gzip: bool,
    /// The authorities that the collector's certificate may come from, PEM; none: the system's.
    pub certificate: Option<PathBuf>,
    /// Our own certificate and its key, PEM, for a collector that asks for one.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// How OTLP is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Grpc,
    HttpProtobuf,
}

/// A variable or a setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{name}={value}: {allowed}")]
pub struct SettingError {
    pub name: String,
    pub value: String,
    pub allowed: &'static str,
}

#[derive(Debug, Clone, Copy)]
struct Signal {
    /// As it stands in the variables' names.
    name: &'static str,
    path: &'static str,
}

const TRACES: Signal = Signal { name: "TRACES", path: "v1/traces" };
const METRICS: Signal = Signal { name: "METRICS", path: "v1/metrics" };

impl ExportSettings {
    /// What the configuration says, else what the environment says, else the defaults.
    ///
    /// # Errors
    /// The first variable whose value is none that is allowed.
    pub fn resolve(config: &TelemetryConfig, environment: Environment<'_>) -> Result<Self, SettingError> {
        let variables = Variables(environment);
        let interval = match config.metrics_interval_s {
            Some(seconds) => Duration::from_secs(seconds.into()),
            None => variables.milliseconds("OTEL_METRIC_EXPORT_INTERVAL", METRICS_INTERVAL)?,
        };
        let disabled = variables.text("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let traces = variables.destination(config, TRACES)?.filter(|_| !disabled);
        let metrics = variables.destination(config, METRICS)?.filter(|_| !disabled && !interval.is_zero());
        Ok(ExportSettings {
            traces,
            metrics,
            metrics_interval: interval,
            queue_items: variables.count("OTEL_BSP_MAX_QUEUE_SIZE", QUEUE_ITEMS)?,
            batch_spans: variables.count("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", BATCH_SPANS)?,
            batch_delay: variables.milliseconds("OTEL_BSP_SCHEDULE_DELAY", BATCH_DELAY)?,
            trace_ratio: match config.trace_ratio {
                Some(ratio) => ratio,
                None => variables.sampler()?,
            },
        })
    }
}

struct Variables<'a>(Environment<'a>);

impl Variables<'_> {
    /// An empty variable is one that is not set.
    fn text(&self, name: &str) -> Option<String> {
        (self.0)(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    /// The signal's own variable, else the one for all signals, with the name of the one that it was.
    fn of_signal(&self, signal: Signal, rest: &str) -> Option<(String, String)> {
        let own = format!("OTEL_EXPORTER_OTLP_{}_{rest}", signal.name);
        let all = format!("OTEL_EXPORTER_OTLP_{rest}");
        [own, all].into_iter().find_map(|name| self.text(&name).map(|value| (name, value)))
    }

    fn destination(&self, config: &TelemetryConfig, signal: Signal) -> Result<Option<Destination>, SettingError> {
        if !self.is_exported(signal)? {
            return Ok(None);
        }
        let protocol = self.protocol(config, signal)?;
        let own = self.text(&format!("OTEL_EXPORTER_OTLP_{}_ENDPOINT", signal.name));
        let all = config.otlp_endpoint.clone().filter(|endpoint| !endpoint.is_empty());
        let endpoint = match (all, own) {
            (Some(base), _) => self::endpoint(&base, protocol, Some(signal)),
            (None, Some(own)) => self::endpoint(&own, protocol, None),
            (None, None) => match self.text("OTEL_EXPORTER_OTLP_ENDPOINT") {
                Some(base) => self::endpoint(&base, protocol, Some(signal)),
                None => return Ok(None),
            },
        };
        let timeout = match self.of_signal(signal, "TIMEOUT") {
            Some((name, value)) => milliseconds(&name, &value)?,
            None => TIMEOUT,
        };
        let file = |rest| self.of_signal(signal, rest).map(|(_, path)| PathBuf::from(path));
        let client = file("CLIENT_CERTIFICATE").zip(file("CLIENT_KEY"));
        let (headers, gzip) = (self.headers(signal)?, self.gzip(signal)?);
        Ok(Some(Destination { endpoint, protocol, timeout, headers, gzip, certificate: file("CERTIFICATE"), client }))
    }

    fn headers(&self, signal: Signal) -> Result<HeaderMap, SettingError> {
        let mut headers = HeaderMap::new();
        let Some((name, value)) = self.of_signal(signal, "HEADERS") else { return Ok(headers) };
        for pair in value.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let Some((key, value)) = header(pair) else {
                let allowed = "NAME=VALUE, separated by commas; a value is percent-encoded";
                return Err(SettingError { name, value: "…".to_owned(), allowed });
            };
            headers.append(key, value);
        }
        Ok(headers)
    }

    fn gzip(&self, signal: Signal) -> Result<bool, SettingError> {
        let Some((name, value)) = self.of_signal(signal, "COMPRESSION") else { return Ok(false) };
        match value.to_ascii_lowercase().as_str() {
            "gzip" => Ok(true),
            "none" => Ok(false),
            _ => Err(SettingError { name, value, allowed: "gzip and none are known" }),
        }
    }

    /// Metrics may also be said to go to Prometheus: then nothing is pushed.
    fn is_exported(&self, signal: Signal) -> Result<bool, SettingError> {
        let name = format!("OTEL_{}_EXPORTER", signal.name);
        let Some(value) = self.text(&name) else { return Ok(true) };
        let mut otlp = false;
        for exporter in value.split(',').map(str::trim) {
            match exporter {
                "otlp" => otlp = true,
                "none" | "prometheus" => {}
                _ => return Err(SettingError { name, value, allowed: "otlp, prometheus and none are known" }),
            }
        }
        Ok(otlp)
    }

    fn protocol(&self, config: &TelemetryConfig, signal: Signal) -> Result<Protocol, SettingError> {
        let own = config.otlp_protocol.clone().map(|value| ("telemetry.otlp_protocol".to_owned(), value));
        let Some((name, value)) = own.or_else(|| self.of_signal(signal, "PROTOCOL")) else { return Ok(Protocol::Grpc) };
        match value.to_ascii_lowercase().as_str() {
            "grpc" => Ok(Protocol::Grpc),
            "http/protobuf" => Ok(Protocol::HttpProtobuf),
            _ => Err(SettingError { name, value, allowed: "grpc and http/protobuf are spoken" }),
        }
    }

    /// A client's own verdict always counts, so `parentbased_…` and the samplers without it are the same here.
    fn sampler(&self) -> Result<f64, SettingError> {
        let name = "OTEL_TRACES_SAMPLER";
        let Some(value) = self.text(name) else { return Ok(1.0) };
        let sampler = value.to_ascii_lowercase();
        match sampler.strip_prefix("parentbased_").unwrap_or(&sampler) {
            "always_on" => Ok(1.0),
            "always_off" => Ok(0.0),
            "traceidratio" => self.sampler_ratio(),
            _ => {
                let allowed = "always_on, always_off and traceidratio are known, and each with parentbased_ before it";
                Err(SettingError { name: name.to_owned(), value, allowed })
            }
        }
    }

    fn sampler_ratio(&self) -> Result<f64, SettingError> {
        let name = "OTEL_TRACES_SAMPLER_ARG";
        let Some(value) = self.text(name) else { return Ok(1.0) };
        match value.parse() {
            Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
            _ => Err(SettingError { name: name.to_owned(), value, allowed: "a share between 0 and 1" }),
        }
    }

    fn milliseconds(&self, name: &str, otherwise: Duration) -> Result<Duration, SettingError> {
        self.text(name).map_or(Ok(otherwise), |value| milliseconds(name, &value))
    }

    fn count(&self, name: &str, otherwise: usize) -> Result<usize, SettingError> {
        let Some(value) = self.text(name) else { return Ok(otherwise) };
        match value.parse() {
            Ok(count) if (1..=1 << 20).contains(&count) => Ok(count),
            _ => Err(SettingError { name: name.to_owned(), value, allowed: "a number from 1 to 1048576" }),
        }
    }
}

/// `NAME=VALUE`, as in W3C's baggage but without properties.
fn header(pair: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = pair.split_once('=')?;
    let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
    let mut value = HeaderValue::from_str(&value).ok()?;
    value.set_sensitive(true);
    Some((name.trim().parse().ok()?, value))
}

fn milliseconds(name: &str, value: &str) -> Result<Duration, SettingError> {
    value.parse().map(Duration::from_millis).map_err(|_| SettingError {
        name: name.to_owned(),
        value: value.to_owned(),
        allowed: "a number of milliseconds",
    })
}

/// With a scheme; for HTTP, a base gets the signal's path.
fn endpoint(given: &str, protocol: Protocol, base_of: Option<Signal>) -> String {
    let with_scheme = if given.contains("://") { given.to_owned() } else { format!("http://{given}") };
    match (protocol, base_of) {
        (Protocol::HttpProtobuf, Some(signal)) => format!("{}/{}", with_scheme.trim_end_matches('/'), signal.path),
        _ => with_scheme,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(config: &TelemetryConfig, variables: &[(&str, &str)]) -> Result<ExportSettings, SettingError> {
        let known: Vec<(String, String)> = variables.iter().map(|&(n, v)| (n.to_owned(), v.to_owned())).collect();
        let environment =
            move |name: &str| known.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        ExportSettings::resolve(config, &environment)
    }

    fn endpoints(settings: &ExportSettings) -> (Option<&str>, Option<&str>) {
        let [traces, metrics] =
            [&settings.traces, &settings.metrics].map(|to| to.as_ref().map(|to| to.endpoint.as_str()));
        (traces, metrics)
    }

    #[test]
    fn without_an_endpoint_nothing_is_exported() {
        let settings = resolve(&TelemetryConfig::default(), &[]).expect("defaults");
        assert_eq!((settings.traces, settings.metrics, settings.trace_ratio), (None, None, 1.0));
    }

    #[test]
    fn http_endpoints_get_their_signals_path_unless_they_are_the_signals_own() {
        let variables = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4318/otlp/"),
            ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://other/push"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ];
        let settings = resolve(&TelemetryConfig::default(), &variables).expect("all is well");
        assert_eq!(endpoints(&settings), (Some("https://collector:4318/otlp/v1/traces"), Some("http://other/push")));
    }

    #[test]
    fn the_configuration_wins_over_the_environment() {
        let config = TelemetryConfig {
            otlp_endpoint: Some("mine:4317".to_owned()),
            trace_ratio: Some(0.5),
            metrics_interval_s: Some(7),
            ..TelemetryConfig::default()
        };
        let variables = [
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://other:4317"),
            ("OTEL_TRACES_SAMPLER", "always_off"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "1000"),
        ];
        let settings = resolve(&config, &variables).expect("all is well");
        assert_eq!(endpoints(&settings), (Some("http://mine:4317"), Some("http://mine:4317")));
        assert_eq!((settings.trace_ratio, settings.metrics_interval), (0.5, Duration::from_secs(7)));
    }

    #[test]
    fn signals_can_be_switched_off_one_by_one_and_all_at_once() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317");
        let exported = |variable: (&str, &str)| {
            let settings = resolve(&TelemetryConfig::default(), &[endpoint, variable]).expect("all is well");
            (settings.traces.is_some(), settings.metrics.is_some())
        };
        assert_eq!(exported(("OTEL_TRACES_EXPORTER", "none")), (false, true));
        assert_eq!(exported(("OTEL_METRICS_EXPORTER", "prometheus")), (true, false));
        assert_eq!(exported(("OTEL_METRICS_EXPORTER", "otlp,prometheus")), (true, true));
        assert_eq!(exported(("OTEL_SDK_DISABLED", "true")), (false, false));
        assert_eq!(exported(("OTEL_METRIC_EXPORT_INTERVAL", "0")), (true, false));
    }

    #[test]
    fn the_samplers_of_the_specification_are_known() {
        let ratio = |sampler, argument| {
            let variables = [("OTEL_TRACES_SAMPLER", sampler), ("OTEL_TRACES_SAMPLER_ARG", argument)];
            resolve(&TelemetryConfig::default(), &variables).map(|settings| settings.trace_ratio)
        };
        assert_eq!(ratio("parentbased_traceidratio", "0.25"), Ok(0.25));
        assert_eq!(ratio("traceidratio", ""), Ok(1.0));
        assert_eq!(ratio("always_off", "0.25"), Ok(0.0));
        let error = ratio("jaeger_remote", "").expect_err("not ours").to_string();
        assert!(error.starts_with("OTEL_TRACES_SAMPLER=jaeger_remote: always_on"), "{error}");
        assert!(ratio("traceidratio", "2").is_err());
    }

    #[test]
    fn a_value_that_is_none_names_its_variable() {
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "-1"),
        ] {
            let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317"), (name, value)];
            let error = resolve(&TelemetryConfig::default(), &variables).expect_err(name);
            assert_eq!((error.name.as_str(), error.value.as_str()), (name, value));
        }
    }

    #[test]
    fn headers_are_decoded_and_never_shown() {
        let headers = |value| {
            let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317"), ("OTEL_EXPORTER_OTLP_HEADERS", value)];
            resolve(&TelemetryConfig::default(), &variables).map(|settings| settings.traces.expect("traces").headers)
        };
        let known = headers("Authorization=Bearer%20hush,x-tenant = a ,").expect("all is well");
        assert_eq!(known["authorization"], "Bearer hush");
        assert_eq!(known["x-tenant"], "a");
        assert!(!format!("{known:?}").contains("hush"));
        for bad in ["hush", "a b=hush", "x=hush%0a"] {
            let error = headers(bad).expect_err(bad).to_string();
            assert!(error.starts_with("OTEL_EXPORTER_OTLP_HEADERS=…: NAME=VALUE"), "{error}");
        }
    }

    #[test]
    fn certificates_come_from_the_signals_variables_or_from_those_for_all() {
        let variables = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://c:4317"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
            ("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "/traces-ca.pem"),
            ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/me.pem"),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/me.key"),
        ];
        let settings = resolve(&TelemetryConfig::default(), &variables).expect("all is well");
        let (traces, metrics) = (settings.traces.expect("traces"), settings.metrics.expect("metrics"));
        assert_eq!(traces.certificate, Some("/traces-ca.pem".into()));
        assert_eq!(metrics.certificate, Some("/ca.pem".into()));
        assert_eq!(traces.client, Some(("/me.pem".into(), "/me.key".into())));
    }
}
