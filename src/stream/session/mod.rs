//! The state machine.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::dropped::{DropReason, DroppedBlock, DroppedRun};
use super::outbox::{Outbox, Sent};
use super::policy::{Bounds, Overflow, Pace, Policy};

/// What the driver of the session has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// End the frame if it has not been copied to the device yet. Then tell the session: [`Session::dropped`] with this
    /// reason when that worked, [`Session::taken`] when the device had it.
    Withdraw { sequence: u64, reason: DropReason },
    /// End the frame wherever it is. Then [`Session::dropped`] with this reason when that worked; when its answer was
    /// faster, the answer comes.
    Abort { sequence: u64, reason: DropReason },
}

/// The first decision about an accepted frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// Hand it to the device.
    Waits,
    /// The stream has no credit for it ([`Overflow::Reject`]): its error goes to [`Session::answered`].
    Rejected,
    /// It was dropped as [`DropReason::RateLimited`], and nothing is left to do.
    RateLimited,
}

/// A message for the client.
#[derive(Debug, PartialEq, Eq)]
pub enum Message<A> {
    /// A frame's answer, an explanation or an error.
    Answer {
        sequence: u64,
        answer: A,
    },
    Dropped(DroppedRun),
    GoingAway {
        last_accepted: Option<u64>,
        drain_timeout: Duration,
    },
}

/// A sequence that does not increase. The frame is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("sequence {got} does not increase: the frame before it was {last}")]
pub struct OutOfOrder {
    pub got: u64,
    pub last: u64,
}

#[derive(Debug)]
enum State<A> {
    /// Not known to be on the device.
    Waiting {
        expires_at: Option<Instant>,
    },
    /// Cannot be replaced any more.
    Taken,
    Answered {
        answer: A,
        bytes: usize,
    },
}

/// Frames in sequence order whose endings have not reached the outbox.
#[derive(Debug)]
enum Entry<A> {
    Frame { sequence: u64, state: State<A> },
    Dropped(DroppedBlock),
}

/// Why no more frames are read, and how the stream ends.
#[derive(Debug)]
enum Closing<E> {
    /// The client has said all, or the server drains: what was accepted is finished.
    Finish,
    /// What is pending is dropped.
    Fail(E),
    /// The client has gone.
    Gone,
}

/// A stream of frames. `A` is an answer, `E` an error that ends the stream.
#[derive(Debug)]
pub struct Session<A, E> {
    policy: Policy,
    bounds: Bounds,
    /// At most [`Bounds::max_unsent_bytes`].
    max_unsent_bytes: usize,
    entries: VecDeque<Entry<A>>,
    outbox: Outbox<A>,
    going_away: Option<Message<A>>,
    actions: VecDeque<Action>,
    /// Frames that take no credit: under [`Overflow::Reject`], those whose errors have not been sent.
    rejected: BTreeSet<u64>,
    pace: Pace,
    /// Answers that were dropped for a slow reader, for telemetry.
    evicted: Vec<(u64, A)>,
    last_accepted: Option<u64>,
    closing: Option<Closing<E>>,
    drain_deadline: Option<Instant>,
}

impl<A, E> Session<A, E> {
    pub fn new(policy: Policy, bounds: Bounds) -> Self {
        Session {
            policy,
            max_unsent_bytes: bounds.max_unsent_bytes,
            bounds,
            entries: VecDeque::new(),
            outbox: Outbox::new(),
            going_away: None,
            actions: VecDeque::new(),
            rejected: BTreeSet::new(),
            pace: Pace::default(),
            evicted: Vec::new(),
            last_accepted: None,
            closing: None,
            drain_deadline: None,
        }
    }

    /// Whether the next message of the client may be read. While it may not, the transport holds the client.
    pub fn wants_frames(&self) -> bool {
        if self.closing.is_some() {
            return false;
        }
        let in_flight = self.in_flight();
        match self.policy.overflow {
            Overflow::Block => self.has_credit(),
            // Errors that nobody reads must not pile up either.
            Overflow::Reject => in_flight < self.policy.credit(&self.bounds) + self.bounds.max_in_flight,
            Overflow::Latest => {
                in_flight < self.bounds.max_in_flight
                    || self.outbox.answers() > 0
                    || (in_flight == self.bounds.max_in_flight && self.waiting().next().is_some())
            }
        }
    }

    /// Whether the stream is about to end, for whatever reason: nothing more is read.
    pub fn is_closing(&self) -> bool {
        self.closing.is_some()
    }

    /// Whether another frame may be in work, as far as the stream is concerned.
    fn has_credit(&self) -> bool {
        self.in_flight() - self.rejected.len() < self.policy.credit(&self.bounds)
            && (self.unsent_bytes() == 0 || self.unsent_bytes() < self.max_unsent_bytes)
    }

    /// A frame was read at `now` and has passed its first checks. It expires when it is still waiting at `expires_at`.
    ///
    /// # Errors
    /// When the sequence does not increase. The stream must then end: [`Session::fail`].
    pub fn accept(&mut self, sequence: u64, now: Instant, expires_at: Option<Instant>) -> Result<Accepted, OutOfOrder> {
        self.check_order(sequence)?;
        if let Some(interval) = self.policy.min_interval
            && !self.pace.allows(now, interval)
        {
            self.drop_at_once(sequence);
            return Ok(Accepted::RateLimited);
        }
        let has_credit = self.has_credit();
        self.advance(sequence);
        match self.policy.overflow {
            Overflow::Latest => {
                let excess = (self.waiting().count() + 1).saturating_sub(self.policy.depth);
                let replaced: Vec<u64> = self.waiting().take(excess).collect();
                let reason = DropReason::Replaced;
                self.actions.extend(replaced.into_iter().map(|sequence| Action::Withdraw { sequence, reason }));
            }
            Overflow::Reject if !has_credit => {
                self.rejected.insert(sequence);
                self.entries.push_back(Entry::Frame { sequence, state: State::Taken });
                return Ok(Accepted::Rejected);
            }
            Overflow::Block | Overflow::Reject => {}
        }
        self.entries.push_back(Entry::Frame { sequence, state: State::Waiting { expires_at } });
        Ok(Accepted::Waits)
    }

    fn drop_at_once(&mut self, sequence: u64) {
        self.last_accepted = Some(sequence);
        self.entries.push_back(Entry::Dropped(DroppedBlock::of(sequence, DropReason::RateLimited)));
        self.merge_around(self.entries.len() - 1);
        self.release();
    }

    /// A frame was read and cannot be explained; its error goes to [`Session::answered`]. It has its position in the
    /// order, and replaces no frame that waits for the device.
    ///
    /// # Errors
    /// As [`Session::accept`].
    pub fn refuse(&mut self, sequence: u64) -> Result<(), OutOfOrder> {
        self.check_order(sequence)?;
        self.advance(sequence);
        if self.policy.overflow == Overflow::Reject {
            self.rejected.insert(sequence);
        }
        self.entries.push_back(Entry::Frame { sequence, state: State::Taken });
        Ok(())
    }

    /// The frame is on the device and cannot be replaced any more.
    pub fn taken(&mut self, sequence: u64) {
        if let Some(Entry::Frame { state: state @ State::Waiting { .. }, .. }) = self.find(sequence) {
            *state = State::Taken;
        }
    }

    /// The frame's answer is there; `bytes` is its size as a message.
    pub fn answered(&mut self, sequence: u64, answer: A, bytes: usize) {
        if let Some(Entry::Frame { state, .. }) = self.find(sequence)
            && !matches!(state, State::Answered { .. })
        {
            *state = State::Answered { answer, bytes };
            self.release();
        }
    }

    /// The frame ended without an answer.
    pub fn dropped(&mut self, sequence: u64, reason: DropReason) {
        let Some(index) = self.index(sequence) else { return };
        if let Entry::Frame { state: State::Answered { .. }, .. } = self.entries[index] {
            return;
        }
        self.rejected.remove(&sequence);
        self.entries[index] = Entry::Dropped(DroppedBlock::of(sequence, reason));
        self.merge_around(index);
        self.release();
    }

    /// The client cancels a frame. A sequence that is unknown or has ended is ignored.
    pub fn cancel(&mut self, sequence: u64) {
        if let Some(Entry::Frame { state: State::Waiting { .. } | State::Taken, .. }) = self.find(sequence) {
            self.actions.push_back(Action::Abort { sequence, reason: DropReason::Cancelled });
        }
    }

    /// Another policy for the frames that follow. The order cannot change.
    pub fn update(&mut self, policy: Policy) {
        self.policy = Policy { unordered: self.policy.unordered, ..policy };
    }

    /// At most `bytes` bytes of answers may wait from now on, and never more than [`Bounds::max_unsent_bytes`].
    pub fn limit_unsent(&mut self, bytes: usize) {
        self.max_unsent_bytes = bytes.min(self.bounds.max_unsent_bytes);
        self.make_room();
    }

    /// The client will send no more.
    pub fn half_close(&mut self) {
        self.closing.get_or_insert(Closing::Finish);
    }

    /// The server is about to stop: says so before anything else, reads no more, and gives what was accepted until
    /// `now + timeout`.
    pub fn drain(&mut self, now: Instant, timeout: Duration) {
        if self.drain_deadline.is_some() || matches!(self.closing, Some(Closing::Fail(_) | Closing::Gone)) {
            return;
        }
        if self.closing.is_none() {
            self.going_away = Some(Message::GoingAway { last_accepted: self.last_accepted, drain_timeout: timeout });
        }
        self.closing.get_or_insert(Closing::Finish);
        self.drain_deadline = Some(now + timeout);
    }

    /// The moment at which to call [`Session::tick`].
    pub fn deadline(&self) -> Option<Instant> {
        let expiries = self.entries.iter().filter_map(|entry| match entry {
            Entry::Frame { state: State::Waiting { expires_at }, .. } => *expires_at,
            _ => None,
        });
        expiries.chain(self.drain_deadline.filter(|_| self.unfinished().next().is_some())).min()
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Instant) {
        if self.drain_deadline.is_some_and(|deadline| deadline <= now) {
            self.drain_deadline = None;
            self.abort_all(DropReason::Draining);
        }
        for entry in &mut self.entries {
            if let Entry::Frame { sequence, state: State::Waiting { expires_at } } = entry
                && expires_at.is_some_and(|at| at <= now)
            {
                *expires_at = None;
                self.actions.push_back(Action::Withdraw { sequence: *sequence, reason: DropReason::Expired });
            }
        }
    }

    /// The stream ends with an error, after what is pending has got its ending.
    pub fn fail(&mut self, error: E) {
        if !matches!(self.closing, Some(Closing::Fail(_) | Closing::Gone)) {
            self.closing = Some(Closing::Fail(error));
            self.abort_all(DropReason::StreamEnded);
        }
    }

    /// The client has gone: everything that has not ended is ended, and nothing is sent.
    pub fn gone(&mut self) {
        self.closing = Some(Closing::Gone);
        self.abort_all(DropReason::StreamEnded);
    }

    /// The next thing for the driver to do.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Whether there is a message to send.
    pub fn has_message(&self) -> bool {
        !matches!(self.closing, Some(Closing::Gone)) && (self.going_away.is_some() || !self.outbox.is_empty())
    }

    /// The next message to send. Call it only when the transport has room: what stays here may still be replaced.
    pub fn next_message(&mut self) -> Option<Message<A>> {
        if !self.has_message() {
            return None;
        }
        if let Some(message) = self.going_away.take() {
            return Some(message);
        }
        self.outbox.pop().map(|sent| match sent {
            Sent::Answer { sequence, answer } => {
                self.rejected.remove(&sequence);
                Message::Answer { sequence, answer }
            }
            Sent::Dropped(run) => Message::Dropped(run),
        })
    }

    /// An answer that was dropped for a slow reader, and its sequence.
    pub fn next_evicted(&mut self) -> Option<(u64, A)> {
        self.evicted.pop()
    }

    /// Whether every message has been handed out: the stream may end with [`Session::into_ending`].
    pub fn is_over(&self) -> bool {
        match self.closing {
            None => false,
            Some(Closing::Gone) => self.unfinished().next().is_none(),
            Some(_) => self.entries.is_empty() && !self.has_message(),
        }
    }

    /// The stream's result.
    ///
    /// # Errors
    /// The error that was given to [`Session::fail`].
    pub fn into_ending(self) -> Result<(), E> {
        match self.closing {
            Some(Closing::Fail(error)) => Err(error),
            _ => Ok(()),
        }
    }

    /// Frames accepted whose ending has not been handed out, dropped ones aside.
    pub fn in_flight(&self) -> usize {
        self.entries.iter().filter(|entry| matches!(entry, Entry::Frame { .. })).count() + self.outbox.answers()
    }

    /// Bytes of answers that have not been handed out.
    pub fn unsent_bytes(&self) -> usize {
        let held = self.entries.iter().map(|entry| match entry {
            Entry::Frame { state: State::Answered { bytes, .. }, .. } => *bytes,
            _ => 0,
        });
        held.sum::<usize>() + self.outbox.bytes()
    }

    fn check_order(&self, sequence: u64) -> Result<(), OutOfOrder> {
        match self.last_accepted {
            Some(last) if sequence <= last => Err(OutOfOrder { got: sequence, last }),
            _ => Ok(()),
        }
    }

    /// Records a frame that was read, and drops another for it where the policy says so.
    fn advance(&mut self, sequence: u64) {
        self.last_accepted = Some(sequence);
        if self.policy.overflow == Overflow::Latest && self.in_flight() >= self.bounds.max_in_flight {
            self.evict();
        }
    }

    fn waiting(&self) -> impl Iterator<Item = u64> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Frame { sequence, state: State::Waiting { .. } } => Some(*sequence),
            _ => None,
        })
    }

    fn unfinished(&self) -> impl Iterator<Item = u64> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Frame { sequence, state: State::Waiting { .. } | State::Taken } => Some(*sequence),
            _ => None,
        })
    }

    fn abort_all(&mut self, reason: DropReason) {
        let sequences: Vec<u64> = self.unfinished().collect();
        self.actions.clear();
        self.actions.extend(sequences.into_iter().map(|sequence| Action::Abort { sequence, reason }));
    }

    fn index(&self, sequence: u64) -> Option<usize> {
        self.entries.iter().position(|entry| matches!(entry, Entry::Frame { sequence: own, .. } if *own == sequence))
    }

    fn find(&mut self, sequence: u64) -> Option<&mut Entry<A>> {
        self.index(sequence).map(|index| &mut self.entries[index])
    }

    /// Joins the block of dropped frames at `index` with its neighbours.
    fn merge_around(&mut self, index: usize) {
        for (left, right) in [(index, index + 1), (index.wrapping_sub(1), index)] {
            if matches!(self.entries.get(left), Some(Entry::Dropped(_)))
                && matches!(self.entries.get(right), Some(Entry::Dropped(_)))
                && let Some(Entry::Dropped(block)) = self.entries.remove(right)
                && let Some(Entry::Dropped(own)) = self.entries.get_mut(left)
            {
                own.merge(block);
            }
        }
    }

    /// Moves endings whose turn it is to the outbox.
    fn release(&mut self) {
        let mut index = 0;
        while index < self.entries.len() {
            if let Entry::Frame { state: State::Waiting { .. } | State::Taken, .. } = self.entries[index] {
                if !self.policy.unordered {
                    break;
                }
                index += 1;
                continue;
            }
            match self.entries.remove(index) {
                Some(Entry::Frame { sequence, state: State::Answered { answer, bytes } }) => {
                    self.outbox.push_answer(sequence, answer, bytes);
                }
                Some(Entry::Dropped(block)) => self.outbox.push_dropped(block),
                _ => {}
            }
        }
        self.make_room();
    }

    /// Drops a slow reader's answers, except the newest.
    fn make_room(&mut self) {
        if self.policy.overflow == Overflow::Latest && self.closing.is_none() {
            while self.outbox.answers() > 1 && self.outbox.bytes() > self.max_unsent_bytes {
                self.evict();
            }
        }
    }

    fn evict(&mut self) {
        if let Some((sequence, answer)) = self.outbox.evict(DropReason::SlowReader) {
            self.rejected.remove(&sequence);
            self.evicted.push((sequence, answer));
        }
    }
}

#[cfg(test)]
mod tests;
