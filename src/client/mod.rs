//! A client of the protocol with credit, order and accounts. Commands and load tests use it.
//!
//! [`connect`] opens a [`Link`] over TCP, TLS or a Unix socket. A [`Session`] takes the frames of one stream from a
//! [`FrameQueue`], sends them within the server's credit, reads their answers, errors and drops, keeps an [`Account`]
//! of all of them, and opens the stream again when its connection ends.
//!
//! ```no_run
//! use camlens::client::{Address, Bearer, TlsSettings, connect, explain_client};
//! use camlens::proto::v1;
//!
//! # async fn explain(picture: Vec<u8>) -> Result<(), Box<dyn std::error::Error>> {
//! let address: Address = "unix:/run/camlens.sock".parse()?;
//! let mut client = explain_client(connect(&address, &TlsSettings::default(), Bearer::default()).await?);
//! let encoded = v1::EncodedImage { data: picture.into(), ..Default::default() };
//! let frame = v1::Frame { payload: Some(v1::frame::Payload::Encoded(encoded)), ..Default::default() };
//! let request = v1::ExplainRequest { frame: Some(frame), ..Default::default() };
//! let explanation = client.explain(request).await?.into_inner().explanation.unwrap_or_default();
//! for prediction in &explanation.predictions {
//!     println!("{} {:.3}", prediction.label, prediction.probability);
//! }
//! # Ok(())
//! # }
//! ```

mod account;
mod address;
mod backoff;
mod credentials;
mod dial;
mod error;
mod frame;
mod frame_queue;
pub mod latency;
mod ledger;
mod link;
pub mod names;
mod session;
pub mod tally;
mod trouble;

use std::io;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Endpoint, Uri};

pub use self::account::Account;
pub use self::address::Address;
use self::address::host_and_port;
pub use self::backoff::Backoff;
pub use self::credentials::{Bearer, TlsSettings};
pub use self::dial::Ends;
use self::dial::{NewestConnection, Socket};
pub use self::error::ClientError;
pub use self::frame::{Capture, OutgoingFrame, Payload};
pub use self::frame_queue::{FrameQueue, Full};
pub use self::ledger::{Answered, Unanswered};
pub use self::link::Link;
pub use self::session::{Adjust, Event, OnEvent, Pace, Reconnect, Session, stream_name};
pub use self::trouble::{Trouble, find as find_trouble};
use crate::proto::v1::explain_service_client::ExplainServiceClient;
use crate::proto::v1::model_service_client::ModelServiceClient;
use crate::proto::v1::repository_service_client::RepositoryServiceClient;

/// Largest message. Answers with several float maps of a large input exceed gRPC's default of 4 MiB.
const MAX_MESSAGE_BYTES: usize = 1 << 30;
/// HTTP/2 window of a stream and of a connection, sized for several large frames.
const WINDOW_BYTES: u32 = 16 << 20;
/// Largest HTTP/2 DATA frame. The default is 16 KiB.
const HTTP2_FRAME_BYTES: u32 = 256 << 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Connects to a server. `tls` applies to `https://` addresses; `bearer` is sent with every call.
///
/// # Errors
/// [`ClientError::Setting`], [`ClientError::Tls`], [`ClientError::Unreachable`], [`ClientError::Unusable`].
pub async fn connect(address: &Address, tls: &TlsSettings, bearer: Bearer) -> Result<Link, ClientError> {
    let tls = tls.config(address)?;
    let url = match address {
        // A Unix socket has no authority of its own; the server sees this one.
        Address::Unix(_) => "http://localhost".to_owned(),
        Address::Tcp(url) => url.clone(),
    };
    let refuse = |cause: &dyn std::fmt::Display| ClientError::setting(format!("cannot connect to {address}: {cause}"));
    let origin: Uri = url.parse().map_err(|error| refuse(&error))?;
    // `dial` does the TLS handshake, which lets its errors be recognised. So the transport gets an http URL, and calls
    // have an https origin.
    let endpoint = Endpoint::from_shared(url.replacen("https://", "http://", 1)).map_err(|error| refuse(&error))?;
    let endpoint = sized(endpoint.origin(origin));
    let target = address.clone();
    let dial = move |uri: Uri, connection| {
        let (target, tls) = (target.clone(), tls.clone());
        async move {
            match (target, host_and_port(&uri)) {
                (Address::Unix(path), _) => Socket::unix(&path, connection).await,
                (Address::Tcp(_), Some((host, port))) => Socket::tcp(host, port, tls, connection).await,
                (Address::Tcp(_), None) => Err(io::ErrorKind::AddrNotAvailable.into()),
            }
        }
    };
    dialled(endpoint, dial, bearer).await.map_err(|error| {
        let address = address.clone();
        match trouble::find(&error) {
            Some(trouble) => ClientError::Unusable { address, trouble },
            None => ClientError::Unreachable { address, cause: innermost(&error) },
        }
    })
}

/// Connects to a server over the sockets that `dial` opens.
///
/// # Errors
/// [`ClientError::Setting`]: there is no such socket.
pub async fn connect_over<F>(dial: impl Fn() -> F + Clone + Send + 'static) -> Result<Link, ClientError>
where
    F: Future<Output = io::Result<UnixStream>> + Send + 'static,
{
    let endpoint = sized(Endpoint::from_static("http://localhost"));
    let dial = move |_: Uri, connection| {
        let socket = dial();
        async move { Ok(Socket::connected(socket.await?, connection)) }
    };
    let cannot = |error| ClientError::setting(format!("cannot connect within this process: {}", innermost(&error)));
    dialled(endpoint, dial, Bearer::default()).await.map_err(cannot)
}

/// The endpoint with windows and frames of the sizes that frames need.
fn sized(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_frame_size(HTTP2_FRAME_BYTES)
}

async fn dialled<F>(
    endpoint: Endpoint,
    dial: impl Fn(Uri, NewestConnection) -> F + Clone + Send + 'static,
    bearer: Bearer,
) -> Result<Link, tonic::transport::Error>
where
    F: Future<Output = io::Result<Socket>> + Send + 'static,
{
    let connection = NewestConnection::default();
    let newest = connection.clone();
    let dial = move |uri: Uri| {
        let socket = dial(uri, newest.clone());
        async move { socket.await.map(TokioIo::new) }
    };
    let channel = endpoint.connect_with_connector(tower::service_fn(dial)).await?;
    Ok(Link::new(channel, bearer, connection))
}

/// A client of `ExplainService` over `link`.
pub fn explain_client(link: Link) -> ExplainServiceClient<Link> {
    ExplainServiceClient::new(link)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// A client of `ModelService` over `link`.
pub fn model_client(link: Link) -> ModelServiceClient<Link> {
    ModelServiceClient::new(link).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

/// A client of `RepositoryService`, which a server's admin port has.
pub type RepositoryClient = RepositoryServiceClient<Link>;

/// A client of `RepositoryService` over `link`.
pub fn repository_client(link: Link) -> RepositoryClient {
    RepositoryServiceClient::new(link).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

/// The text of the innermost cause; tonic's own text is only "transport error".
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

    #[tokio::test]
    async fn an_unreachable_server_is_named_with_the_cause() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let address = Address::Unix(folder.path().join("none.sock"));
        let error = connect(&address, &TlsSettings::default(), Bearer::default()).await.expect_err("no server");
        assert!(matches!(error, ClientError::Unreachable { .. }));
        assert!(error.to_string().starts_with(&format!("no server at {address}: No such file")), "{error}");
    }
}
