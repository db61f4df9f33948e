//! How the command line reaches a server.

use std::io;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tonic::transport::{Endpoint, Uri};

pub use self::address::Address;
use self::credentials::{Bearer, TlsArgs};
use self::dial::{LastWords, Socket};
pub use self::link::Link;
use self::trouble::Trouble;
use crate::cli::failure::{Exit, Failure};
use crate::proto::v1::explain_service_client::ExplainServiceClient;
use crate::proto::v1::model_service_client::ModelServiceClient;

/// Answers with several float maps of a large input exceed gRPC's usual 4 MiB by far.
const MAX_MESSAGE_BYTES: usize = 1 << 30;
/// Frames are large: one window holds several.
const WINDOW_BYTES: u32 = 16 << 20;
/// What a DATA frame may hold. HTTP/2 begins with 16 KiB.
const HTTP2_FRAME_BYTES: u32 = 256 << 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

fn not_an_address(text: &str) -> String {
    format!("`{text}` is no server address: give HOST:PORT, http://HOST:PORT, https://HOST:PORT or unix:/PATH")
}

/// The host without the brackets of an IPv6 address, and the port.
fn host_and_port(uri: &Uri) -> Option<(&str, u16)> {
    let host = uri.host().filter(|host| !host.is_empty())?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    Some((host, uri.port_u16()?))
}

/// Connects. The failure names the address and what to do.
pub async fn connect(address: &Address, tls: &TlsArgs, bearer: Bearer) -> Result<Link, Failure> {
    let tls = tls.config(address)?;
    let url = match address {
        // The authority that the server sees; a socket has none of its own.
        Address::Unix(_) => "http://localhost".to_owned(),
        Address::Tcp(url) => url.clone(),
    };
    let refuse = |why: &dyn std::fmt::Display| Failure::usage(format!("cannot connect to {address}: {why}"));
    let origin: Uri = url.parse().map_err(|error| refuse(&error))?;
    // TLS is ours, so that its errors are; the transport below is told of http, and calls say https.
    let endpoint = Endpoint::from_shared(url.replacen("https://", "http://", 1))
        .map_err(|error| refuse(&error))?
        .origin(origin)
        .connect_timeout(CONNECT_TIMEOUT)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_frame_size(HTTP2_FRAME_BYTES);
    let last_words = LastWords::default();
    let (place, heard) = (address.clone(), last_words.clone());
    let dial = move |uri: Uri| {
        let (place, tls, heard) = (place.clone(), tls.clone(), heard.clone());
        async move {
            let socket = match (place, host_and_port(&uri)) {
                (Address::Unix(path), _) => Socket::unix(&path, heard).await,
                (Address::Tcp(_), Some((host, port))) => Socket::tcp(host, port, tls, heard).await,
                (Address::Tcp(_), None) => Err(io::ErrorKind::AddrNotAvailable.into()),
            };
            socket.map(TokioIo::new)
        }
    };
    let channel =
        endpoint.connect_with_connector(tower::service_fn(dial)).await.map_err(|error| {
            match trouble::find(&error) {
                Some(Trouble { sentence, hint }) => {
                    Failure::new(Exit::Unavailable, format!("cannot use the server at {address}: {sentence}"))
                        .hint(hint)
                }
                None => Failure::new(Exit::Unavailable, format!("no server at {address}: {}", innermost(&error)))
                    .hint("is the server running, and does --server say where?"),
            }
        })?;
    Ok(Link::new(channel, bearer, last_words))
}

pub fn explain_client(link: Link) -> ExplainServiceClient<Link> {
    ExplainServiceClient::new(link)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

pub fn model_client(link: Link) -> ModelServiceClient<Link> {
    ModelServiceClient::new(link).max_decoding_message_size(MAX_MESSAGE_BYTES)
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
            ("https://camlens.example:443/", "https://camlens.example:443"),
        ];
        for (text, address) in cases {
            assert_eq!(text.parse::<Address>().map(|a| a.to_string()).as_deref(), Ok(address));
        }
        for text in [
            "",
            "localhost",
            ":8033",
            "localhost:http",
            "unix:",
            "ftp://host:1",
            "a b:1",
            "https://host",
            "http://host:1/path",
            "me:secret@host:1",
        ] {
            let error = text.parse::<Address>().expect_err("no address");
            assert!(error.contains(text), "{error}");
        }
    }

    #[tokio::test]
    async fn nobody_listening_is_one_sentence_with_a_hint() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let address = Address::Unix(folder.path().join("none.sock"));
        let failure = connect(&address, &TlsArgs::default(), Bearer::default()).await.expect_err("no server");
        assert_eq!(failure.exit(), Exit::Unavailable);
        assert!(failure.to_string().starts_with(&format!("no server at {address}: No such file")), "{failure}");
    }
}
pub mod address;
pub mod credentials;
pub mod dial;
pub mod latency;
pub mod link;
pub mod names;
pub mod session;
pub mod tally;
pub mod trouble;
