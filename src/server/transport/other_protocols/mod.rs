//! What is not gRPC at a port that speaks gRPC: HTTP/1.1, gRPC-Web, JSON, browsers and probes get a sentence.
//!
//! [`http1`] answers a connection that does not begin with HTTP/2's preface, [`WithGrpcAlone`] a request of HTTP/2 that
//! is no call. [`Answers`] has the words for both.

pub mod http1;

use std::future::{Future, ready};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use http_body_util::Full;
use tonic::body::Body;
use tonic::codegen::{Bytes, Service, http};

/// The most that is repeated of a client's content type, or path.
const MAX_REPEATED_CHARACTERS: usize = 80;

/// Paths that clients of the admin port ask for, and of other servers like it.
const OPERATOR_PATHS: [&str; 9] =
    ["/metrics", "/livez", "/readyz", "/version", "/config", "/log", "/health", "/healthz", "/ready"];

/// What answers say of the port. Cheap to clone.
#[derive(Debug, Clone)]
pub(in crate::server) struct Answers {
    /// Of the admin port, if there is one.
    pub(in crate::server) admin: Option<SocketAddr>,
    /// Of the probe port, if there is one.
    pub(in crate::server) probes: Option<SocketAddr>,
}

/// A request that is no call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) path: &'a str,
    pub(super) content_type: Option<&'a str>,
    /// Whether it came over HTTP/2.
    pub(super) is_http2: bool,
}

impl Answers {
    /// The status of the response, and its text.
    pub(super) fn to(&self, asked: Asked<'_>) -> (http::StatusCode, String) {
        let content_type = asked.content_type.map(str::trim).filter(|content_type| !content_type.is_empty());
        let port = "this port speaks gRPC over HTTP/2 alone (content type application/grpc)";
        match content_type {
            Some(content_type) if has_prefix(content_type, "application/grpc-web") => {
                let sentence = format!(
                    "{} is not spoken here: {port}; a proxy that translates gRPC-Web, such as Envoy, may stand before \
                     it\n",
                    repeated(content_type)
                );
                (http::StatusCode::UNSUPPORTED_MEDIA_TYPE, sentence)
            }
            Some(content_type) if !is_grpc(content_type) => {
                let sentence = format!("{} is not spoken here: {port}\n", repeated(content_type));
                (http::StatusCode::UNSUPPORTED_MEDIA_TYPE, sentence)
            }
            _ => {
                let path = asked.path.split('?').next().unwrap_or("/");
                let is_operators = OPERATOR_PATHS.contains(&path);
                let what = match (is_operators, asked.is_http2) {
                    (true, _) => format!("there is no {path} here"),
                    (false, true) => "this is no call of gRPC".to_owned(),
                    (false, false) => "HTTP/1.1 is not spoken here".to_owned(),
                };
                let admin = match (self.admin, self.probes) {
                    (Some(admin), _) => format!("metrics and health over HTTP are at the admin port, http://{admin}/"),
                    (None, Some(probes)) => {
                        format!("metrics and health over HTTP are at the probe port, http://{probes}/metrics")
                    }
                    (None, None) => "metrics and health over HTTP have a port of their own with --admin-listen or \
                                     --probe-listen"
                        .to_owned(),
                };
                let status = match (is_operators, asked.is_http2) {
                    (true, _) => http::StatusCode::NOT_FOUND,
                    (false, true) => http::StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    (false, false) => http::StatusCode::UPGRADE_REQUIRED,
                };
                (status, format!("{what}: {port}; {admin}\n"))
            }
        }
    }
}

/// Whether a content type is one of gRPC whose messages are protobuf, or of a codec that its client does not name.
pub(in crate::server) fn is_grpc(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or("").trim();
    if !has_prefix(essence, GRPC) {
        return false;
    }
    match essence.as_bytes().get(GRPC.len()) {
        None => true,
        Some(b'+') => !essence[GRPC.len() + 1..].eq_ignore_ascii_case("json"),
        Some(_) => false,
    }
}

const GRPC: &str = "application/grpc";

fn has_prefix(text: &str, prefix: &str) -> bool {
    text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

/// A client's text for an answer: visible characters, not too many.
fn repeated(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_graphic() { c } else { ' ' }).take(MAX_REPEATED_CHARACTERS).collect()
}

/// Answers requests of HTTP/2 that are no calls; they are not counted as calls.
#[derive(Debug, Clone)]
pub(in crate::server) struct WithGrpcAlone<S> {
    pub(in crate::server) answers: Answers,
    pub(in crate::server) services: S,
}

impl<S, B> Service<http::Request<B>> for WithGrpcAlone<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.services.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let content_type = request.headers().get(http::header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or("?"));
        if request.method() == http::Method::POST && content_type.is_some_and(is_grpc) {
            return Box::pin(self.services.call(request));
        }
        let (status, sentence) = self.answers.to(Asked { path: request.uri().path(), content_type, is_http2: true });
        tracing::debug!(path = request.uri().path(), content_type, "a request that is no call of gRPC");
        let text = if request.method() == http::Method::HEAD { String::new() } else { sentence };
        let mut response = http::Response::new(Body::new(Full::new(Bytes::from(text))));
        *response.status_mut() = status;
        response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(TEXT));
        Box::pin(ready(Ok(response)))
    }
}

const TEXT: &str = "text/plain; charset=utf-8";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_is_known_by_its_content_type() {
        for grpc in ["application/grpc", "application/grpc+proto", "Application/gRPC; charset=utf-8"] {
            assert!(is_grpc(grpc), "{grpc}");
        }
        for other in [
            "",
            "application/grpc+json",
            "application/grpc-web",
            "application/grpc-web-text+proto",
            "application/grpcx",
            "application/json",
            "application/connect+json",
            "application/grp\u{e9}",
            "text/plain",
        ] {
            assert!(!is_grpc(other), "{other}");
        }
    }

    #[test]
    fn each_kind_of_request_has_its_status_and_its_sentence() {
        let port = |port: u16| Some(([127, 0, 0, 1], port).into());
        let with = Answers { admin: port(9464), probes: port(9465) };
        let probed = Answers { admin: None, probes: port(9465) };
        let without = Answers { admin: None, probes: None };
        let explain = "/camlens.v1.ExplainService/Explain";
        for (answers, path, content_type, is_http2, status, said) in [
            (&with, explain, Some("application/grpc-web-text"), false, 415, "proxy that translates gRPC-Web"),
            (&with, explain, Some("application/connect+json"), true, 415, "application/connect+json is not spoken"),
            (&with, explain, Some("a\u{1b}\r\nb"), true, 415, "a   b is not spoken here"),
            (&with, explain, Some("application/grpc"), false, 426, "HTTP/1.1 is not spoken here"),
            (&with, explain, Some("application/grpc"), true, 415, "this is no call of gRPC"),
            (&with, "/", None, false, 426, "the admin port, http://127.0.0.1:9464/"),
            (&without, "/", None, false, 426, "--admin-listen"),
            (&with, "/metrics?name=x", None, false, 404, "there is no /metrics here"),
            (&probed, "/metrics", None, false, 404, "the probe port, http://127.0.0.1:9465/metrics"),
            (&without, "/healthz", None, true, 404, "--admin-listen"),
        ] {
            let (code, sentence) = answers.to(Asked { path, content_type, is_http2 });
            assert_eq!(code.as_u16(), status, "{path} {content_type:?}");
            assert!(sentence.contains(said) && sentence.contains("speaks gRPC over HTTP/2"), "{sentence}");
            assert!(sentence.ends_with('\n') && sentence.lines().count() == 1, "{sentence:?}");
        }
    }
}
