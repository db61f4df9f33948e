//! Checks of a call's head, before its messages are read: its metadata, and whether there is such a method.

use std::future::{Future, ready};
use std::pin::Pin;
use std::task::{Context, Poll};

use tonic::Status;
use tonic::codegen::{Service, http};

/// The most metadata of a call: names, values, and 32 bytes for each of them, as HTTP/2 counts
/// (`SETTINGS_MAX_HEADER_LIST_SIZE`).
pub(in crate::server) const MAX_METADATA_BYTES: usize = 64 << 10;

/// Where HTTP/2 itself stops to keep a head and answers 431, which says no limit. It is higher, so that as a rule a
/// client gets the limit's name.
pub(in crate::server) const MAX_HEAD_BYTES: u32 = 256 << 10;

/// What HTTP/2 counts for each header beside its name and value.
const PER_HEADER_BYTES: usize = 32;

/// The metadata that services read. All other is dropped, so that a call that waits holds none of it.
const READ_BY_SERVICES: [&str; 4] = ["traceparent", "tracestate", "grpc-encoding", "grpc-accept-encoding"];

/// The status of an unknown method, from its path; `None` for one that there is.
pub(in crate::server) type UnknownMethod = fn(&str) -> Option<Status>;

/// Answers a call with the status of `check`, if there is one.
#[derive(Debug, Clone)]
pub(in crate::server) struct WithCheck<F, S> {
    pub(in crate::server) check: F,
    pub(in crate::server) services: S,
}

impl<F, S, B, R> Service<http::Request<B>> for WithCheck<F, S>
where
    F: Fn(&mut http::Request<B>) -> Result<(), Status>,
    S: Service<http::Request<B>, Response = http::Response<R>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    R: Default + Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.services.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        match (self.check)(&mut request) {
            Ok(()) => Box::pin(self.services.call(request)),
            Err(status) => Box::pin(ready(Ok(status.into_http()))),
        }
    }
}

/// # Errors
/// RESOURCE_EXHAUSTED for more metadata than [`MAX_METADATA_BYTES`].
pub(in crate::server) fn metadata_fits<B>(request: &mut http::Request<B>) -> Result<(), Status> {
    let bytes: usize =
        request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + PER_HEADER_BYTES).sum();
    if bytes > MAX_METADATA_BYTES {
        return Err(Status::resource_exhausted(format!(
            "the call's metadata has {bytes} bytes: at most {MAX_METADATA_BYTES} are read, names, values and \
             {PER_HEADER_BYTES} for each of them"
        )));
    }
    Ok(())
}

/// Drops the metadata that no service reads.
///
/// # Errors
/// The status of a method that there is not.
pub(in crate::server) fn method_is_known<B>(
    unknown_method: UnknownMethod,
    request: &mut http::Request<B>,
) -> Result<(), Status> {
    if let Some(status) = unknown_method(request.uri().path()) {
        return Err(status);
    }
    let headers = request.headers_mut();
    let mut kept = http::HeaderMap::new();
    for name in READ_BY_SERVICES {
        for value in headers.get_all(name) {
            kept.append(name, value.clone());
        }
    }
    *headers = kept;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(headers: &[(&str, usize)]) -> http::Request<()> {
        let request = headers
            .iter()
            .fold(http::Request::post("/a/b"), |request, (name, length)| request.header(*name, "v".repeat(*length)));
        request.body(()).expect("a request")
    }

    #[test]
    fn metadata_is_counted_as_http_2_counts() {
        let most = MAX_METADATA_BYTES - PER_HEADER_BYTES - "x-large".len();
        assert!(metadata_fits(&mut request(&[("x-large", most)])).is_ok());
        let status = metadata_fits(&mut request(&[("x-large", most + 1)])).expect_err("one byte too many");
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert!(status.message().contains("65537 bytes: at most 65536"), "{status}");
        let many = vec![("x", 0); MAX_METADATA_BYTES / (PER_HEADER_BYTES + 1) + 1];
        assert!(metadata_fits(&mut request(&many)).is_err());
    }

    #[test]
    fn services_see_the_metadata_that_they_read_and_no_other() {
        let sent = [("x-large", 1000), ("tracestate", 5), ("traceparent", 3), ("te", 8), ("tracestate", 2)];
        let mut request = request(&sent);
        method_is_known(|_| None, &mut request).expect("it is known");
        let kept: Vec<(&str, usize)> =
            request.headers().iter().map(|(name, value)| (name.as_str(), value.len())).collect();
        assert_eq!(kept, [("traceparent", 3), ("tracestate", 5), ("tracestate", 2)], "each value of each header");
        let unknown = method_is_known(|path| Some(Status::unimplemented(path)), &mut request);
        assert_eq!(unknown.expect_err("it is unknown").message(), "/a/b");
    }
}
