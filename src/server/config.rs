//! `[server]` of `camlens.toml`.

use serde::{Deserialize, Serialize};

use super::listen::ListenAddress;
use crate::config::{ConfigError, at_least_one, value};

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
}

impl Default for ServerConfig {
    fn default() -> Self {
        ServerConfig {
            listen: vec![ListenAddress::Tcp("127.0.0.1:8033".to_owned())],
            unix_socket_mode: 0o660,
            drain_timeout_s: 20,
            keep_alive_s: 20,
            stream_window_bytes: 16 << 20,
            max_streams_per_connection: 64,
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
        } = self;
        if listen.is_empty() {
            return Err(value("server.listen", "[]", "at least one address, HOST:PORT or unix:/PATH"));
        }
        if *unix_socket_mode > 0o777 {
            return Err(value("server.unix_socket_mode", format!("0o{unix_socket_mode:o}"), "0o000 to 0o777"));
        }
        at_least_one("server.keep_alive_s", (*keep_alive_s).into())?;
        at_least_one("server.max_streams_per_connection", (*max_streams_per_connection).into())?;
        if !(65_535..=MAX_WINDOW_BYTES).contains(stream_window_bytes) {
            let allowed = format!("65535 to {MAX_WINDOW_BYTES}");
            return Err(value("server.stream_window_bytes", stream_window_bytes, &allowed));
        }
        Ok(())
    }

    /// Covers the windows of all of a connection's streams, so that they do not stall each other.
    pub(super) fn connection_window_bytes(&self) -> u32 {
        self.stream_window_bytes.saturating_mul(self.max_streams_per_connection).min(MAX_WINDOW_BYTES)
    }
}
