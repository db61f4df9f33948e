//! Delivers spans: many in a message, each frame's together.

use std::time::Duration;

use bytes::Bytes;
use opentelemetry_sdk::Resource;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::losses::Losses;
use super::queue::Queue;
use super::sender::{Refused, SendError, Sender};
use super::settings::{Destination, ExportSettings};
use crate::telemetry::record::batch::EndedBatch;
use crate::telemetry::record::frame::FrameRecord;
use crate::telemetry::record::stream::StreamRecord;
use crate::telemetry::sampling::new_span_id;
use crate::telemetry::spans::{Envelope, Spans, batch_span, frame_spans, stream_span};
use crate::telemetry::stage::Stage;

/// How many times its timeout a message may take, with all the attempts at it and the pauses between them.
const TIMEOUTS: u32 = 2;
/// After a message that was not taken, how long nothing is sent, nor made ready: at first, and at most. It doubles.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What traces are made of.
#[derive(Debug)]
pub(in crate::telemetry) enum Item {
    Frame(Box<FrameRecord>),
    Batch(Box<EndedBatch>),
    Stream(Box<StreamRecord>),
}

impl Item {
    fn write(&self, into: &mut Spans) {
        match self {
            Item::Frame(record) => frame_spans(record, into),
            Item::Batch(batch) => batch_span(batch, into),
            Item::Stream(record) => stream_span(record, into),
        }
    }

    /// How many spans it makes; for a frame, at most.
    pub(super) fn span_count(&self) -> usize {
        match self {
            Item::Frame(_) => 1 + Stage::ALL.len(),
            Item::Batch(_) | Item::Stream(_) => 1,
        }
    }
}

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

    /// Delivers what waits, when there is enough of it or when the first of it has waited long enough, until `closing`; then
    /// what is left.
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
                // Who took none of these will take no others in the time that is left.
                self.losses.lost(queue.give_up() as u64);
            }
        }
    }

    /// A message. Says whether the collector took it.
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

    /// Tries until the collector takes it, or will not, or it has been too long.
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
    /// A little less than it says, by chance, so that a collector that comes back does not meet everybody at once.
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
