//! The server's configuration, `camlens.toml`: one type, made of each part's.
//!
//! Every key has a default; an unknown key is an error that suggests the right one. The command line and the environment
//! are laid over it before [`Config::check`].

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::model::description::with_suggestion;
use crate::schedule::MAX_PRIORITY;
use crate::server::{AdminConfig, ServerConfig};
use crate::telemetry::TelemetryConfig;

/// The whole of `camlens.toml`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub server: ServerConfig,
    pub models: ModelsConfig,
    pub device: DeviceConfig,
    pub limits: LimitsConfig,
    pub telemetry: TelemetryConfig,
    pub admin: AdminConfig,
}

/// `[models]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelsConfig {
    /// `NAME/VERSION/model.pt2` below it; or one model's directory, one version's, a bare `.pt2`, or `builtin:identity`.
    pub repository: PathBuf,
    /// Weights and constants of one model.
    pub max_weight_bytes: u64,
}

impl Default for ModelsConfig {
    fn default() -> Self {
        ModelsConfig { repository: PathBuf::from("models"), max_weight_bytes: 8 << 30 }
    }
}

/// `[device]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeviceConfig {
    /// `cpu`.
    pub name: String,
    /// What the device is to be good at.
    pub performance: Performance,
    /// Threads that run models. 0: as many as there are cores.
    pub threads: usize,
    /// Threads that decode, prepare and render. 0: as many as there are cores.
    pub frame_threads: usize,
    /// Threads that talk to clients. 0: one for four cores, so that they do not take the cores from the frames.
    pub connection_threads: usize,
}

/// How [`DeviceConfig::threads`] are used. OpenVINO has hints of the same names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Performance {
    /// Each batch runs on all threads, one batch after the other: a frame is explained as soon as can be
    #[default]
    Latency,
    /// Each thread runs batches of its own: more frames a second from many cores, each of which takes longer
    Throughput,
}

/// How a device's threads are shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workers {
    /// Batches that run at once.
    pub count: usize,
    /// Threads of each.
    pub threads: usize,
}

impl DeviceConfig {
    /// On a machine with so many cores.
    pub fn workers(&self, cores: usize) -> Workers {
        let threads = if self.threads == 0 { cores } else { self.threads };
        match self.performance {
            Performance::Latency => Workers { count: 1, threads },
            Performance::Throughput => Workers { count: threads, threads: 1 },
        }
    }

    /// [`DeviceConfig::connection_threads`], on a machine with so many cores.
    pub fn connection_threads_of(&self, cores: usize) -> usize {
        if self.connection_threads == 0 { (cores / 4).max(1) } else { self.connection_threads }
    }
}

impl Default for DeviceConfig {
    fn default() -> Self {
        DeviceConfig {
            name: "cpu".to_owned(),
            performance: Performance::default(),
            threads: 0,
            frame_threads: 0,
            connection_threads: 0,
        }
    }
}

/// `[limits]`: a model's own, in its `model.toml`, can only tighten them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Bytes of a frame's payload.
    pub max_frame_bytes: u64,
    /// Width × height of a frame.
    pub max_frame_pixels: u64,
    /// Rows that run together at most; how many do is learned from the frames that come.
    pub max_batch: u32,
    /// Targets of one frame.
    pub max_targets: u32,
    /// Target layers, tensors or pictures that one frame may ask for, each.
    pub max_outputs: u32,
    /// Frames of a stream that were accepted and not answered: its credit.
    pub max_in_flight: u32,
    /// Bytes of a stream's answers that its client has not read yet.
    pub max_unsent_bytes: u64,
    /// Bytes of the answers of all streams that their clients have not read yet. Beyond that, each stream is bounded to an
    /// equal part.
    pub unsent_bytes: u64,
    /// Bytes of the messages that are being received at once; a client that begins another one waits.
    pub receiving_bytes: u64,
    /// Streams at once, in all.
    pub max_streams: u32,
    /// And from one IP address. Clients of a Unix socket, and all those behind one proxy, are told apart by nothing.
    pub max_streams_per_peer: u32,
    /// Frames in work at once, over all streams.
    pub queued_frames: u32,
    /// Bytes that they take: as they were sent, decoded, and as the model's input.
    pub queued_bytes: u64,
    /// Of these, the frames of one model,
    pub model_queued_frames: u32,
    /// and their bytes.
    pub model_queued_bytes: u64,
    /// Bytes of one stream's frames.
    pub stream_queued_bytes: u64,
    /// How long a batch that is not full waits for more frames while the device has nothing to do.
    pub max_batch_delay_ms: u32,
    /// The highest priority that a stream may ask for, 0 to 7.
    pub max_priority: u8,
    /// A stream that waits rises by one class of priority each time that this has passed, so that none starves.
    pub priority_ageing_ms: u32,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        LimitsConfig {
            max_frame_bytes: 32 << 20,
            max_frame_pixels: 64_000_000,
            max_batch: 8,
            max_targets: 16,
            max_outputs: 16,
            max_in_flight: 16,
            max_unsent_bytes: 128 << 20,
            unsent_bytes: 1 << 30,
            receiving_bytes: 256 << 20,
            max_streams: 1024,
            max_streams_per_peer: 1024,
            queued_frames: 1024,
            queued_bytes: 1 << 30,
            model_queued_frames: 1024,
            model_queued_bytes: 1 << 30,
            stream_queued_bytes: 256 << 20,
            max_batch_delay_ms: 0,
            max_priority: MAX_PRIORITY,
            priority_ageing_ms: 1000,
        }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: {problem}", path.display())]
    Parse { path: PathBuf, problem: String },
    /// A key, its value, and what is allowed.
    #[error("{key} = {value}: {allowed}")]
    Value { key: &'static str, value: String, allowed: String },
}

impl Config {
    /// Reads `camlens.toml`.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// Parses `camlens.toml`; `path` is for messages.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        toml::from_str(text)
            .map_err(|error| ConfigError::Parse { path: path.to_owned(), problem: with_suggestion(&error.to_string()) })
    }

    /// Finds values that cannot be. Call it when everything has been laid over.
    pub fn check(&self) -> Result<(), ConfigError> {
        let Config { server, models, device, limits, telemetry, admin: _ } = self;
        server.check()?;
        at_least_one("models.max_weight_bytes", models.max_weight_bytes)?;
        if device.name != "cpu" {
            return Err(value("device.name", format!("{:?}", device.name), "\"cpu\" is the only device built yet"));
        }
        let &DeviceConfig { name: _, performance: _, threads, frame_threads, connection_threads } = device;
        for (key, threads) in [
            ("device.threads", threads),
            ("device.frame_threads", frame_threads),
            ("device.connection_threads", connection_threads),
        ] {
            if threads > MAX_THREADS {
                return Err(value(key, threads, &format!("at most {MAX_THREADS}")));
            }
        }
        limits.check()?;
        if let Some(ratio) = telemetry.trace_ratio
            && !(0.0..=1.0).contains(&ratio)
        {
            return Err(value("telemetry.trace_ratio", ratio, "0 to 1"));
        }
        Ok(())
    }
}

const MAX_THREADS: usize = 1024;
/// What one gRPC message can hold, with room for what is around the payload.
const MAX_FRAME_BYTES: u64 = 1 << 30;

impl LimitsConfig {
    fn check(&self) -> Result<(), ConfigError> {
        let LimitsConfig {
            max_frame_bytes,
            max_frame_pixels,
            max_batch,
            max_targets,
            max_outputs,
            max_in_flight,
            max_unsent_bytes,
            unsent_bytes,
            receiving_bytes,
            max_streams,
            max_streams_per_peer,
            queued_frames,
            queued_bytes,
            model_queued_frames,
            model_queued_bytes,
            stream_queued_bytes,
            max_batch_delay_ms: _,
            max_priority,
            priority_ageing_ms,
        } = *self;
        for (key, number) in [
            ("limits.max_frame_bytes", max_frame_bytes),
            ("limits.max_frame_pixels", max_frame_pixels),
            ("limits.max_batch", max_batch.into()),
            ("limits.max_targets", max_targets.into()),
            ("limits.max_outputs", max_outputs.into()),
            ("limits.max_in_flight", max_in_flight.into()),
            ("limits.max_unsent_bytes", max_unsent_bytes),
            ("limits.unsent_bytes", unsent_bytes),
            ("limits.receiving_bytes", receiving_bytes),
            ("limits.max_streams", max_streams.into()),
            ("limits.max_streams_per_peer", max_streams_per_peer.into()),
            ("limits.queued_frames", queued_frames.into()),
            ("limits.queued_bytes", queued_bytes),
            ("limits.model_queued_frames", model_queued_frames.into()),
            ("limits.model_queued_bytes", model_queued_bytes),
            ("limits.stream_queued_bytes", stream_queued_bytes),
            ("limits.priority_ageing_ms", priority_ageing_ms.into()),
        ] {
            at_least_one(key, number)?;
        }
        if max_priority > MAX_PRIORITY {
            return Err(value("limits.max_priority", max_priority, &format!("at most {MAX_PRIORITY}")));
        }
        if max_frame_bytes > MAX_FRAME_BYTES {
            return Err(value("limits.max_frame_bytes", max_frame_bytes, &format!("at most {MAX_FRAME_BYTES}")));
        }
        Ok(())
    }
}

pub(crate) fn at_least_one(key: &'static str, number: u64) -> Result<(), ConfigError> {
    if number == 0 { Err(value(key, 0, "at least 1")) } else { Ok(()) }
}

pub(crate) fn value(key: &'static str, value: impl ToString, allowed: &str) -> ConfigError {
    ConfigError::Value { key, value: value.to_string(), allowed: allowed.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::ListenAddress;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("camlens.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_file_means_the_defaults_and_they_are_sound() {
        let config = parse("").expect("nothing is required");
        assert_eq!(config, Config::default());
        config.check().expect("sound defaults");
    }

    /// The block of deploy/README.md that begins with `[server]` and its `listen`.
    fn documented() -> &'static str {
        let readme = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/README.md"));
        let (_, from) = readme.split_once("defaults; keys in comments have none:\n\n```toml\n").expect("the block");
        from.split_once("```").expect("the block ends").0
    }

    #[test]
    fn the_documented_defaults_are_the_real_ones() {
        assert_eq!(parse(documented()), Ok(Config::default()));
    }

    #[test]
    fn every_key_is_documented_and_every_documented_key_exists() {
        let without_comments = documented().replace("\n# ", "\n");
        parse(&without_comments).expect("keys in comments are keys, too");
        let tables = serde_json::to_value(Config::default()).expect("it is data");
        let keys = |table: &serde_json::Value| table.as_object().cloned().unwrap_or_default();
        for (table, content) in keys(&tables).into_iter().chain([("server.tls".into(), tables["server"]["tls"].clone())]) {
            let start = without_comments.find(&format!("[{table}]\n")).expect("each table is documented");
            let body = &without_comments[start + 1..];
            let body = &body[..body.find("\n[").unwrap_or(body.len())];
            for (key, _) in keys(&content).into_iter().filter(|(_, value)| !value.is_object()) {
                assert!(body.contains(&format!("\n{key} = ")), "deploy/README.md lacks {table}.{key}");
            }
        }
    }

    #[test]
    fn threads_work_together_or_each_for_itself() {
        let workers = |text: &str| parse(text).expect("it is sound").device.workers(8);
        assert_eq!(workers(""), Workers { count: 1, threads: 8 });
        assert_eq!(workers("[device]\nthreads = 3"), Workers { count: 1, threads: 3 });
        assert_eq!(workers("[device]\nperformance = \"throughput\""), Workers { count: 8, threads: 1 });
        assert_eq!(workers("[device]\nperformance = \"throughput\"\nthreads = 3"), Workers { count: 3, threads: 1 });
        assert!(parse("[device]\nperformance = \"speed\"").expect_err("unknown").contains("throughput"));
    }

    #[test]
    fn an_unknown_key_is_an_error_that_suggests_the_right_one() {
        let error = parse("[limits]\nmax_frame_byte = 1\n").expect_err("a misspelt key");
        assert!(error.contains("did you mean `max_frame_bytes`?"), "{error}");
        let error = parse("[sever]\n").expect_err("a misspelt table");
        assert!(error.contains("did you mean `server`?"), "{error}");
    }

    #[test]
    fn values_that_cannot_be_are_refused_by_key() {
        for (text, key) in [
            ("[limits]\nmax_batch = 0", "limits.max_batch = 0"),
            ("[limits]\nmax_frame_bytes = 5000000000", "limits.max_frame_bytes = 5000000000"),
            ("[device]\nname = \"cuda\"", "device.name = \"cuda\""),
            ("[telemetry]\ntrace_ratio = 2.0", "telemetry.trace_ratio = 2"),
            ("[server]\nlisten = []", "server.listen = []"),
            ("[server]\nunix_socket_mode = 511000", "server.unix_socket_mode"),
            ("[server.tls]\ncertificate = \"tls.crt\"", "server.tls.key = nothing"),
            ("[server.tls]\nkey = \"tls.key\"", "server.tls.certificate = nothing"),
            ("[server.tls]\nclient_ca = \"ca.crt\"", "beside server.tls.client_ca"),
        ] {
            let error = parse(text).expect("it parses").check().expect_err(key).to_string();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn addresses_are_parsed_where_they_stand() {
        let config = parse("[server]\nlisten = [\"0.0.0.0:8033\", \"unix:/run/camlens.sock\"]").expect("two addresses");
        assert_eq!(config.server.listen[1], ListenAddress::Unix("/run/camlens.sock".into()));
        let error = parse("[server]\nlisten = [\"camlens\"]").expect_err("no address");
        assert!(error.contains("HOST:PORT"), "{error}");
    }

    #[test]
    fn a_configuration_survives_being_written_and_read() {
        let text = toml::to_string(&Config::default()).expect("it can be written");
        assert_eq!(parse(&text).expect("it can be read"), Config::default());
    }
}
