//! Calls as the transport sees them: their trace, their duration, and when their response has been sent.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::body::Body;
use tonic::codegen::{Bytes, Service, StdError, http};

use crate::telemetry::metrics::Metrics;
use crate::telemetry::status_name;

/// The two headers of W3C Trace Context, unchecked. Empty: they were not sent. A header that was sent several times is
/// its values in their order, separated by commas (RFC 9110, 5.2): one list in `tracestate`, an error in `traceparent`.
#[derive(Debug, Clone, Default)]
pub(in crate::server) struct TraceHeaders {
    pub(in crate::server) traceparent: String,
    pub(in crate::server) tracestate: String,
}

impl TraceHeaders {
    pub(in crate::server) fn of<T>(request: &tonic::Request<T>) -> Self {
        let header = |name| {
            let values = request.metadata().get_all(name).iter().map(|value| value.to_str());
            values.collect::<Result<Vec<_>, _>>().map(|values| values.join(",")).unwrap_or_default()
        };
        TraceHeaders { traceparent: header("traceparent"), tracestate: header("tracestate") }
    }

    /// These, or `others` where there are none.
    pub(in crate::server) fn or(self, others: Self) -> Self {
        if self.traceparent.is_empty() { others } else { self }
    }
}

/// Called when a response has been sent; put into the response's extensions. It is dropped uncalled if the response is
/// not sent whole.
#[derive(Clone)]
pub(in crate::server) struct OnSent(Arc<Mutex<Option<Callback>>>);

type Callback = Box<dyn FnOnce() + Send>;

impl OnSent {
    pub(in crate::server) fn new(on_sent: impl FnOnce() + Send + 'static) -> Self {
        OnSent(Arc::new(Mutex::new(Some(Box::new(on_sent)))))
    }

    fn call(&self) {
        let on_sent = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(on_sent) = on_sent {
            on_sent();
        }
    }
}

/// Gives the name by which metrics know a method, from its path.
pub(in crate::server) type MethodName = fn(&str) -> &'static str;

/// Watches each call until its response has been sent or dropped.
#[derive(Debug, Clone)]
pub(in crate::server) struct WithCalls<S> {
    pub(in crate::server) metrics: Option<Metrics>,
    pub(in crate::server) method_name: MethodName,
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
            method: (self.method_name)(request.uri().path()),
            began: Instant::now(),
            status: CANCELLED,
        };
        let response = self.services.call(request);
        Box::pin(async move {
            let mut response = response.await?;
            call.reads(response.headers());
            let on_sent = response.extensions_mut().remove::<OnSent>();
            Ok(response.map(|body| Body::new(Watched { body: Box::pin(body), call, on_sent })))
        })
    }
}

const CANCELLED: i32 = tonic::Code::Cancelled as i32;

/// A call in progress. Dropping it ends the call; one whose status was never seen was cancelled.
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

/// A response's body that notices when it has been sent.
struct Watched<R> {
    body: Pin<Box<R>>,
    call: Call,
    on_sent: Option<OnSent>,
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
        if let Some(on_sent) = self.on_sent.take() {
            on_sent.call();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_that_was_sent_several_times_is_all_of_its_values_in_their_order() {
        let mut request = tonic::Request::new(());
        for (name, value) in [("tracestate", "rojo=1"), ("traceparent", "00-a"), ("tracestate", "congo=2, rojo2=3")] {
            request.metadata_mut().append(name, value.parse().expect("ASCII"));
        }
        let trace = TraceHeaders::of(&request);
        assert_eq!((trace.traceparent.as_str(), trace.tracestate.as_str()), ("00-a", "rojo=1,congo=2, rojo2=3"));
        request.metadata_mut().append("traceparent", "00-b".parse().expect("ASCII"));
        assert_eq!(TraceHeaders::of(&request).traceparent, "00-a,00-b");
    }
}
