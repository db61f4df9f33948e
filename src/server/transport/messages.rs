//! A stream's messages on their way to the transport, and the status behind them.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::sync::mpsc;
use tonic::Status;

/// Messages in the channel at once: what is in there cannot be replaced any more, so it is as little as possible.
const OUTBOUND_MESSAGES: usize = 1;

/// Where a stream puts its messages.
pub(in crate::server) type Outbound<M> = mpsc::Sender<M>;

/// The status that a stream leaves behind. It waits for nobody: a client that reads no more finds it when it does.
#[derive(Debug, Clone, Default)]
struct Ending(Arc<Mutex<Option<Status>>>);

/// A stream's hold on its [`Ending`]: when the stream breaks, its client is told so instead of OK.
#[derive(Debug)]
pub(in crate::server) struct EndOfStream(Ending);

impl EndOfStream {
    /// How the stream ends, unless with OK.
    pub(in crate::server) fn set(self, status: Status) {
        self.0.set(status);
    }
}

impl Drop for EndOfStream {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("a stream broke");
            self.0.set(Status::internal("something in camlens broke; other streams are not affected"));
        }
    }
}

impl Ending {
    /// To be called before the last [`Outbound`] is dropped.
    fn set(&self, status: Status) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
    }

    fn take(&self) -> Option<Status> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What the transport reads.
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
