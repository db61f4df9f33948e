//! Connections to a server below HTTP/2: Unix sockets, TCP and TLS.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::credentials::ClientTls;
use super::trouble::SPEAKS_TLS;

/// First byte of a TLS record with an alert. A server's HTTP/2 never begins with it: its first frame would be longer
/// than a megabyte.
const TLS_ALERT: u8 = 21;

/// The ends of a connection. They lead to the server's process, if it runs on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// The process that listens on the socket, as this process's PID namespace numbers it; 0 if it is in another one.
    Unix { listener: i32 },
    /// The addresses as this end sees them.
    Tcp { client: SocketAddr, server: SocketAddr },
}

/// What a link knows of its newest connection.
#[derive(Debug, Clone, Default)]
pub struct NewestConnection(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    /// `None` if the system does not tell.
    ends: Option<Ends>,
    /// The error that ended the connection; `None` while it is readable.
    error: Option<String>,
}

impl NewestConnection {
    pub fn error(&self) -> Option<String> {
        self.known().error.clone()
    }

    pub fn ends(&self) -> Option<Ends> {
        self.known().ends
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection of any kind.
trait Duplex: AsyncRead + AsyncWrite + Send {}

impl<T: AsyncRead + AsyncWrite + Send> Duplex for T {}

/// A connected socket. It stores its ends, and a read error, in `connection`.
pub struct Socket {
    stream: Pin<Box<dyn Duplex>>,
    /// Whether the connection is plaintext and nothing has been read from it.
    awaits_first_byte: bool,
    connection: NewestConnection,
}

impl Socket {
    fn new(stream: impl Duplex + 'static, plaintext: bool, ends: Option<Ends>, connection: NewestConnection) -> Self {
        *connection.known() = Known { ends, error: None };
        Socket { stream: Box::pin(stream), awaits_first_byte: plaintext, connection }
    }

    pub async fn unix(path: &Path, connection: NewestConnection) -> io::Result<Self> {
        Ok(Socket::connected(UnixStream::connect(path).await?, connection))
    }

    pub fn connected(stream: UnixStream, connection: NewestConnection) -> Self {
        let listener = stream.peer_cred().ok().and_then(|credentials| credentials.pid());
        let ends = listener.map(|listener| Ends::Unix { listener });
        Socket::new(stream, true, ends, connection)
    }

    /// Connects to `host` and `port`, with a TLS handshake if `tls` is set.
    pub async fn tcp(host: &str, port: u16, tls: Option<ClientTls>, connection: NewestConnection) -> io::Result<Self> {
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        let addresses = stream.local_addr().and_then(|client| Ok((client, stream.peer_addr()?)));
        let ends = addresses.ok().map(|(client, server)| Ends::Tcp { client, server });
        let Some(ClientTls { config, name }) = tls else { return Ok(Socket::new(stream, true, ends, connection)) };
        let stream = TlsConnector::from(config).connect(name, stream).await?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(io::Error::other("the server does not offer HTTP/2 over TLS"));
        }
        Ok(Socket::new(stream, false, ends, connection))
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
            self.connection.known().error = Some(error.to_string());
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
