//! How the command line reaches a server.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use super::failure::{Exit, Failure};
use crate::proto::v1::explain_service_client::ExplainServiceClient;
use crate::proto::v1::model_service_client::ModelServiceClient;

/// Answers with several float maps of a large input exceed gRPC's usual 4 MiB by far.
const MAX_MESSAGE_BYTES: usize = 1 << 30;
/// Frames are large: one window holds several.
const WINDOW_BYTES: u32 = 16 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Unix(PathBuf),
    /// `http://HOST:PORT`.
    Tcp(String),
}

impl FromStr for Address {
    type Err = String;

    /// `unix:PATH`, `http://HOST:PORT` or `HOST:PORT`.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            // gRPC also writes unix:///absolute/path.
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() { Err(not_an_address(text)) } else { Ok(Address::Unix(path.into())) };
        }
        if text.starts_with("https://") {
            return Err(format!("{text}: TLS is not built yet; use http:// on a trusted network, or a Unix socket"));
        }
        let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let rest = url.strip_prefix("http://").ok_or_else(|| not_an_address(text))?.trim_end_matches('/');
        let port =
            rest.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, port)| port.parse::<u16>().ok());
        if port.is_none() || Endpoint::from_shared(format!("http://{rest}")).is_err() {
            return Err(not_an_address(text));
        }
        Ok(Address::Tcp(format!("http://{rest}")))
    }
}

fn not_an_address(text: &str) -> String {
    format!("`{text}` is no server address: give HOST:PORT, http://HOST:PORT or unix:/PATH")
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Tcp(url) => f.write_str(url),
        }
    }
}

/// Connects. The failure names the address and what to do.
pub async fn connect(address: &Address) -> Result<Channel, Failure> {
    let url = match address {
        // The authority that the server sees; a socket has none of its own.
        Address::Unix(_) => "http://localhost".to_owned(),
        Address::Tcp(url) => url.clone(),
    };
    let endpoint = Endpoint::from_shared(url)
        .map_err(|error| Failure::usage(format!("{address} is no server address: {error}")))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    let connected = match address.clone() {
        Address::Tcp(_) => endpoint.connect().await,
        Address::Unix(path) => {
            let dial = move |_| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            };
            endpoint.connect_with_connector(tower::service_fn(dial)).await
        }
    };
    connected.map_err(|error| {
        Failure::new(Exit::Unavailable, format!("no server at {address}: {}", innermost(&error)))
            .hint("is the server running, and does --server say where?")
    })
}

pub fn explain_client(channel: Channel) -> ExplainServiceClient<Channel> {
    ExplainServiceClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

pub fn model_client(channel: Channel) -> ModelServiceClient<Channel> {
    ModelServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

/// "transport error" helps nobody; its cause does.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_in_all_their_forms() {
        let cases = [
            ("unix:/run/camlens.sock", "unix:/run/camlens.sock"),
            ("unix:///run/camlens.sock", "unix:/run/camlens.sock"),
            ("localhost:8033", "http://localhost:8033"),
            ("http://10.0.0.1:80/", "http://10.0.0.1:80"),
            ("[::1]:8033", "http://[::1]:8033"),
        ];
        for (text, address) in cases {
            assert_eq!(text.parse::<Address>().map(|a| a.to_string()).as_deref(), Ok(address));
        }
        for text in ["", "localhost", ":8033", "localhost:http", "unix:", "ftp://host:1", "a b:1", "https://host:443"] {
            let error = text.parse::<Address>().expect_err("no address");
            assert!(error.contains(text), "{error}");
        }
    }

    #[tokio::test]
    async fn nobody_listening_is_one_sentence_with_a_hint() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let address = Address::Unix(folder.path().join("none.sock"));
        let failure = connect(&address).await.expect_err("no server");
        assert_eq!(failure.exit(), Exit::Unavailable);
        assert!(failure.to_string().starts_with(&format!("no server at {address}: No such file")), "{failure}");
    }
}
