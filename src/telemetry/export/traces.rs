//! Delivers spans: many in a message, those of a frame in the same one.

use std::time::Duration;

use bytes::Bytes;
use opentelemetry_sdk::Resource;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::item::Item;
use super::losses::Losses;
use super::queue::Queue;
use super::sender::{Refused, SendError, Sender};
use super::settings::{Destination, ExportSettings};
use crate::telemetry::ids::new_span_id;
use crate::telemetry::spans::{Envelope, Spans};

/// A message, with all attempts and the pauses between them, may take this many timeouts.
const TIMEOUTS: u32 = 2;
/// The pause after a message that was not taken, in which nothing is sent or prepared. It doubles up to the longest.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The receiving end of the queue, in the exporter's thread.
pub(super) struct Delivery {
    sender: Sender,
    envelope: Envelope,
    losses: Losses,
    pause: Pause,
    timeout: Duration,
    batch_delay: Duration,
}

impl Delivery {
    pub(super) fn new(
        sender: Sender,
        resource: &Resource,
        losses: Losses,
        to: &Destination,
        settings: &ExportSettings,
    ) -> Self {
        Delivery {
            sender,
            envelope: Envelope::new(resource),
            losses,
            pause: Pause::default(),
            timeout: to.timeout,
            batch_delay: settings.batch_delay,
        }
    }

    /// Delivers waiting items when they fill a message or the first has waited long enough, until `closing`; then the
    /// rest.
    pub(super) async fn run(mut self, queue: &Queue, closing: CancellationToken) {
        let mut items = Vec::new();
        while !closing.is_cancelled() {
            if !queue.has_enough() {
                tokio::select! {
                    () = queue.enough() => {}
                    () = sleep(self.batch_delay) => {}
                    () = closing.cancelled() => break,
                }
            }
            queue.take(&mut items);
            if !self.deliver(&mut items, &closing).await {
                self.pause.wait(&closing).await;
            }
        }
        queue.close();
        loop {
            queue.take(&mut items);
            if items.is_empty() {
                break;
            }
            if !self.deliver(&mut items, &closing).await {
                // A collector that took none of these will take no others in the time that is left.
                self.losses.lost(queue.give_up() as u64);
            }
        }
    }

    /// Sends a message. Returns whether the collector took it.
    async fn deliver(&mut self, items: &mut Vec<Item>, closing: &CancellationToken) -> bool {
        if items.is_empty() {
            return true;
        }
        let count = items.len() as u64;
        let mut spans = Spans::for_frames(items.len());
        for item in items.drain(..) {
            item.write(&mut spans);
        }
        match self.send(&self.envelope.around(spans), closing).await {
            Ok(refused) => {
                self.pause = Pause::default();
                self.losses.delivered();
                if let Some(Refused { spans, reason }) = refused {
                    self.losses.refused(spans.min(count), &reason);
                }
                true
            }
            Err(error) => {
                self.losses.failed(&error);
                self.losses.lost(count);
                false
            }
        }
    }

    /// Tries until the collector takes or refuses it, or until the time is over.
    async fn send(&mut self, message: &Bytes, closing: &CancellationToken) -> Result<Option<Refused>, SendError> {
        let until = Instant::now() + self.timeout * TIMEOUTS;
        loop {
            let sent = timeout(self.timeout, self.sender.send(message.clone())).await;
            let error = match sent.unwrap_or_else(|_| Err(self.no_answer())) {
                Ok(refused) => return Ok(refused),
                Err(error) => error,
            };
            if !error.is_temporary || closing.is_cancelled() || Instant::now() + self.pause.next > until {
                return Err(error);
            }
            self.losses.failed(&error);
            self.pause.wait(closing).await;
        }
    }

    fn no_answer(&self) -> SendError {
        SendError::temporary(format!("no answer from the collector within {:?}", self.timeout))
    }
}

/// Doubles with every use.
struct Pause {
    next: Duration,
}

impl Default for Pause {
    fn default() -> Self {
        Pause { next: PAUSE }
    }
}

impl Pause {
    /// The pause, shortened at random, so that a collector that comes back does not meet all its clients at once.
    async fn wait(&mut self, closing: &CancellationToken) {
        let chance = f64::from(new_span_id().bytes()[0]) / 255.0;
        let pause = self.next.mul_f64(0.75 + chance / 4.0);
        self.next = (self.next * 2).min(LONGEST_PAUSE);
        tokio::select! {
            () = sleep(pause) => {}
            () = closing.cancelled() => {}
        }
    }
}
