//! The connections of all listeners: bounds on their number, in total and per peer, and on their age.

mod connection;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::server::TlsStream;
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codegen::{Body as HttpBody, Bytes, Service, StdError, http};
use tonic::service::Routes;
use tonic::transport::server::Router;
use tower::Layer;

use self::connection::{Beginning, Connection};
use super::occasions::Occasions;
use super::other_protocols::Answers;
use super::other_protocols::http1::{self, Spoken};
use crate::config::ServerConfig;
use crate::http::slots::{Full, Slots};

/// Pause after an error of `accept`, which usually means that there are no file descriptors left.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What the connections of all listeners share. Cheap to clone.
#[derive(Debug, Clone)]
pub(in crate::server) struct Connections {
    slots: Slots,
    /// `None`: unlimited.
    max_age: Option<Duration>,
    /// How long a client has for HTTP/2's preface.
    preface_timeout: Duration,
    refused: Occasions,
    /// Connections that spoke another protocol.
    http1: Occasions,
    tls: Occasions,
}

impl Connections {
    pub(in crate::server) fn new(config: &ServerConfig) -> Self {
        Connections {
            slots: Slots::new(config.max_connections, config.max_connections_per_peer),
            max_age: (config.max_connection_age_s > 0).then(|| Duration::from_secs(config.max_connection_age_s.into())),
            preface_timeout: Duration::from_secs(config.keep_alive_s.into()),
            refused: Occasions::default(),
            http1: Occasions::default(),
            tls: Occasions::default(),
        }
    }

    /// How many connections are open.
    pub(in crate::server) fn open(&self) -> u32 {
        self.slots.taken()
    }

    /// How many connections were closed because no slot was free.
    pub(in crate::server) fn refused(&self) -> u64 {
        self.refused.count()
    }

    /// Serves incoming connections until `close`. Then none is accepted any more, and each connection ends once its
    /// calls have. A connection without a free slot is closed: its client sees UNAVAILABLE. One that does not speak
    /// HTTP/2 gets one of the `answers`.
    pub(in crate::server) async fn serve<L, B, C>(
        self,
        router: Router<L>,
        incoming: impl Stream<Item = io::Result<C>>,
        answers: Answers,
        close: CancellationToken,
    ) where
        L: Layer<Routes> + Clone + Send + 'static,
        L::Service: Service<http::Request<Body>, Response = http::Response<B>> + Clone + Send + 'static,
        <L::Service as Service<http::Request<Body>>>::Future: Send,
        <L::Service as Service<http::Request<Body>>>::Error: Into<StdError> + Send,
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<StdError>,
        C: Peer + AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut running = JoinSet::new();
        {
            let mut incoming = pin!(incoming);
            loop {
                tokio::select! {
                    biased;
                    () = close.cancelled() => break,
                    Some(_) = running.join_next(), if !running.is_empty() => {}
                    connection = incoming.next() => match connection {
                        Some(Ok(connection)) => {
                            let Some(connection) = self.admit(connection) else { continue };
                            let (this, router, answers, close) =
                                (self.clone(), router.clone(), answers.clone(), close.clone());
                            running.spawn(async move {
                                let begun = tokio::select! {
                                    begun = this.begin(connection, answers) => begun,
                                    () = close.cancelled() => None,
                                };
                                let Some(connection) = begun else { return };
                                let ends = connection.ends(close, this.max_age.map(jittered));
                                // A tonic server per connection, so that each has an age of its own.
                                let one = tokio_stream::once(io::Result::Ok(connection)).chain(tokio_stream::pending());
                                if let Err(error) = router.serve_with_incoming_shutdown(one, ends).await {
                                    tracing::debug!(%error, "a connection broke");
                                }
                            });
                        }
                        Some(Err(error)) => {
                            tracing::debug!(%error, "a connection could not be accepted");
                            sleep(ACCEPT_RETRY).await;
                        }
                        None => break,
                    },
                }
            }
        }
        while running.join_next().await.is_some() {}
    }

    /// The connection, if its client speaks HTTP/2. Another one is answered, and closed.
    async fn begin<C>(&self, mut connection: Connection<C>, answers: Answers) -> Option<Connection<C>>
    where
        C: AsyncRead + AsyncWrite + Unpin,
    {
        let begun = match timeout(self.preface_timeout, connection.begin()).await {
            Ok(Ok(Beginning::Http2)) => return Some(connection),
            Ok(Ok(Beginning::Other(begun))) => begun,
            // It is silent, or gone.
            Ok(Ok(Beginning::Ended) | Err(_)) | Err(_) => return None,
        };
        let peer = connection.about().peer;
        let answer = http1::answer(&mut connection, begun, &answers);
        match timeout(self.preface_timeout, answer).await {
            Ok(Ok(Spoken::Http1)) => {
                if let Some(count) = self.http1.one_more() {
                    tracing::warn!(count, ?peer, "requests of HTTP/1.1 at a port that speaks gRPC alone");
                }
            }
            Ok(Ok(Spoken::Tls)) => {
                if let Some(count) = self.tls.one_more() {
                    tracing::warn!(
                        count,
                        ?peer,
                        "clients began TLS at a port without it: server.tls.certificate and server.tls.key turn it on"
                    );
                }
            }
            Ok(Ok(Spoken::Unknown)) => tracing::debug!(?peer, "a client that speaks neither HTTP nor TLS"),
            Ok(Err(_)) | Err(_) => return None,
        }
        // This lingers for a moment, so that the answer arrives; an error means that the client has gone.
        let _ = connection.shutdown().await;
        None
    }

    /// Takes a slot for the connection. `None`: no slot is free.
    fn admit<C: Peer>(&self, connection: C) -> Option<Connection<C>> {
        let peer = connection.peer();
        let slot = match self.slots.take(peer) {
            Ok(slot) => slot,
            Err(full) => {
                if let Some(refused) = self.refused.one_more() {
                    let (limit, value) = match full {
                        Full::Total(value) => ("server.max_connections", value),
                        Full::Peer(value) => ("server.max_connections_per_peer", value),
                    };
                    tracing::warn!(refused, ?peer, "connections were closed: {limit} is {value}");
                }
                return None;
            }
        };
        let about = About { peer, aged: CancellationToken::new() };
        Some(Connection::new(connection, about, slot))
    }
}

/// A random duration from 0.9 to 1.1 of `age`, so that clients that connected together do not reconnect together.
fn jittered(age: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish();
    age.mul_f64(0.9 + 0.2 * (random as f64 / u64::MAX as f64))
}

/// The remote end of a connection.
pub(in crate::server) trait Peer {
    /// Its IP address; `None` for a Unix socket.
    fn peer(&self) -> Option<IpAddr>;
}

impl Peer for TcpStream {
    fn peer(&self) -> Option<IpAddr> {
        self.peer_addr().ok().map(|address| address.ip().to_canonical())
    }
}

impl Peer for TlsStream<TcpStream> {
    fn peer(&self) -> Option<IpAddr> {
        self.get_ref().0.peer()
    }
}

impl Peer for UnixStream {
    fn peer(&self) -> Option<IpAddr> {
        None
    }
}

/// The message of a stream that ends with its connection.
pub(in crate::server) const AGED: &str = "the connection has reached its age (server.max_connection_age_s)";

/// What a call knows of its connection. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(in crate::server) struct About {
    pub(in crate::server) peer: Option<IpAddr>,
    aged: CancellationToken,
}

impl About {
    /// The connection of a request.
    pub(in crate::server) fn of<T>(request: &tonic::Request<T>) -> Self {
        request.extensions().get().cloned().unwrap_or_default()
    }

    /// Resolves when the connection has reached its maximum age: its streams should end.
    pub(in crate::server) async fn aged(&self) {
        self.aged.cancelled().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_differ_and_stay_near_the_one_that_was_asked_for() {
        let ages: Vec<Duration> = (0..50).map(|_| jittered(Duration::from_secs(100))).collect();
        assert!(ages.iter().all(|age| (90.0..=110.0).contains(&age.as_secs_f64())));
        assert!(ages.iter().any(|age| *age != ages[0]));
    }

    #[tokio::test]
    async fn a_slot_becomes_free_with_its_connection() {
        let config = ServerConfig { max_connections: 2, ..ServerConfig::default() };
        let connections = Connections::new(&config);
        let connect = || connections.admit(UnixStream::pair().expect("two ends").0);
        let (one, two) = (connect(), connect());
        assert!(one.is_some() && two.is_some() && connect().is_none());
        drop(one);
        assert!(connect().is_some());
    }
}
