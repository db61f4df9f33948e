//! One connection: how it begins, and that its last bytes arrive.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::server::Connected;

use super::About;
use crate::http::slots::Slot;

/// How long a connection that has sent everything still reads. Closing a socket with unread bytes would reset it, and
/// the client could lose the last bytes: the statuses of its streams.
const LINGER: Duration = Duration::from_secs(1);
/// How many bytes it reads then: about what a client sends before it learns that the server has stopped reading.
const LINGER_BYTES: usize = 8 << 20;

/// What every client of HTTP/2 sends first (RFC 9113, 3.4). Keep-alive begins only after it.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How a connection begins.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Beginning {
    Http2,
    /// The first bytes, of which the last one is none of HTTP/2's preface.
    Other(Vec<u8>),
    /// It ended within the preface.
    Ended,
}

/// A connection with its slot.
#[derive(Debug)]
pub(in crate::server) struct Connection<C> {
    connection: C,
    about: About,
    /// Bytes that were read to learn how the connection begins. They are read again.
    begun: Bytes,
    over: DropGuard,
    /// Runs once everything has been sent.
    linger_timer: Option<Pin<Box<Sleep>>>,
    linger_bytes: usize,
    _slot: Slot,
}

impl<C> Connection<C> {
    pub(in crate::server) fn new(connection: C, about: About, slot: Slot) -> Self {
        Connection {
            connection,
            about,
            begun: Bytes::new(),
            over: CancellationToken::new().drop_guard(),
            linger_timer: None,
            linger_bytes: 0,
            _slot: slot,
        }
    }

    /// Reads until it is clear whether the client speaks HTTP/2. The caller bounds the time.
    pub(super) async fn begin(&mut self) -> io::Result<Beginning>
    where
        C: AsyncRead + Unpin,
    {
        let mut bytes = Vec::with_capacity(PREFACE.len());
        while bytes.len() < PREFACE.len() {
            let left = PREFACE.len() - bytes.len();
            if (&mut self.connection).take(left as u64).read_buf(&mut bytes).await? == 0 {
                return Ok(Beginning::Ended);
            }
            if !PREFACE.starts_with(&bytes) {
                return Ok(Beginning::Other(bytes));
            }
        }
        self.begun = bytes.into();
        Ok(Beginning::Http2)
    }

    pub(super) fn about(&self) -> &About {
        &self.about
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
        if self.begun.is_empty() {
            return Pin::new(&mut self.connection).poll_read(context, buffer);
        }
        let count = self.begun.len().min(buffer.remaining());
        buffer.put_slice(&self.begun[..count]);
        self.begun.advance(count);
        Poll::Ready(Ok(()))
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
    use crate::http::slots::Slots;

    #[tokio::test]
    async fn a_connection_that_has_sent_everything_reads_on_so_that_its_last_bytes_arrive() {
        let (server, mut client) = UnixStream::pair().expect("two ends");
        let slot = Slots::new(1, 1).take(None).expect("the first");
        let mut connection = Connection::new(server, About::default(), slot);
        connection.write_all(b"the status").await.expect("it is written");
        client.write_all(&[7; 100_000]).await.expect("nobody has read it yet");
        let closing = tokio::spawn(async move { connection.shutdown().await });
        let mut read = Vec::new();
        client.read_to_end(&mut read).await.expect("no reset");
        assert_eq!(read, b"the status");
        drop(client);
        closing.await.expect("no panic").expect("it closes");
    }

    #[tokio::test]
    async fn a_beginning_is_told_from_http_2s_preface_and_read_again() {
        let other = |bytes: &[u8]| Beginning::Other(bytes.to_vec());
        for (said, beginning) in [
            (&[&PREFACE[..], b"more"].concat()[..], Beginning::Http2),
            (b"GET / HTTP/1.1", other(b"GET / HTTP/1.1")),
            (b"PRI * HTTP/1.1\r\n\r\nSM\r\n\r\nmore", other(b"PRI * HTTP/1.1\r\n\r\nSM\r\n\r\n")),
            (&PREFACE[..23], Beginning::Ended),
            (b"", Beginning::Ended),
        ] {
            let (server, mut client) = UnixStream::pair().expect("two ends");
            let slot = Slots::new(1, 1).take(None).expect("the first");
            let mut connection = Connection::new(server, About::default(), slot);
            client.write_all(said).await.expect("room");
            drop(client);
            let is_http2 = beginning == Beginning::Http2;
            assert_eq!(connection.begin().await.expect("no error"), beginning);
            let mut read = Vec::new();
            connection.read_to_end(&mut read).await.expect("no error");
            assert!(!is_http2 || read == said, "{read:?}");
        }
    }
}
