//! Connections whose peer reads nothing.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// A connection that breaks with [`io::ErrorKind::TimedOut`] when its peer takes no byte of what is written for
/// `limit`.
pub(super) struct UnlessStalled<C> {
    connection: C,
    limit: Duration,
    /// Set while a write waits.
    gives_up: Option<Pin<Box<Sleep>>>,
}

impl<C> UnlessStalled<C> {
    pub(super) fn new(connection: C, limit: Duration) -> Self {
        UnlessStalled { connection, limit, gives_up: None }
    }

    /// `written`, or the error when a write has waited for too long.
    fn judge<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.gives_up = None;
            return written;
        }
        let limit = self.limit;
        let gives_up = self.gives_up.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + limit)));
        ready!(gives_up.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer reads nothing")))
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for UnlessStalled<C> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_read(context, into)
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for UnlessStalled<C> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.connection).poll_write(context, bytes);
        self.judge(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.connection).poll_write_vectored(context, parts);
        self.judge(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.connection).poll_flush(context);
        self.judge(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_peer_that_reads_is_written_to() {
        let (ours, mut theirs) = tokio::io::duplex(8);
        let mut connection = UnlessStalled::new(ours, Duration::from_secs(600));
        let mut read = [0; 64];
        let (written, reading) = tokio::join!(connection.write_all(&[1; 64]), theirs.read_exact(&mut read));
        assert_eq!((written.map_err(|error| error.kind()), reading.is_ok(), read), (Ok(()), true, [1; 64]));
    }

    #[tokio::test]
    async fn a_peer_that_reads_nothing_is_given_up() {
        let (ours, _theirs) = tokio::io::duplex(8);
        let mut connection = UnlessStalled::new(ours, Duration::from_millis(1));
        let error = connection.write_all(&[1; 64]).await.expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
