//! The server's configuration, `camlens.toml`: one type, with a type per table.
//!
//! Every key has a default, and an unknown key is an error that suggests the right one. The command line and the
//! environment override the file before [`Config::check`].

mod address;
mod device;
mod device_name;
mod error;
mod limits;
mod memory_limit;
mod server;
mod view;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::model::description::with_suggestion;
use crate::telemetry::TelemetryConfig;
use error::{at_least_one, value};

pub use address::ListenAddress;
pub use device::{DeviceConfig, KernelTiming, Workers};
pub use device_name::DeviceName;
pub use error::ConfigError;
pub use limits::LimitsConfig;
pub use memory_limit::MemoryLimit;
pub use server::{AdminConfig, ProbesConfig, ServerConfig, TlsConfig};
pub use view::ViewConfig;

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
    pub probes: ProbesConfig,
    pub view: ViewConfig,
}

/// `[models]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelsConfig {
    /// A directory with `NAME/VERSION/model.pt2`; or the directory of one model or one version, a `.pt2` file, or
    /// `builtin:identity`.
    pub repository: PathBuf,
    /// Bytes of the weights and constants of one model.
    pub max_weight_bytes: u64,
    /// How often the repository is looked at for models that have come, changed or gone. 0: never.
    pub poll_s: u32,
    /// The most memory of all models together, in bytes or as a share of the memory that the process may use. `None`:
    /// what the process may use.
    pub memory_limit: Option<MemoryLimit>,
    /// Seconds that open streams keep a model that was replaced or is no longer served. They then get `GoingAway`, and
    /// open again with the new one. `None`: they keep it until they end.
    pub stream_grace_s: Option<u32>,
}

impl Default for ModelsConfig {
    fn default() -> Self {
        ModelsConfig {
            repository: PathBuf::from("models"),
            max_weight_bytes: 8 << 30,
            poll_s: 0,
            memory_limit: None,
            stream_grace_s: None,
        }
    }
}

impl Config {
    /// Reads `camlens.toml`.
    ///
    /// # Errors
    /// A file that cannot be read, or what [`Config::parse`] finds.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// Parses `camlens.toml`; `path` is for error messages.
    ///
    /// # Errors
    /// Invalid TOML, an unknown key or a value of the wrong type.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        toml::from_str(text)
            .map_err(|error| ConfigError::Parse { path: path.to_owned(), problem: with_suggestion(&error.to_string()) })
    }

    /// Whether a port has a page of metrics.
    pub fn has_metrics_page(&self) -> bool {
        self.admin.listen.is_some() || self.probes.listen.is_some()
    }

    /// Checks the values. Call it once the command line and the environment have been applied.
    ///
    /// # Errors
    /// The first value that is not allowed, with its key and what is.
    pub fn check(&self) -> Result<(), ConfigError> {
        let Config { server, models, device, limits, telemetry, admin: _, probes: _, view } = self;
        server.check()?;
        at_least_one("models.max_weight_bytes", models.max_weight_bytes)?;
        let DeviceConfig {
            name: _,
            libraries: _,
            memory_limit: _,
            allow_tf32: _,
            threads,
            background: _,
            kernel_timing: _,
            cache: _,
            frame_threads,
            connection_threads,
            models: _,
        } = device;
        for (key, threads) in [
            ("device.threads", *threads),
            ("device.frame_threads", *frame_threads),
            ("device.connection_threads", *connection_threads),
        ] {
            if threads > MAX_THREADS {
                return Err(value(key, threads, &format!("at most {MAX_THREADS}")));
            }
        }
        limits.check()?;
        view.check()?;
        if let Some(ratio) = telemetry.trace_ratio
            && !(0.0..=1.0).contains(&ratio)
        {
            return Err(value("telemetry.trace_ratio", ratio, "0 to 1"));
        }
        Ok(())
    }
}

const MAX_THREADS: usize = 1024;
/// A gRPC message has at most 4 GiB; this leaves room for what surrounds the payload.
const MAX_FRAME_BYTES: u64 = 1 << 30;

#[cfg(test)]
mod tests {
    use super::*;

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
        for (table, content) in
            keys(&tables).into_iter().chain([("server.tls".into(), tables["server"]["tls"].clone())])
        {
            let start = without_comments.find(&format!("[{table}]\n")).expect("each table is documented");
            let body = &without_comments[start + 1..];
            let body = &body[..body.find("\n[").unwrap_or(body.len())];
            for (key, _) in keys(&content).into_iter().filter(|(_, value)| !value.is_object()) {
                assert!(body.contains(&format!("\n{key} = ")), "deploy/README.md lacks {table}.{key}");
            }
        }
    }

    #[test]
    fn several_batches_share_the_threads_unless_there_is_one() {
        let workers = |text: &str| parse(text).expect("it is sound").device.workers(8);
        for (threads, count) in [(1, 1), (2, 2), (3, 2), (8, 2), (9, 3), (32, 8)] {
            assert_eq!(workers(&format!("[device]\nthreads = {threads}")), Workers { count, threads });
        }
        assert_eq!(workers(""), Workers { count: 2, threads: 8 });
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
            ("[telemetry]\ntrace_ratio = 2.0", "telemetry.trace_ratio = 2"),
            ("[server]\nlisten = []", "server.listen = []"),
            ("[view]\nmax_viewers = 0", "view.max_viewers = 0"),
            ("[view]\nmax_rate_hz = 100.0", "view.max_rate_hz = 100"),
            ("[view]\nmax_side = 8", "view.max_side = 8"),
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
