//! `[server]` of `camlens.toml`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::address::ListenAddress;
use crate::config::error::{ConfigError, at_least_one, value};

/// How the server is reached.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// `HOST:PORT` or `unix:/PATH`; port 0 takes a free one.
    pub listen: Vec<ListenAddress>,
    /// Permission bits of a Unix socket; in TOML an octal number is written `0o660`.
    pub unix_socket_mode: u32,
    /// How long accepted frames have to finish once the server is told to stop.
    pub drain_timeout_s: u32,
    /// How often an idle connection is asked whether it still lives, and how long it has to say so.
    pub keep_alive_s: u32,
    /// What a client may send on one stream before it is read.
    pub stream_window_bytes: u32,
    /// Streams and calls on one connection at once; a connection's window covers all of them.
    pub max_streams_per_connection: u32,
    /// Connections at once, over all addresses; more are closed.
    pub max_connections: u32,
    /// And from one IP address.
    pub max_connections_per_peer: u32,
    /// After about this long (a tenth more or less) a connection is ended, once what was accepted on it is answered: clients
    /// that live long are spread anew over the servers that there are by then. 0: never.
    pub max_connection_age_s: u32,
    /// How long a client may pause in the midst of a message.
    pub read_timeout_s: u32,
    /// How long a client may leave an answer unread before its stream is given up.
    pub write_timeout_s: u32,
    /// Whether TCP addresses beyond loopback may be served without TLS.
    pub insecure: bool,
    /// Bearer tokens, one a line, one of which every call but health checks must bring. None: no call needs one.
    pub token_file: Option<PathBuf>,
    pub tls: TlsConfig,
}

/// `[server.tls]`: PEM files, read again when they change. With them, every TCP address speaks TLS; Unix sockets never do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsConfig {
    /// The server's certificate, then those between it and its authority.
    pub certificate: Option<PathBuf>,
    /// Its private key.
    pub key: Option<PathBuf>,
    /// Authorities of clients' certificates. With them, a client must have a certificate (mutual TLS).
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
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
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

    /// Whether TCP may be served beyond loopback: what is sent is encrypted, or somebody has said that it need not be.
    pub(crate) fn may_leave_the_machine(&self) -> bool {
        self.insecure || self.tls.certificate.is_some()
    }

    /// Covers the windows of all of a connection's streams, so that they do not stall each other.
    pub(crate) fn connection_window_bytes(&self) -> u32 {
        self.stream_window_bytes.saturating_mul(self.max_streams_per_connection).min(MAX_WINDOW_BYTES)
    }
}

/// `[admin]` of `camlens.toml`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminConfig {
    /// `HOST:PORT`; port 0 takes a free one. None: there is no admin port.
    pub listen: Option<String>,
}
