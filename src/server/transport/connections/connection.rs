//! One connection: silent clients are disconnected, and the last bytes arrive.

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
use crate::server::quota::slots::Slot;

/// How long a connection that has sent everything still reads. Closing a socket with unread bytes would reset it, and
/// the client could lose the last bytes: the statuses of its streams.
const LINGER: Duration = Duration::from_secs(1);
/// How many bytes it reads then: about what a client sends before it learns that the server has stopped reading.
const LINGER_BYTES: usize = 8 << 20;

/// Length of HTTP/2's connection preface (RFC 9113, 3.4). Keep-alive begins only after it.
const PREFACE_BYTES: usize = 24;

/// A connection with its slot.
#[derive(Debug)]
pub(in crate::server) struct Connection<C> {
    connection: C,
    about: About,
    /// Bytes of the preface that have been read.
    preface_bytes: usize,
    /// Runs out for a client that has not sent the preface; `None` once it has.
    preface_timer: Option<Pin<Box<Sleep>>>,
    over: DropGuard,
    /// Runs once everything has been sent.
    linger_timer: Option<Pin<Box<Sleep>>>,
    linger_bytes: usize,
    _slot: Slot,
}

impl<C> Connection<C> {
    /// A client has `preface_timeout` for the preface.
    pub(in crate::server) fn new(connection: C, about: About, slot: Slot, preface_timeout: Duration) -> Self {
        Connection {
            connection,
            about,
            preface_bytes: 0,
            preface_timer: Some(Box::pin(sleep(preface_timeout))),
            over: CancellationToken::new().drop_guard(),
            linger_timer: None,
            linger_bytes: 0,
            _slot: slot,
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

impl<C> Connected for Connection<C> {
    type ConnectInfo = About;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.about.clone()
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Connection<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.connection).poll_read(context, buffer);
        if let Some(timer) = &mut this.preface_timer {
            this.preface_bytes += buffer.filled().len() - before;
            if this.preface_bytes >= PREFACE_BYTES {
                this.preface_timer = None;
            } else if read.is_pending() && timer.as_mut().poll(context).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        read
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Connection<C> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(context)
    }

    /// Shuts down the sending side, then reads until the client has shut down its own, but for at most [`LINGER`] and
    /// [`LINGER_BYTES`].
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.linger_timer.is_none() {
            ready!(Pin::new(&mut self.connection).poll_shutdown(context))?;
        }
        let Connection { connection, linger_timer, linger_bytes, .. } = &mut *self;
        let timer = linger_timer.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        loop {
            if timer.as_mut().poll(context).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut scratch = [std::mem::MaybeUninit::<u8>::uninit(); 4096];
            let mut buffer = ReadBuf::uninit(&mut scratch);
            match ready!(Pin::new(&mut *connection).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() && *linger_bytes < LINGER_BYTES => {
                    *linger_bytes += buffer.filled().len();
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
    use crate::server::quota::slots::Slots;

    #[tokio::test]
    async fn a_connection_that_has_sent_everything_reads_on_so_that_its_last_bytes_arrive() {
        let (server, mut client) = UnixStream::pair().expect("two ends");
        let slot = Slots::new(1, 1).take(None).expect("the first");
        let mut connection = Connection::new(server, About::default(), slot, Duration::from_secs(60));
        connection.write_all(b"the status").await.expect("it is written");
        client.write_all(&[7; 100_000]).await.expect("nobody has read it yet");
        let closing = tokio::spawn(async move { connection.shutdown().await });
        let mut read = Vec::new();
        client.read_to_end(&mut read).await.expect("no reset");
        assert_eq!(read, b"the status");
        drop(client);
        closing.await.expect("no panic").expect("it closes");
    }
}
