//! A stream's messages between its task and the transport, and the status that follows them.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::sync::mpsc;
use tonic::Status;

/// Capacity of the channel. A message in it can no longer be replaced by a newer one, so this is as small as possible.
const OUTBOUND_MESSAGES: usize = 1;

/// The stream's end of the channel.
pub(in crate::server) type Outbound<M> = mpsc::Sender<M>;

/// The status of a stream that has ended. Setting it never waits, even when the client does not read.
#[derive(Debug, Clone, Default)]
struct Ending(Arc<Mutex<Option<Status>>>);

/// Sets a stream's status. When the stream's task panics, the status is INTERNAL instead of OK.
#[derive(Debug)]
pub(in crate::server) struct EndOfStream(Ending);

impl EndOfStream {
    /// Ends the stream with `status` instead of OK.
    pub(in crate::server) fn set(self, status: Status) {
        self.0.set(status);
    }
}

impl Drop for EndOfStream {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("a stream's task panicked");
            self.0.set(Status::internal("something in camlens broke; other streams are not affected"));
        }
    }
}

impl Ending {
    /// Must be called before the last [`Outbound`] is dropped.
    fn set(&self, status: Status) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
    }

    fn take(&self) -> Option<Status> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The transport's end of the channel: the messages, then the status.
#[derive(Debug)]
pub struct Messages<M> {
    messages: mpsc::Receiver<M>,
    ending: Ending,
}

impl<M> Messages<M> {
    pub(in crate::server) fn new() -> (Outbound<M>, EndOfStream, Self) {
        let (outbound, messages) = mpsc::channel(OUTBOUND_MESSAGES);
        let ending = Ending::default();
        (outbound, EndOfStream(ending.clone()), Messages { messages, ending })
    }
}

impl<M> tokio_stream::Stream for Messages<M> {
    type Item = Result<M, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let message = ready!(self.messages.poll_recv(context));
        Poll::Ready(message.map(Ok).or_else(|| self.ending.take().map(Err)))
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt;
    use tonic::Code;

    use super::*;

    #[tokio::test]
    async fn the_status_comes_once_after_the_last_message() {
        let (outbound, ending, mut messages) = Messages::new();
        outbound.send(1).await.expect("room");
        ending.set(Status::aborted("enough"));
        drop(outbound);
        assert_eq!(messages.next().await.expect("a message").expect("no status yet"), 1);
        assert_eq!(messages.next().await.expect("a status").expect_err("the status").code(), Code::Aborted);
        assert!(messages.next().await.is_none());
    }

    #[tokio::test]
    async fn a_stream_that_breaks_is_not_ok() {
        let (outbound, ending, mut messages) = Messages::<u8>::new();
        let stream = async move |ending: EndOfStream, broken: bool| {
            let _outbound = outbound;
            tokio::task::yield_now().await;
            assert!(!broken, "expected by the test");
            drop(ending);
        };
        assert!(tokio::spawn(stream(ending, true)).await.is_err());
        assert_eq!(messages.next().await.expect("a status").expect_err("the status").code(), Code::Internal);
    }

    #[tokio::test]
    async fn without_a_status_the_stream_just_ends() {
        let (outbound, _ending, mut messages) = Messages::<u8>::new();
        drop(outbound);
        assert!(messages.next().await.is_none());
    }
}
