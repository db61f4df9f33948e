//! `camlens serve`: the sidecar.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::device_args::DeviceArgs;
use super::failure::{Exit, Failure};
use super::no_models;
use crate::config::{Config, KernelTiming, ListenAddress, MemoryLimit};
use crate::process;
use crate::resources::Machine;
use crate::server::{Ended, ListenError, Server, Shutdown, StartError};
use crate::telemetry::Telemetry;

/// Serve models over gRPC until SIGTERM or SIGINT
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  camlens serve --models models
  camlens serve --models models --listen unix:/run/camlens.sock --listen 127.0.0.1:8033
  camlens serve --models models --listen 0.0.0.0:8033 --tls-certificate tls.crt --tls-key tls.key --token-file tokens
  camlens serve --models models --poll 5 --admin-listen 127.0.0.1:9464
  camlens serve --config /etc/camlens.toml --otlp-endpoint http://collector:4317

Flags take precedence over environment variables, those over the configuration file, and the file over the defaults.
The first signal drains the server: it answers the frames that it has accepted. A second signal stops it immediately.")]
pub struct ServeCommand {
    /// Configuration file in TOML, such as camlens.toml [default: none]
    #[arg(long, env = "CAMLENS_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    /// Models to serve: a directory of NAME/VERSION/model.pt2, one model's directory, a .pt2 file, or builtin:identity
    /// [default: models]
    #[arg(long, alias = "model-repository", env = "CAMLENS_MODELS", value_name = "PATH")]
    models: Option<PathBuf>,

    /// Interval at which the models are looked at: what has come or changed is served without a restart; 0: never
    /// [default: 0]
    #[arg(long, env = "CAMLENS_POLL", value_name = "SECONDS")]
    poll: Option<u32>,

    /// Most memory of all models together, such as 6GiB or 50%: the one that was used the longest time ago leaves it
    /// until it is asked for again [default: what the process may use]
    #[arg(long, env = "CAMLENS_MODELS_MEMORY", value_name = "BYTES")]
    models_memory: Option<MemoryLimit>,

    /// Address to listen on: HOST:PORT or unix:/PATH; may be repeated [default: 127.0.0.1:8033]
    #[arg(long, env = "CAMLENS_LISTEN", value_name = "ADDRESS", value_delimiter = ',')]
    listen: Vec<ListenAddress>,

    /// Permission bits of the Unix sockets, octal [default: 660]
    #[arg(long, env = "CAMLENS_UNIX_SOCKET_MODE", value_name = "MODE", value_parser = octal)]
    unix_socket_mode: Option<u32>,

    /// The server's certificate, followed by the intermediate certificates, PEM. Every TCP address then uses TLS
    #[arg(long, env = "CAMLENS_TLS_CERTIFICATE", value_name = "FILE", help_heading = "Security")]
    tls_certificate: Option<PathBuf>,

    /// The certificate's private key, PEM. Both files are reloaded when they change
    #[arg(long, env = "CAMLENS_TLS_KEY", value_name = "FILE", help_heading = "Security")]
    tls_key: Option<PathBuf>,

    /// Certificate authorities of the clients, PEM. Every TLS client then needs a certificate
    #[arg(long, env = "CAMLENS_TLS_CLIENT_CA", value_name = "FILE", help_heading = "Security")]
    tls_client_ca: Option<PathBuf>,

    /// File of bearer tokens, one per line: TOKEN or NAME: TOKEN. Every call except health checks then needs one of
    /// them. The file is reloaded when it changes
    #[arg(long, env = "CAMLENS_TOKEN_FILE", value_name = "FILE", help_heading = "Security")]
    token_file: Option<PathBuf>,

    /// Allow TCP beyond loopback without TLS: anybody on the network can read the frames and the answers
    #[arg(
        long,
        env = "CAMLENS_INSECURE",
        help_heading = "Security",
        value_parser = clap::builder::FalseyValueParser::new()
    )]
    insecure: bool,

    /// Time that accepted frames have to finish after the first signal, in seconds [default: 20]
    #[arg(long, env = "CAMLENS_DRAIN_TIMEOUT", value_name = "SECONDS")]
    drain_timeout: Option<u32>,

    #[command(flatten)]
    device: DeviceArgs,

    /// Number of threads that run models on the processor; 0: one per core [default: 0]
    #[arg(long, env = "CAMLENS_THREADS", value_name = "N")]
    threads: Option<usize>,

    /// Explain with the processor time that other programs leave, as a neighbour of a model server should
    #[arg(long, env = "CAMLENS_BACKGROUND", value_parser = clap::builder::FalseyValueParser::new())]
    background: bool,

    /// When the kernels of a model's operations are timed, to find the fastest [default: while-serving]
    #[arg(long, env = "CAMLENS_KERNEL_TIMING", value_enum)]
    kernel_timing: Option<KernelTiming>,

    /// Folder where what was measured of kernels is kept, so that the next start measures nothing [default: none]
    #[arg(long, env = "CAMLENS_CACHE", value_name = "DIR")]
    cache: Option<PathBuf>,

    /// Number of threads that decode and preprocess frames and render answers; 0: one per core [default: 0]
    #[arg(long, env = "CAMLENS_FRAME_THREADS", value_name = "N")]
    frame_threads: Option<usize>,

    /// Number of threads that serve connections; 0: one per four cores [default: 0]
    #[arg(long, env = "CAMLENS_CONNECTION_THREADS", value_name = "N")]
    connection_threads: Option<usize>,

    /// Largest number of frames in a batch [default: 8]
    #[arg(long, env = "CAMLENS_MAX_BATCH", value_name = "N")]
    max_batch: Option<u32>,

    /// Largest payload of a frame, in bytes [default: 33554432]
    #[arg(long, env = "CAMLENS_MAX_FRAME_BYTES", value_name = "BYTES")]
    max_frame_bytes: Option<u64>,

    /// Largest number of frames of one stream in flight: its credit [default: 16]
    #[arg(long, env = "CAMLENS_MAX_IN_FLIGHT", value_name = "N")]
    max_in_flight: Option<u32>,

    /// OpenTelemetry collector that receives traces and metrics, such as http://HOST:4317 [default:
    /// OTEL_EXPORTER_OTLP_ENDPOINT]
    #[arg(long, env = "CAMLENS_OTLP_ENDPOINT", value_name = "URL", help_heading = "Telemetry")]
    otlp_endpoint: Option<String>,

    /// Transport of OTLP: grpc or http/protobuf [default: OTEL_EXPORTER_OTLP_PROTOCOL, else grpc]
    #[arg(long, env = "CAMLENS_OTLP_PROTOCOL", value_name = "PROTOCOL", help_heading = "Telemetry")]
    otlp_protocol: Option<String>,

    /// Share of frames to trace where the client sends no sampling decision, 0 to 1 [default: OTEL_TRACES_SAMPLER, else
    /// 1]
    #[arg(long, env = "CAMLENS_TRACE_RATIO", value_name = "RATIO", help_heading = "Telemetry")]
    trace_ratio: Option<f64>,

    /// Also trace every frame that takes longer than this, in milliseconds [default: none]
    #[arg(long, env = "CAMLENS_TRACE_SLOWER_THAN", value_name = "MILLISECONDS", help_heading = "Telemetry")]
    trace_slower_than: Option<u32>,

    /// Address of the admin server, HOST:PORT: /metrics, /livez, /readyz, /version, /config and /log in plain HTTP
    /// [default: none]
    #[arg(long, env = "CAMLENS_ADMIN_LISTEN", value_name = "ADDRESS", help_heading = "Telemetry")]
    admin_listen: Option<String>,

    /// Address of the probe port, HOST:PORT: health over HTTP and gRPC, and /metrics, in plain text, also beyond
    /// loopback [default: none]
    #[arg(long, env = "CAMLENS_PROBE_LISTEN", value_name = "ADDRESS", help_heading = "Telemetry")]
    probe_listen: Option<String>,

    /// Address of the live page, HOST:PORT: it shows the streams' frames and maps to whoever may open it [default:
    /// none]
    #[arg(long, env = "CAMLENS_VIEW_LISTEN", value_name = "ADDRESS", help_heading = "Live page")]
    view_listen: Option<String>,

    /// File of tokens that open the live page, one per line; needed beyond loopback [default: --token-file]
    #[arg(long, env = "CAMLENS_VIEW_TOKEN_FILE", value_name = "FILE", help_heading = "Live page")]
    view_token_file: Option<PathBuf>,
}

fn octal(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    u32::from_str_radix(digits, 8).map_err(|_| format!("`{text}` is not an octal number such as 660"))
}

/// Time that the last traces and metrics have to reach their collector.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

impl ServeCommand {
    pub fn run(self) -> Result<(), Failure> {
        let config = self.overlay()?;
        config.check().map_err(|error| Failure::usage(error.to_string()))?;
        process::keep_free_memory();
        // Exporters are built before the runtime and flushed after it: they can hang inside a busy runtime.
        let telemetry = Telemetry::start(&config.telemetry, config.has_metrics_page())
            .map_err(|error| Failure::usage(error.to_string()))?;
        let cores = Machine::this().resources().threads();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(config.device.connection_threads_of(cores))
            .enable_all()
            .build()
            .map_err(|error| Failure::failed(format!("cannot start the server: {error}")))?;
        let ended = runtime.block_on(serve(&config, telemetry.clone()));
        runtime.shutdown_timeout(Duration::from_secs(1));
        if let Err(error) = telemetry.shutdown(FLUSH_TIMEOUT) {
            tracing::warn!(%error, "the last telemetry could not be exported");
        }
        match ended? {
            Ended::Drained => Ok(()),
            Ended::DeviceLost => Err(Failure::failed(
                "a device failed in a way that lasts until the process ends; start the server again",
            )),
            Ended::Forced => {
                Err(Failure::failed("a second signal stopped the server before it had answered every accepted frame"))
            }
        }
    }

    /// The configuration of the file, or the defaults, overridden by the flags and environment variables.
    fn overlay(self) -> Result<Config, Failure> {
        let ServeCommand {
            config,
            models,
            poll,
            models_memory,
            listen,
            unix_socket_mode,
            tls_certificate,
            tls_key,
            tls_client_ca,
            token_file,
            insecure,
            drain_timeout,
            device,
            threads,
            background,
            kernel_timing,
            cache,
            frame_threads,
            connection_threads,
            max_batch,
            max_frame_bytes,
            max_in_flight,
            otlp_endpoint,
            otlp_protocol,
            trace_ratio,
            trace_slower_than,
            admin_listen,
            probe_listen,
            view_listen,
            view_token_file,
        } = self;
        let mut out = match config {
            Some(path) => Config::load(&path).map_err(|error| Failure::usage(error.to_string()))?,
            None => Config::default(),
        };
        fn set<T>(setting: &mut T, given: Option<T>) {
            if let Some(given) = given {
                *setting = given;
            }
        }
        set(&mut out.models.repository, models);
        set(&mut out.models.poll_s, poll);
        set(&mut out.models.memory_limit, models_memory.map(Some));
        set(&mut out.server.listen, (!listen.is_empty()).then_some(listen));
        set(&mut out.server.unix_socket_mode, unix_socket_mode);
        set(&mut out.server.tls.certificate, tls_certificate.map(Some));
        set(&mut out.server.tls.key, tls_key.map(Some));
        set(&mut out.server.tls.client_ca, tls_client_ca.map(Some));
        set(&mut out.server.token_file, token_file.map(Some));
        set(&mut out.server.insecure, insecure.then_some(true));
        set(&mut out.server.drain_timeout_s, drain_timeout);
        device.set(&mut out.device);
        set(&mut out.device.threads, threads);
        set(&mut out.device.background, background.then_some(true));
        set(&mut out.device.kernel_timing, kernel_timing);
        set(&mut out.device.cache, cache.map(Some));
        set(&mut out.device.frame_threads, frame_threads);
        set(&mut out.device.connection_threads, connection_threads);
        set(&mut out.limits.max_batch, max_batch);
        set(&mut out.limits.max_frame_bytes, max_frame_bytes);
        set(&mut out.limits.max_in_flight, max_in_flight);
        set(&mut out.telemetry.otlp_endpoint, otlp_endpoint.map(Some));
        set(&mut out.telemetry.otlp_protocol, otlp_protocol.map(Some));
        set(&mut out.telemetry.trace_ratio, trace_ratio.map(Some));
        set(&mut out.telemetry.trace_slower_than_ms, trace_slower_than.map(Some));
        set(&mut out.admin.listen, admin_listen.map(Some));
        set(&mut out.probes.listen, probe_listen.map(Some));
        set(&mut out.view.listen, view_listen.map(Some));
        set(&mut out.view.token_file, view_token_file.map(Some));
        Ok(out)
    }
}

async fn serve(config: &Config, telemetry: Telemetry) -> Result<Ended, Failure> {
    let shutdown =
        Shutdown::on_signals().map_err(|error| Failure::failed(format!("cannot handle signals: {error}")))?;
    // Loading takes seconds; a signal ends it.
    let server = tokio::select! {
        server = Server::start(config, telemetry, shutdown.clone()) => server.map_err(start_failure)?,
        () = shutdown.drain() => return Ok(Ended::Drained),
    };
    for address in server.addresses() {
        tracing::info!(%address, "serving");
    }
    Ok(server.run().await)
}

/// A start error as a failure, with a hint where one helps.
pub(super) fn start_failure(error: StartError) -> Failure {
    let exit = match &error {
        StartError::Config(_)
        | StartError::Repository(_)
        | StartError::Security(_)
        | StartError::Exposed { .. }
        | StartError::Listen(ListenError::Exposed { .. }) => Exit::Usage,
        _ => Exit::Failed,
    };
    let failure = Failure::new(exit, error.to_string());
    match error {
        StartError::Repository(_) => {
            failure.hint(format!("--models names the models to serve; {}", no_models::advice()))
        }
        StartError::Model { .. } | StartError::Preparation { .. } | StartError::WarmUp(_) => {
            failure.hint("run `camlens doctor` on the model for details")
        }
        _ => failure,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        command: ServeCommand,
    }

    fn overlay(arguments: &[&str]) -> Config {
        let line = Line::parse_from([&["camlens"], arguments].concat());
        line.command.overlay().expect("a configuration")
    }

    #[test]
    fn flags_override_the_file_and_the_file_overrides_the_defaults() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("camlens.toml");
        std::fs::write(&file, "[limits]\nmax_batch = 3\nmax_targets = 5\n").expect("a file");
        let config = overlay(&["--config", file.to_str().expect("UTF-8"), "--max-batch", "4"]);
        assert_eq!((config.limits.max_batch, config.limits.max_targets), (4, 5));
        assert_eq!(config.limits.max_in_flight, Config::default().limits.max_in_flight);
    }

    #[test]
    fn flags_set_telemetry() {
        let config = overlay(&[
            "--otlp-endpoint",
            "https://mine:4318",
            "--otlp-protocol",
            "http/protobuf",
            "--trace-slower-than",
            "250",
            "--admin-listen",
            "127.0.0.1:9464",
            "--probe-listen",
            "0.0.0.0:9465",
        ]);
        assert!(config.has_metrics_page());
        assert_eq!(config.probes.listen.as_deref(), Some("0.0.0.0:9465"));
        let telemetry = config.telemetry;
        assert_eq!(telemetry.otlp_endpoint.as_deref(), Some("https://mine:4318"));
        assert_eq!(telemetry.otlp_protocol.as_deref(), Some("http/protobuf"));
        assert_eq!((telemetry.trace_slower_than_ms, telemetry.trace_ratio), (Some(250), None));
        assert_eq!(config.admin.listen.as_deref(), Some("127.0.0.1:9464"));
    }

    #[test]
    fn security_flags_override_the_file() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("camlens.toml");
        std::fs::write(&file, "[server]\ninsecure = true\n[server.tls]\ncertificate = \"a\"\nkey = \"b\"\n")
            .expect("a file");
        let server =
            overlay(&["--config", file.to_str().expect("UTF-8"), "--tls-key", "c", "--token-file", "t"]).server;
        assert_eq!((server.tls.certificate, server.tls.key), (Some("a".into()), Some("c".into())));
        assert_eq!((server.insecure, server.token_file, server.tls.client_ca), (true, Some("t".into()), None));
    }

    #[test]
    fn a_socket_mode_is_octal() {
        assert_eq!(overlay(&["--unix-socket-mode", "600"]).server.unix_socket_mode, 0o600);
        assert_eq!(octal("0o660"), Ok(0o660));
        assert!(octal("999").is_err());
    }

    #[test]
    fn the_listen_flag_may_be_repeated() {
        let config = overlay(&["--listen", "127.0.0.1:0", "--listen", "unix:/tmp/x.sock"]);
        assert_eq!(config.server.listen.len(), 2);
    }
}
