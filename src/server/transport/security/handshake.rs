//! TLS handshakes: from a listener to its encrypted connections.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::http::StatusCode;

use super::watch::Watched;
use crate::server::transport::occasions::Occasions;
use crate::server::transport::other_protocols::http1;

/// How long a client has for its handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How many handshakes run at the same time.
const MAX_HANDSHAKES: usize = 128;
/// At [`MAX_HANDSHAKES`], the oldest handshake is aborted for a new one once it has run for this long.
const MIN_HANDSHAKE_TIME: Duration = Duration::from_secs(2);
/// How long a refused client has to read the alert.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause after an error of `accept`, which usually means that there are no file descriptors left.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// The connections that completed a handshake. A handshake uses the certificate that is current when it begins.
/// Accepting ends when the stream is dropped.
pub(in crate::server) fn handshakes(
    listener: TcpListener,
    config: Watched<ServerConfig>,
) -> ReceiverStream<io::Result<TlsStream<TcpStream>>> {
    let (ready, connections) = mpsc::channel(16);
    tokio::spawn(accept(listener, config, ready));
    ReceiverStream::new(connections)
}

type Ready = mpsc::Sender<io::Result<TlsStream<TcpStream>>>;

async fn accept(listener: TcpListener, config: Watched<ServerConfig>, ready: Ready) {
    let mut handshakes = Handshakes::default();
    let plaintext = Occasions::default();
    loop {
        tokio::select! {
            () = ready.closed() => return,
            Some(_) = handshakes.running.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((connection, peer)) => {
                    handshakes.make_room().await;
                    let acceptor = TlsAcceptor::from(config.current());
                    handshakes.start(handshake(acceptor, connection, peer, ready.clone(), plaintext.clone()));
                }
                Err(error) => {
                    tracing::debug!(%error, "a connection could not be accepted");
                    sleep(ACCEPT_RETRY).await;
                }
            },
        }
    }
}

/// `plaintext` counts the clients that begin without TLS.
async fn handshake(acceptor: TlsAcceptor, connection: TcpStream, peer: SocketAddr, ready: Ready, plaintext: Occasions) {
    if let Err(error) = connection.set_nodelay(true) {
        tracing::debug!(%peer, %error, "the connection closed before its handshake");
        return;
    }
    let shaken = async {
        // An error comes again when the handshake reads.
        let mut first = [0; 4];
        let count = connection.peek(&mut first).await.unwrap_or(0);
        let first = &first[..count];
        if first.first().is_some_and(u8::is_ascii_uppercase) {
            if let Some(count) = plaintext.one_more() {
                tracing::warn!(count, %peer, "clients spoke HTTP without TLS at a port with it");
            }
            // One that speaks HTTP/2 understands the handshake's alert, and no text.
            if !b"PRI ".starts_with(first) {
                return Err(connection);
            }
        }
        Ok(acceptor.accept(connection).into_fallible().await)
    };
    match timeout(HANDSHAKE_TIMEOUT, shaken).await {
        // The receiver is gone when the server has stopped.
        Ok(Ok(Ok(connection))) => drop(ready.send(Ok(connection)).await),
        Ok(Ok(Err((error, connection)))) => {
            tracing::debug!(%peer, %error, "a TLS handshake failed");
            close_gently(connection).await;
        }
        Ok(Err(mut connection)) => {
            let sentence = "this port speaks TLS: the address begins with https://\n";
            let answer = http1::response(StatusCode::BAD_REQUEST, sentence, true);
            // An error means that the client has gone, and the socket's buffer has room for the answer.
            let _ = connection.write_all(answer.as_bytes()).await;
            close_gently(connection).await;
        }
        Err(_) => tracing::debug!(%peer, "a TLS handshake took too long"),
    }
}

/// Closes a connection so that the client reads the alert: closing a socket with unread bytes would reset it, and the
/// alert would be lost.
async fn close_gently(mut connection: TcpStream) {
    let read_on = async {
        let mut unread = [0; 1024];
        // An error means that the connection has closed.
        if connection.shutdown().await.is_ok() {
            while connection.read(&mut unread).await.is_ok_and(|count| count > 0) {}
        }
    };
    // A client that keeps sending is disconnected.
    let _ = timeout(CLOSE_TIMEOUT, read_on).await;
}

/// The running handshakes. Dropping them closes their connections.
#[derive(Default)]
struct Handshakes {
    running: JoinSet<()>,
    /// Oldest first; those that have ended are removed from time to time.
    order: VecDeque<(Instant, AbortHandle)>,
}

impl Handshakes {
    fn start(&mut self, handshake: impl Future<Output = ()> + Send + 'static) {
        if self.order.len() >= 2 * MAX_HANDSHAKES {
            self.order.retain(|(_, handle)| !handle.is_finished());
        }
        let handle = self.running.spawn(handshake);
        self.order.push_back((Instant::now(), handle));
    }

    /// Waits until one more may run: until one ends, or until the oldest has run for [`MIN_HANDSHAKE_TIME`] and is
    /// aborted. Silent clients thus cannot lock out others.
    async fn make_room(&mut self) {
        while self.running.len() >= MAX_HANDSHAKES {
            self.order.retain(|(_, handle)| !handle.is_finished());
            let left = self
                .order
                .front()
                .map_or(Duration::ZERO, |(began, _)| MIN_HANDSHAKE_TIME.saturating_sub(began.elapsed()));
            if timeout(left, self.running.join_next()).await.is_err() {
                if let Some((_, oldest)) = self.order.pop_front() {
                    oldest.abort();
                }
                self.running.join_next().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_of_too_many_makes_room_after_its_time() {
        let mut handshakes = Handshakes::default();
        let (ended, mut ends) = mpsc::unbounded_channel();
        struct Tell(usize, mpsc::UnboundedSender<usize>);
        impl Drop for Tell {
            fn drop(&mut self) {
                // The test may have ended.
                let _ = self.1.send(self.0);
            }
        }
        for number in 0..MAX_HANDSHAKES {
            let tell = Tell(number, ended.clone());
            handshakes.start(async move {
                let _tell = tell;
                std::future::pending().await
            });
        }
        let began = Instant::now();
        handshakes.make_room().await;
        assert!(began.elapsed() >= MIN_HANDSHAKE_TIME && began.elapsed() < MIN_HANDSHAKE_TIME * 2);
        assert_eq!(handshakes.running.len(), MAX_HANDSHAKES - 1);
        assert_eq!(ends.try_recv(), Ok(0));
        handshakes.start(std::future::ready(()));
        handshakes.make_room().await;
        assert!(ends.try_recv().is_err(), "none is aborted when one has ended");
    }
}
