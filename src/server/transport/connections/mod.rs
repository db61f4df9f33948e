//! The connections of all listeners: bounds on their number, in total and per peer, and on their age.

mod connection;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_rustls::server::TlsStream;
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codegen::{Body as HttpBody, Bytes, Service, StdError, http};
use tonic::service::Routes;
use tonic::transport::server::Router;
use tower::Layer;

use self::connection::Connection;
use crate::config::ServerConfig;
use crate::server::quota::slots::{Full, Slots};

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
    refused: Arc<AtomicU64>,
}

impl Connections {
    pub(in crate::server) fn new(config: &ServerConfig) -> Self {
        Connections {
            slots: Slots::new(config.max_connections, config.max_connections_per_peer),
            max_age: (config.max_connection_age_s > 0).then(|| Duration::from_secs(config.max_connection_age_s.into())),
            preface_timeout: Duration::from_secs(config.keep_alive_s.into()),
            refused: Arc::default(),
        }
    }

    /// How many connections are open.
    pub(in crate::server) fn open(&self) -> u32 {
        self.slots.taken()
    }

    /// How many connections were closed because no slot was free.
    pub(in crate::server) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Serves incoming connections until `close`. Then none is accepted any more, and each connection ends once its
    /// calls have. A connection without a free slot is closed: its client sees UNAVAILABLE.
    pub(in crate::server) async fn serve<L, B, C>(
        self,
        router: Router<L>,
        incoming: impl Stream<Item = io::Result<C>>,
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
                            let ends = connection.ends(close.clone(), self.max_age.map(jittered));
                            // A tonic server per connection, so that each has an age of its own.
                            let one = tokio_stream::once(io::Result::Ok(connection)).chain(tokio_stream::pending());
                            running.spawn(router.clone().serve_with_incoming_shutdown(one, ends));
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

    /// Takes a slot for the connection. `None`: no slot is free.
    fn admit<C: Peer>(&self, connection: C) -> Option<Connection<C>> {
        let peer = connection.peer();
        let slot = match self.slots.take(peer) {
            Ok(slot) => slot,
            Err(full) => {
                // Logged at 1, 2, 4, 8, … refusals, so that a client cannot fill the log.
                let refused = self.refused.fetch_add(1, Ordering::Relaxed) + 1;
                if refused.is_power_of_two() {
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
        Some(Connection::new(connection, about, slot, self.preface_timeout))
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
