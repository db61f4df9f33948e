//! Deadlines of calls.
//!
//! tonic's own timer reports a passed deadline as CANCELLED and bounds only the head of a stream's response. This timer
//! runs out a little earlier, so that its DEADLINE_EXCEEDED is sent instead.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tonic::Status;
use tonic::codegen::{Service, http};

/// Put into a request's extensions when its head arrives, before its messages have been read.
#[derive(Debug, Clone, Copy)]
struct Deadline(Instant);

/// The call's deadline; `None`: its client set none.
pub(in crate::server) fn of<T>(request: &tonic::Request<T>) -> Option<Instant> {
    request.extensions().get().map(|Deadline(at)| *at)
}

/// The message of a call whose deadline has passed.
pub(in crate::server) const EXCEEDED: &str = "the deadline that the client set for the call has passed";

/// Resolves at the deadline; never without one.
pub(in crate::server) async fn passed(deadline: Option<Instant>) {
    match deadline {
        // A timer would end up to a millisecond later.
        Some(deadline) if deadline <= Instant::now() => {}
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// Gives each request its [`Deadline`], and answers DEADLINE_EXCEEDED when its response has not begun by then.
#[derive(Debug, Clone)]
pub(in crate::server) struct WithDeadline<S>(pub(in crate::server) S);

impl<S, B, R> Service<http::Request<B>> for WithDeadline<S>
where
    S: Service<http::Request<B>, Response = http::Response<R>>,
    S::Future: Send + 'static,
    S::Error: 'static,
    R: Default + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        let deadline = timeout(request.headers()).and_then(|timeout| Instant::now().checked_add(with_margin(timeout)));
        if let Some(deadline) = deadline {
            request.extensions_mut().insert(Deadline(deadline));
        }
        let response = self.0.call(request);
        Box::pin(async move {
            tokio::select! {
                biased;
                response = response => response,
                () = passed(deadline) => Ok(Status::deadline_exceeded(EXCEEDED).into_http()),
            }
        })
    }
}

/// The timeout less a margin of at most 20 ms, which makes this timer earlier than tonic's and the client's: on an idle
/// machine a timer may be late by 5 ms.
fn with_margin(timeout: Duration) -> Duration {
    timeout - (timeout / 10).min(Duration::from_millis(20))
}

/// The value of `grpc-timeout`. One that is malformed counts as absent.
fn timeout(headers: &http::HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<Duration> {
        timeout(&http::HeaderMap::from_iter([(
            http::HeaderName::from_static("grpc-timeout"),
            text.parse().expect("a header value"),
        )]))
    }

    #[test]
    fn a_timeout_has_up_to_eight_digits_and_a_unit() {
        assert_eq!(parse("1H"), Some(Duration::from_secs(3600)));
        assert_eq!(parse("99999999m"), Some(Duration::from_millis(99_999_999)));
        assert_eq!(parse("5u"), Some(Duration::from_micros(5)));
        for text in ["", "S", "123456789S", "1x", "-1S", "1 S"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
        assert_eq!(timeout(&http::HeaderMap::new()), None);
    }

    #[test]
    fn the_servers_timer_is_the_earlier_one_by_a_little() {
        assert_eq!(with_margin(Duration::from_secs(10)), Duration::from_millis(9_980));
        assert_eq!(with_margin(Duration::from_millis(10)), Duration::from_millis(9));
        assert_eq!(with_margin(Duration::ZERO), Duration::ZERO);
    }
}
