//! The channel to a server, for the generated clients.

use std::pin::Pin;
use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::codegen::StdError;
use tonic::codegen::http::{Request, Response};
use tonic::transport::{self, Channel};
use tower::Service;

use super::credentials::Bearer;
use super::dial::{Ends, NewestConnection};

/// A channel that adds the bearer token to each call, and the connection's error to a call that failed with it.
#[derive(Debug, Clone)]
pub struct Link {
    channel: Channel,
    bearer: Bearer,
    connection: NewestConnection,
}

impl Link {
    /// `connection` is the one that the channel's sockets write to.
    pub fn new(channel: Channel, bearer: Bearer, connection: NewestConnection) -> Self {
        Link { channel, bearer, connection }
    }

    /// The ends of the newest connection. `None` if the system does not tell.
    pub fn ends(&self) -> Option<Ends> {
        self.connection.ends()
    }
}

/// A call that failed because its connection broke. A server refuses a client's certificate after HTTP/2 has begun; the
/// transport's own error says only that the call was cancelled.
#[derive(Debug, thiserror::Error)]
#[error("{connection_error}")]
struct BrokenConnection {
    connection_error: String,
    source: transport::Error,
}

impl NewestConnection {
    fn explain(&self, error: transport::Error) -> StdError {
        match self.error() {
            Some(connection_error) => Box::new(BrokenConnection { connection_error, source: error }),
            None => Box::new(error),
        }
    }
}

impl Service<Request<Body>> for Link {
    type Response = Response<Body>;
    type Error = StdError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, StdError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StdError>> {
        self.channel.poll_ready(context).map_err(|error| self.connection.explain(error))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        self.bearer.join(request.headers_mut());
        let (answer, connection) = (self.channel.call(request), self.connection.clone());
        Box::pin(async move { answer.await.map_err(|error| connection.explain(error)) })
    }
}
