//! Calls as the transport sees them: what trace they belong to, how long they take, when their answer has left.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::body::Body;
use tonic::codegen::{Bytes, Service, StdError, http};

use crate::telemetry::metrics::Metrics;
use crate::telemetry::{Stage, status_name};

use crate::server::frame_account::FrameAccount;

/// The trace that a call belongs to: W3C's two headers as they came, empty when they did not.
#[derive(Debug, Clone, Default)]
pub(in crate::server) struct CallTrace {
    pub(in crate::server) traceparent: String,
    pub(in crate::server) tracestate: String,
}

impl CallTrace {
    pub(in crate::server) fn of<T>(request: &tonic::Request<T>) -> Self {
        let header = |name| request.metadata().get(name).and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
        CallTrace { traceparent: header("traceparent"), tracestate: header("tracestate") }
    }
}

/// The account of the frame that a response answers, on its way through the response's extensions to the transport.
#[derive(Clone)]
pub(in crate::server) struct Sending(Arc<Mutex<Option<FrameAccount>>>);

impl Sending {
    pub(in crate::server) fn new(account: FrameAccount) -> Self {
        Sending(Arc::new(Mutex::new(Some(account))))
    }

    /// The transport has taken the whole response.
    fn sent(&self) {
        if let Some(account) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            account.mark(Stage::Send);
        }
    }
}

/// The methods there are, as paths. Whatever else a client calls is one and the same to metrics.
const METHODS: [&str; 8] = [
    "/camlens.v1.ExplainService/Explain",
    "/camlens.v1.ExplainService/ExplainStream",
    "/camlens.v1.ModelService/ListModels",
    "/camlens.v1.ModelService/GetModel",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

fn method(path: &str) -> &'static str {
    METHODS.into_iter().find(|known| *known == path).and_then(|known| known.strip_prefix('/')).unwrap_or("_OTHER")
}

/// Watches each call until its response has been taken, or dropped.
#[derive(Debug, Clone)]
pub(in crate::server) struct WithCalls<S> {
    pub(in crate::server) metrics: Option<Metrics>,
    pub(in crate::server) services: S,
}

impl<S, Q, R> Service<http::Request<Q>> for WithCalls<S>
where
    S: Service<http::Request<Q>, Response = http::Response<R>>,
    S::Future: Send + 'static,
    R: HttpBody<Data = Bytes> + Send + 'static,
    R::Error: Into<StdError>,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.services.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Q>) -> Self::Future {
        let mut call = Call {
            metrics: self.metrics.clone(),
            method: method(request.uri().path()),
            began: Instant::now(),
            status: CANCELLED,
        };
        let response = self.services.call(request);
        Box::pin(async move {
            let mut response = response.await?;
            call.reads(response.headers());
            let sending = response.extensions_mut().remove::<Sending>();
            Ok(response.map(|body| Body::new(Watched { body: Box::pin(body), call, sending })))
        })
    }
}

const CANCELLED: i32 = tonic::Code::Cancelled as i32;

/// A call in progress; it is over when this goes. One of whose status nothing was seen was cancelled.
struct Call {
    metrics: Option<Metrics>,
    method: &'static str,
    began: Instant,
    status: i32,
}

impl Call {
    /// Headers, or trailers, may hold the status.
    fn reads(&mut self, headers: &http::HeaderMap) {
        let status = headers.get("grpc-status").and_then(|status| status.to_str().ok()?.parse().ok());
        self.status = status.unwrap_or(self.status);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Some(metrics) = &self.metrics {
            metrics.call(self.method, status_name(self.status), self.began.elapsed());
        }
    }
}

/// A response's body that tells when it has been taken.
struct Watched<R> {
    body: Pin<Box<R>>,
    call: Call,
    sending: Option<Sending>,
}

impl<R> HttpBody for Watched<R>
where
    R: HttpBody<Data = Bytes>,
{
    type Data = Bytes;
    type Error = R::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, R::Error>>> {
        let frame = ready!(self.body.as_mut().poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    self.call.reads(trailers);
                    self.sent();
                }
            }
            Some(Err(_)) => {}
            None => self.sent(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<R> Watched<R> {
    fn sent(&mut self) {
        if let Some(sending) = self.sending.take() {
            sending.sent();
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn every_method_of_ours_is_known_and_nothing_else_is() {
        let set = prost_types::FileDescriptorSet::decode(crate::proto::FILE_DESCRIPTOR_SET).expect("our own");
        let ours: Vec<String> = set
            .file
            .iter()
            .filter(|file| file.package() == "camlens.v1")
            .flat_map(|file| &file.service)
            .flat_map(|service| {
                service.method.iter().map(|method| format!("camlens.v1.{}/{}", service.name(), method.name()))
            })
            .collect();
        assert!(!ours.is_empty());
        for name in ours {
            assert_eq!(method(&format!("/{name}")), name);
        }
        assert_eq!(method("/camlens.v1.ExplainService/Explode"), "_OTHER");
    }
}
