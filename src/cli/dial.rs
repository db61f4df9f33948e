//! Connections to a server's socket, below TLS and HTTP/2.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::transport_trouble::SPEAKS_TLS;

/// A TLS record that holds an alert begins with this; HTTP/2 never does, since it would be a first frame of over a megabyte.
const TLS_ALERT: u8 = 21;

/// A connected socket.
pub enum Socket {
    Unix(UnixStream),
    /// Carries TLS.
    Tls(TcpStream),
    /// Carries plaintext; `heard`: whether the server has said something.
    Plain {
        stream: TcpStream,
        heard: bool,
    },
}

impl Socket {
    /// Connects to `host` and `port`.
    pub async fn tcp(host: &str, port: u16, tls: bool) -> io::Result<Self> {
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        Ok(if tls { Socket::Tls(stream) } else { Socket::Plain { stream, heard: false } })
    }
}

impl AsyncRead for Socket {
    /// A TLS server answers plaintext with an alert, which HTTP/2 would only find strange: it is named here.
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
            Socket::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
            Socket::Plain { stream, heard: true } => Pin::new(stream).poll_read(context, buffer),
            Socket::Plain { stream, heard } => {
                let before = buffer.filled().len();
                ready!(Pin::new(stream).poll_read(context, buffer))?;
                let first = buffer.filled().get(before).copied();
                *heard = first.is_some();
                Poll::Ready(if first == Some(TLS_ALERT) { Err(io::Error::other(SPEAKS_TLS)) } else { Ok(()) })
            }
        }
    }
}

impl Socket {
    fn writer(self: Pin<&mut Self>) -> Writer<'_> {
        match self.get_mut() {
            Socket::Unix(stream) => Writer::Unix(Pin::new(stream)),
            Socket::Tls(stream) | Socket::Plain { stream, .. } => Writer::Tcp(Pin::new(stream)),
        }
    }
}

enum Writer<'a> {
    Unix(Pin<&'a mut UnixStream>),
    Tcp(Pin<&'a mut TcpStream>),
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.writer() {
            Writer::Unix(stream) => stream.poll_write(context, bytes),
            Writer::Tcp(stream) => stream.poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.writer() {
            Writer::Unix(stream) => stream.poll_write_vectored(context, slices),
            Writer::Tcp(stream) => stream.poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Socket::Unix(stream) => stream.is_write_vectored(),
            Socket::Tls(stream) | Socket::Plain { stream, .. } => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.writer() {
            Writer::Unix(stream) => stream.poll_flush(context),
            Writer::Tcp(stream) => stream.poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.writer() {
            Writer::Unix(stream) => stream.poll_shutdown(context),
            Writer::Tcp(stream) => stream.poll_shutdown(context),
        }
    }
}
