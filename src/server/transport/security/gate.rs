//! The check for bearer tokens: every call needs one, except health checks.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tonic::Status;
use tonic::codegen::http::{HeaderMap, Request, Response, header};
use tower::{Layer, Service};

use super::token_file::TokenSet;
use super::watch::Watched;

/// Needs no token: probes have none, and health reveals only whether the server can be used.
const OPEN: &str = "/grpc.health.v1.Health/";

/// Puts a [`Gate`] before the services.
#[derive(Clone)]
pub(in crate::server) struct GateLayer(Option<Watched<TokenSet>>);

impl GateLayer {
    /// `None`: no call needs a token.
    pub(in crate::server) fn new(tokens: Option<Watched<TokenSet>>) -> Self {
        GateLayer(tokens)
    }
}

impl<S> Layer<S> for GateLayer {
    type Service = Gate<S>;

    fn layer(&self, services: S) -> Gate<S> {
        Gate { tokens: self.0.clone(), services }
    }
}

/// Answers UNAUTHENTICATED to calls without a known token.
#[derive(Clone)]
pub(in crate::server) struct Gate<S> {
    tokens: Option<Watched<TokenSet>>,
    services: S,
}

impl<S, Body, Answer> Service<Request<Body>> for Gate<S>
where
    S: Service<Request<Body>, Response = Response<Answer>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    Answer: Default + Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.services.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        if let Some(tokens) = self.tokens.as_ref().filter(|_| !path.starts_with(OPEN)) {
            match admit(&tokens.current(), request.headers()) {
                Ok(name) => tracing::debug!(path, token = %name, "admitted"),
                Err(status) => {
                    tracing::debug!(path, reason = status.message(), "not admitted");
                    return Box::pin(std::future::ready(Ok(status.into_http())));
                }
            }
        }
        Box::pin(self.services.call(request))
    }
}

/// The name of the call's token.
///
/// # Errors
/// UNAUTHENTICATED, with what to send.
fn admit(tokens: &TokenSet, headers: &HeaderMap) -> Result<Arc<str>, Status> {
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let Some(authorization) = given.next() else {
        return Err(Status::unauthenticated(
            "this server wants a token: send the metadata `authorization: Bearer TOKEN` (with the camlens command, \
             --token-file)",
        ));
    };
    if given.next().is_some() {
        return Err(Status::unauthenticated("authorization was sent more than once: send one `Bearer TOKEN`"));
    }
    let (scheme, token) = authorization.as_bytes().split_at_checked(SCHEME.len()).unwrap_or_default();
    if !scheme.eq_ignore_ascii_case(SCHEME) {
        return Err(Status::unauthenticated("authorization must be `Bearer TOKEN`"));
    }
    tokens.name_of(token.trim_ascii()).ok_or_else(|| {
        Status::unauthenticated("the token that was sent is none of this server's; it may have been replaced")
    })
}

const SCHEME: &[u8] = b"Bearer ";

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::server::transport::security::token_file;

    /// `Err`: the message with which the call was refused.
    async fn call(gate: &GateLayer, path: &str, authorization: &[&str]) -> Result<(), String> {
        let answer = |_: Request<()>| async { Ok::<_, std::convert::Infallible>(Response::new(())) };
        let mut request = Request::builder().uri(path);
        for value in authorization {
            request = request.header(header::AUTHORIZATION, *value);
        }
        let request = request.body(()).expect("a request");
        let response = gate.layer(tower::service_fn(answer)).call(request).await.expect("infallible");
        match Status::from_header_map(response.headers()) {
            None => Ok(()),
            Some(status) => {
                assert_eq!(status.code(), tonic::Code::Unauthenticated);
                Err(status.message().to_owned())
            }
        }
    }

    #[tokio::test]
    async fn only_health_and_calls_with_a_known_token_pass() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(b"camera: welcome-token\n").expect("written");
        let gate = GateLayer::new(Some(token_file::watch(file.path()).expect("a token")));
        let explain = "/camlens.v1.ExplainService/Explain";
        assert_eq!(call(&gate, explain, &["Bearer welcome-token"]).await, Ok(()));
        assert_eq!(call(&gate, explain, &["bearer  welcome-token"]).await, Ok(()));
        assert_eq!(call(&gate, "/grpc.health.v1.Health/Check", &[]).await, Ok(()));
        for (path, authorization, expected) in [
            (explain, &[][..], "wants a token"),
            ("/grpc.health.v1.HealthOfOthers/Check", &[], "wants a token"),
            ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", &[], "wants a token"),
            (explain, &["Bearer other-token"], "none of this server's"),
            (explain, &["Bearer "], "none of this server's"),
            (explain, &["welcome-token"], "must be `Bearer TOKEN`"),
            (explain, &["Basic welcome-token"], "must be `Bearer TOKEN`"),
            (explain, &["Bearer welcome-token", "Bearer other-token"], "more than once"),
        ] {
            let message = call(&gate, path, authorization).await.expect_err(path);
            assert!(message.contains(expected), "{message}");
            assert!(!message.contains("welcome-token") && !message.contains("other-token"), "{message}");
        }
        assert_eq!(call(&GateLayer::new(None), explain, &[]).await, Ok(()));
    }
}
