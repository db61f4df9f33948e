//! A connection in its place: silent clients are given up, and the last word arrives.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::server::Connected;

use super::About;
use crate::server::quota::slots::Place;

/// How long a connection that has said all reads what its client still sends. Closing a socket with something unread in it
/// would reset it, and the client could lose what was said last: the streams' statuses.
const LINGER: Duration = Duration::from_secs(1);
/// And how much of it: about what a client sends before it hears that nobody reads.
const LINGER_BYTES: usize = 8 << 20;

/// HTTP/2's first words, the same from every client (RFC 9113, 3.4). Keep-alive asks only whoever has said them.
const PREFACE_BYTES: usize = 24;

/// A connection in its place, which becomes free with it.
#[derive(Debug)]
pub(in crate::server) struct Placed<C> {
    connection: C,
    about: About,
    heard_bytes: usize,
    /// Runs out for a client that has not said its first words by then; `None` once it has.
    silence: Option<Pin<Box<Sleep>>>,
    over: DropGuard,
    /// Runs once everything has been said.
    lingering: Option<Pin<Box<Sleep>>>,
    unheard_bytes: usize,
    _place: Place,
}

impl<C> Placed<C> {
    /// A client has `patience` for its first words.
    pub(in crate::server) fn new(connection: C, about: About, place: Place, patience: Duration) -> Self {
        Placed {
            connection,
            about,
            heard_bytes: 0,
            silence: Some(Box::pin(sleep(patience))),
            over: CancellationToken::new().drop_guard(),
            lingering: None,
            unheard_bytes: 0,
            _place: place,
        }
    }

    /// Resolves when the connection should end, or has ended.
    pub(in crate::server) fn ends(
        &self,
        close: CancellationToken,
        age: Option<Duration>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (over, aged) = (self.over.token().clone(), self.about.aged.clone());
        async move {
            let old = async {
                match age {
                    Some(age) => sleep(age).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = close.cancelled() => {}
                () = over.cancelled() => {}
                () = old => aged.cancel(),
            }
        }
    }
}

impl<C> Connected for Placed<C> {
    type ConnectInfo = About;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.about.clone()
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Placed<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.connection).poll_read(context, buffer);
        if let Some(silence) = &mut this.silence {
            this.heard_bytes += buffer.filled().len() - before;
            if this.heard_bytes >= PREFACE_BYTES {
                this.silence = None;
            } else if read.is_pending() && silence.as_mut().poll(context).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        read
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Placed<C> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(context)
    }

    /// Says that nothing more comes, and then reads until the client says so too, or for [`LINGER`], or [`LINGER_BYTES`].
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingering.is_none() {
            ready!(Pin::new(&mut self.connection).poll_shutdown(context))?;
        }
        let Placed { connection, lingering, unheard_bytes, .. } = &mut *self;
        let lingering = lingering.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        loop {
            if lingering.as_mut().poll(context).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut scratch = [std::mem::MaybeUninit::<u8>::uninit(); 4096];
            let mut buffer = ReadBuf::uninit(&mut scratch);
            match ready!(Pin::new(&mut *connection).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() && *unheard_bytes < LINGER_BYTES => {
                    *unheard_bytes += buffer.filled().len();
                }
                _ => return Poll::Ready(Ok(())),
            }
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    use super::*;
    use crate::server::quota::slots::Places;

    #[tokio::test]
    async fn a_connection_that_has_said_all_reads_what_comes_so_that_its_last_word_arrives() {
        let (server, mut client) = UnixStream::pair().expect("two ends");
        let place = Places::new(1, 1).take(None).expect("the first");
        let mut placed = Placed::new(server, About::default(), place, Duration::from_secs(60));
        placed.write_all(b"the status").await.expect("it is written");
        client.write_all(&[7; 100_000]).await.expect("nobody has read it yet");
        let closing = tokio::spawn(async move { placed.shutdown().await });
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).await.expect("no reset");
        assert_eq!(heard, b"the status");
        drop(client);
        closing.await.expect("no panic").expect("it closes");
    }
}
