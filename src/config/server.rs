//! `[server]`, `[admin]` and `[probes]` of `camlens.toml`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::address::ListenAddress;
use super::error::{ConfigError, at_least_one, value};

/// `[server]`: addresses, connections, timeouts, TLS and tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// `HOST:PORT` or `unix:/PATH`; port 0 takes a free one.
    pub listen: Vec<ListenAddress>,
    /// Permission bits of a Unix socket; in TOML an octal number is written `0o660`.
    pub unix_socket_mode: u32,
    /// How long accepted frames have to finish when the server stops.
    pub drain_timeout_s: u32,
    /// How often an idle connection is pinged, and how long it has to answer.
    pub keep_alive_s: u32,
    /// HTTP/2 window of a stream: bytes that a client may send before the server reads them.
    pub stream_window_bytes: u32,
    /// Open streams and calls of one connection. The connection's HTTP/2 window is the sum of theirs.
    pub max_streams_per_connection: u32,
    /// Open connections, over all addresses; more are closed.
    pub max_connections: u32,
    /// Open connections from one IP address.
    pub max_connections_per_peer: u32,
    /// Age at which a connection ends, a tenth more or less, once every frame accepted on it is answered. Clients then
    /// reconnect and are balanced over the servers there are by then. 0: unlimited.
    pub max_connection_age_s: u32,
    /// How long a client may pause within a message.
    pub read_timeout_s: u32,
    /// How long a client may leave an answer unread before its stream ends.
    pub write_timeout_s: u32,
    /// Whether the server may listen on TCP beyond loopback without TLS.
    pub insecure: bool,
    /// File of bearer tokens, one per line. Every call except health checks needs one of them. `None`: no call does.
    pub token_file: Option<PathBuf>,
    pub tls: TlsConfig,
}

/// `[server.tls]`: PEM files, read again when they change. With them, every TCP address uses TLS; Unix sockets never
/// do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsConfig {
    /// The server's certificate, followed by the intermediate certificates.
    pub certificate: Option<PathBuf>,
    /// The certificate's private key.
    pub key: Option<PathBuf>,
    /// Certificate authorities of the clients. With them, every client needs a certificate (mutual TLS).
    pub client_ca: Option<PathBuf>,
}

impl TlsConfig {
    fn check(&self) -> Result<(), ConfigError> {
        let TlsConfig { certificate, key, client_ca } = self;
        let missing = |key, beside: &str| Err(value(key, "nothing", &format!("a file, beside server.tls.{beside}")));
        match (certificate, key, client_ca) {
            (Some(_), None, _) => missing("server.tls.key", "certificate"),
            (None, Some(_), _) => missing("server.tls.certificate", "key"),
            (None, None, Some(_)) => missing("server.tls.certificate", "client_ca"),
            _ => Ok(()),
        }
    }
}

impl Default for ServerConfig {
    fn default() -> Self {
        ServerConfig {
            listen: vec![ListenAddress::Tcp("127.0.0.1:8033".to_owned())],
            unix_socket_mode: 0o660,
            drain_timeout_s: 20,
            keep_alive_s: 20,
            stream_window_bytes: 4 << 20,
            max_streams_per_connection: 64,
            max_connections: 1024,
            max_connections_per_peer: 1024,
            max_connection_age_s: 0,
            read_timeout_s: 60,
            write_timeout_s: 60,
            insecure: false,
            token_file: None,
            tls: TlsConfig::default(),
        }
    }
}

/// The largest HTTP/2 window.
const MAX_WINDOW_BYTES: u32 = (1 << 31) - 1;

impl ServerConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let ServerConfig {
            listen,
            unix_socket_mode,
            drain_timeout_s: _,
            keep_alive_s,
            stream_window_bytes,
            max_streams_per_connection,
            max_connections,
            max_connections_per_peer,
            max_connection_age_s: _,
            read_timeout_s,
            write_timeout_s,
            insecure: _,
            token_file: _,
            tls,
        } = self;
        if listen.is_empty() {
            return Err(value("server.listen", "[]", "at least one address, HOST:PORT or unix:/PATH"));
        }
        if *unix_socket_mode > 0o777 {
            return Err(value("server.unix_socket_mode", format!("0o{unix_socket_mode:o}"), "0o000 to 0o777"));
        }
        tls.check()?;
        at_least_one("server.keep_alive_s", (*keep_alive_s).into())?;
        at_least_one("server.max_streams_per_connection", (*max_streams_per_connection).into())?;
        at_least_one("server.max_connections", (*max_connections).into())?;
        at_least_one("server.max_connections_per_peer", (*max_connections_per_peer).into())?;
        at_least_one("server.read_timeout_s", (*read_timeout_s).into())?;
        at_least_one("server.write_timeout_s", (*write_timeout_s).into())?;
        if !(65_535..=MAX_WINDOW_BYTES).contains(stream_window_bytes) {
            let allowed = format!("65535 to {MAX_WINDOW_BYTES}");
            return Err(value("server.stream_window_bytes", stream_window_bytes, &allowed));
        }
        Ok(())
    }

    /// Whether the server may listen on TCP beyond loopback: with TLS, or when the operator allows plaintext.
    pub(crate) fn may_listen_beyond_loopback(&self) -> bool {
        self.insecure || self.tls.certificate.is_some()
    }

    /// HTTP/2 window of a connection: the sum of its streams' windows, so that streams do not stall each other.
    pub(crate) fn connection_window_bytes(&self) -> u32 {
        self.stream_window_bytes.saturating_mul(self.max_streams_per_connection).min(MAX_WINDOW_BYTES)
    }
}

/// `[admin]` of `camlens.toml`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminConfig {
    /// `HOST:PORT`; port 0 takes a free one. `None`: there is no admin port.
    pub listen: Option<String>,
}

/// `[probes]` of `camlens.toml`: health and metrics in plain text, beyond loopback too.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProbesConfig {
    /// `HOST:PORT`; port 0 takes a free one. `None`: there is no probe port.
    pub listen: Option<String>,
}
