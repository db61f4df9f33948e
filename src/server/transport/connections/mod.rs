//! Connections: how many there may be, in all and from one peer, and how old one may become.

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

use self::placed::Placed;
use crate::config::ServerConfig;
use crate::server::quota::slots::{Full, Places};

/// Out of file descriptors, as a rule: trying again at once would only burn the processor.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What all listeners' connections share. Cheap to clone.
#[derive(Debug, Clone)]
pub(in crate::server) struct Connections {
    places: Places,
    /// `None`: they may live for ever.
    max_age: Option<Duration>,
    /// What a client has for its first words.
    patience: Duration,
    refused: Arc<AtomicU64>,
}

impl Connections {
    pub(in crate::server) fn new(config: &ServerConfig) -> Self {
        Connections {
            places: Places::new(config.max_connections, config.max_connections_per_peer),
            max_age: (config.max_connection_age_s > 0).then(|| Duration::from_secs(config.max_connection_age_s.into())),
            patience: Duration::from_secs(config.keep_alive_s.into()),
            refused: Arc::default(),
        }
    }

    /// Connections that are open.
    pub(in crate::server) fn open(&self) -> u32 {
        self.places.taken()
    }

    /// Connections that were closed because there was no place for them.
    pub(in crate::server) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Serves what comes in, until `close`; then no more is accepted, and each connection ends once its calls have.
    /// A connection that finds no place is closed: its client sees UNAVAILABLE, and tries again or elsewhere.
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
                            let Some(connection) = self.place(connection) else { continue };
                            let ends = connection.ends(close.clone(), self.max_age.map(jittered));
                            // One connection a server: each then has an age of its own.
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

    fn place<C: Peer>(&self, connection: C) -> Option<Placed<C>> {
        let peer = connection.peer();
        let place = match self.places.take(peer) {
            Ok(place) => place,
            Err(full) => {
                // The first, then ever fewer: whoever knocks often must not fill the log.
                let refused = self.refused.fetch_add(1, Ordering::Relaxed) + 1;
                if refused.is_power_of_two() {
                    let (limit, value) = match full {
                        Full::InAll(value) => ("server.max_connections", value),
                        Full::ForPeer(value) => ("server.max_connections_per_peer", value),
                    };
                    tracing::warn!(refused, ?peer, "connections were closed: {limit} is {value}");
                }
                return None;
            }
        };
        Some(Placed::new(connection, About { peer, aged: CancellationToken::new() }, place, self.patience))
    }
}

/// Somewhere between 0.9 and 1.1 of a duration, so that clients that came together do not come again together.
fn jittered(age: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish();
    age.mul_f64(0.9 + 0.2 * (random as f64 / u64::MAX as f64))
}

/// Where a connection comes from.
pub(in crate::server) trait Peer {
    /// `None` for a Unix socket.
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

/// Why a stream ends with its connection.
pub(in crate::server) const AGED: &str = "the connection has reached its age (server.max_connection_age_s)";

/// What a call knows about its connection.
#[derive(Debug, Clone, Default)]
pub(in crate::server) struct About {
    pub(in crate::server) peer: Option<IpAddr>,
    aged: CancellationToken,
}

impl About {
    /// A request's connection.
    pub(in crate::server) fn of<T>(request: &tonic::Request<T>) -> Self {
        request.extensions().get().cloned().unwrap_or_default()
    }

    /// Resolves when the connection has reached its age: what runs on it should come to an end.
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
    async fn a_place_becomes_free_with_its_connection() {
        let config = ServerConfig { max_connections: 2, ..ServerConfig::default() };
        let connections = Connections::new(&config);
        let place = || connections.place(UnixStream::pair().expect("two ends").0);
        let (one, two) = (place(), place());
        assert!(one.is_some() && two.is_some() && place().is_none());
        drop(one);
        assert!(place().is_some());
    }
}
pub mod placed;
