//! A channel to a server, as the generated clients use it.

use std::pin::Pin;
use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::codegen::StdError;
use tonic::codegen::http::{Request, Response};
use tonic::transport::{self, Channel};
use tower::Service;

use super::credentials::Bearer;
use super::dial::ConnectionError;

/// Calls carry the client's token, if it has one, and learn why their connection broke.
#[derive(Debug, Clone)]
pub struct Link {
    channel: Channel,
    bearer: Bearer,
    connection_error: ConnectionError,
}

impl Link {
    /// `connection_error` are those of the channel's connections.
    pub fn new(channel: Channel, bearer: Bearer, connection_error: ConnectionError) -> Self {
        Link { channel, bearer, connection_error }
    }
}

/// A call that failed with its connection. When a server refuses a client's certificate, HTTP/2 has begun, and all that
/// the transport says of the call is that it was cancelled.
#[derive(Debug, thiserror::Error)]
#[error("{connection_error}")]
struct Broken {
    connection_error: String,
    source: transport::Error,
}

impl ConnectionError {
    fn explain(&self, error: transport::Error) -> StdError {
        match self.get() {
            Some(connection_error) => Box::new(Broken { connection_error, source: error }),
            None => Box::new(error),
        }
    }
}

impl Service<Request<Body>> for Link {
    type Response = Response<Body>;
    type Error = StdError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, StdError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StdError>> {
        self.channel.poll_ready(context).map_err(|error| self.connection_error.explain(error))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        self.bearer.join(request.headers_mut());
        let (answer, connection_error) = (self.channel.call(request), self.connection_error.clone());
        Box::pin(async move { answer.await.map_err(|error| connection_error.explain(error)) })
    }
}
