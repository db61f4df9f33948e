//! Connections to a server, with TLS and below HTTP/2.

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

/// A TLS record that holds an alert begins with this; HTTP/2 never does, since it would be a first frame of over a
/// megabyte.
const TLS_ALERT: u8 = 21;

/// Why the newest connection could not be read any further, if it could not.
#[derive(Debug, Clone, Default)]
pub struct ConnectionError(Arc<Mutex<Option<String>>>);

impl ConnectionError {
    pub fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, words: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = words;
    }
}

/// A connection of either kind.
trait Duplex: AsyncRead + AsyncWrite + Send {}

impl<T: AsyncRead + AsyncWrite + Send> Duplex for T {}

/// A connected socket that says why it broke.
pub struct Socket {
    stream: Pin<Box<dyn Duplex>>,
    /// Plaintext of which nothing has been read.
    unheard: bool,
    connection_error: ConnectionError,
}

impl Socket {
    fn new(stream: impl Duplex + 'static, plaintext: bool, connection_error: ConnectionError) -> Self {
        connection_error.set(None);
        Socket { stream: Box::pin(stream), unheard: plaintext, connection_error }
    }

    pub async fn unix(path: &Path, connection_error: ConnectionError) -> io::Result<Self> {
        Ok(Socket::new(UnixStream::connect(path).await?, true, connection_error))
    }

    /// Connects to `host` and `port`, with a TLS handshake if that is wanted.
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
            return Err(io::Error::other("the server offers no HTTP/2 over TLS"));
        }
        Ok(Socket::new(stream, false, connection_error))
    }
}

impl AsyncRead for Socket {
    /// A TLS server answers plaintext with an alert, which HTTP/2 would only find strange: it is named here.
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let mut read = ready!(self.stream.as_mut().poll_read(context, buffer));
        if read.is_ok() && std::mem::take(&mut self.unheard) && buffer.filled().get(before) == Some(&TLS_ALERT) {
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
