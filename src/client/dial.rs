//! Connections to a server below HTTP/2: Unix sockets, TCP and TLS.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::credentials::ClientTls;
use super::trouble::SPEAKS_TLS;

/// First byte of a TLS record with an alert. A server's HTTP/2 never begins with it: its first frame would be longer
/// than a megabyte.
const TLS_ALERT: u8 = 21;

/// The error that ended the newest connection; empty while that connection is readable.
#[derive(Debug, Clone, Default)]
pub struct ConnectionError(Arc<Mutex<Option<String>>>);

impl ConnectionError {
    pub fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, error: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }
}

/// A connection of any kind.
trait Duplex: AsyncRead + AsyncWrite + Send {}

impl<T: AsyncRead + AsyncWrite + Send> Duplex for T {}

/// A connected socket. It stores a read error in `connection_error`.
pub struct Socket {
    stream: Pin<Box<dyn Duplex>>,
    /// Whether the connection is plaintext and nothing has been read from it.
    awaits_first_byte: bool,
    connection_error: ConnectionError,
}

impl Socket {
    fn new(stream: impl Duplex + 'static, plaintext: bool, connection_error: ConnectionError) -> Self {
        connection_error.set(None);
        Socket { stream: Box::pin(stream), awaits_first_byte: plaintext, connection_error }
    }

    pub async fn unix(path: &Path, connection_error: ConnectionError) -> io::Result<Self> {
        Ok(Socket::connected(UnixStream::connect(path).await?, connection_error))
    }

    pub fn connected(stream: UnixStream, connection_error: ConnectionError) -> Self {
        Socket::new(stream, true, connection_error)
    }

    /// Connects to `host` and `port`, with a TLS handshake if `tls` is set.
    pub async fn tcp(
        host: &str,
        port: u16,
        tls: Option<ClientTls>,
        connection_error: ConnectionError,
    ) -> io::Result<Self> {
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        let Some(ClientTls { config, name }) = tls else { return Ok(Socket::new(stream, true, connection_error)) };
        let stream = TlsConnector::from(config).connect(name, stream).await?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(io::Error::other("the server does not offer HTTP/2 over TLS"));
        }
        Ok(Socket::new(stream, false, connection_error))
    }
}

impl AsyncRead for Socket {
    /// Turns the alert with which a TLS server answers plaintext into the error [`SPEAKS_TLS`]. HTTP/2 would report an
    /// invalid frame.
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let mut read = ready!(self.stream.as_mut().poll_read(context, buffer));
        if read.is_ok()
            && std::mem::take(&mut self.awaits_first_byte)
            && buffer.filled().get(before) == Some(&TLS_ALERT)
        {
            read = Err(io::Error::other(SPEAKS_TLS));
        }
        if let Err(error) = &read {
            self.connection_error.set(Some(error.to_string()));
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_shutdown(context)
    }
}
