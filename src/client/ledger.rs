//! Where each frame of a stream is, over all of its connections: it waits, is in flight, and ends.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::account::Account;
use super::frame::{OutgoingFrame, Payload};
use super::tally::{Echo, Unended};
use crate::proto::v1;
use crate::proto::v1::explain_stream_response::Message as Response;

/// Most bytes of frames that are kept until they end. One frame may be larger.
const MAX_KEPT_BYTES: usize = 128 << 20;
/// The unit of [`Ledger::room`].
const ROOM_UNIT_BYTES: usize = 1 << 10;

/// A frame that was answered.
#[derive(Debug)]
pub struct Answered {
    pub frame: OutgoingFrame,
    /// Time from sending the frame to reading its answer.
    pub round_trip: Duration,
    /// Time from the capture of the frame to reading its answer.
    pub glass_to_answer: Duration,
}

/// What happens to the frames that had no answer when their connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unanswered {
    /// They are lost: a camera's next frame is worth more.
    Lose,
    /// They are sent again on the next connection. A frame that the server may have read is sent at most `tries` times,
    /// in case it is what breaks the server, and is then lost.
    SendAgain { tries: u32 },
}

/// The frames of one stream, and its account.
#[derive(Debug)]
pub(super) struct Ledger {
    state: Mutex<State>,
    /// Room for frames that are kept.
    room: Arc<Semaphore>,
    /// A frame has ended.
    ended: Notify,
}

#[derive(Debug, Default)]
struct State {
    account: Account,
    /// Whether a frame is sent alone: one of those in flight may have broken the last connection, and the others must
    /// not be lost with it.
    is_careful: bool,
    last_sequence: u64,
    /// Frames to send, in the order of their sequences.
    waiting: VecDeque<Kept>,
    in_flight: BTreeMap<u64, Kept>,
}

#[derive(Debug)]
struct Kept {
    sequence: u64,
    frame: OutgoingFrame,
    /// Number of times that the frame was sent to a server that may have read it.
    tries: u32,
    was_sent: bool,
    room: Option<OwnedSemaphorePermit>,
}

impl Ledger {
    pub fn new() -> Self {
        let room = Arc::new(Semaphore::new(MAX_KEPT_BYTES / ROOM_UNIT_BYTES));
        Ledger { state: Mutex::default(), room, ended: Notify::new() }
    }

    pub fn account(&self) -> Account {
        std::mem::take(&mut self.state().account)
    }

    pub fn has_waiting(&self) -> bool {
        !self.state().waiting.is_empty()
    }

    /// Number of frames that have ended.
    pub fn ended_frames(&self) -> u64 {
        let tally = &self.state().account.tally;
        tally.answered + tally.dropped_total() + tally.failed_total()
    }

    /// Gives a frame its sequence. It waits.
    pub fn add(&self, frame: OutgoingFrame) {
        let mut state = self.state();
        state.last_sequence += 1;
        let sequence = state.last_sequence;
        state.waiting.push_back(Kept { sequence, frame, tries: 0, was_sent: false, room: None });
    }

    /// Waits until the first waiting frame may be sent and kept.
    pub async fn make_room(&self) {
        while self.must_wait() {
            self.ended.notified().await;
        }
        let Some(units) = self.state().waiting.front().filter(|kept| kept.room.is_none()).map(Kept::units) else {
            return;
        };
        let permit = self.room.clone().acquire_many_owned(units).await;
        if let Some(first) = self.state().waiting.front_mut() {
            first.room = permit.ok();
        }
    }

    fn must_wait(&self) -> bool {
        let state = self.state();
        state.is_careful && !state.in_flight.is_empty()
    }

    /// The message with the first waiting frame, which is in flight from now on.
    pub fn send(&self) -> Option<v1::Frame> {
        let mut state = self.state();
        let mut kept = state.waiting.pop_front()?;
        let message = message(kept.sequence, &kept.frame);
        let echo = Echo { tag: message.tag.clone(), capture_time: message.capture_time };
        let tally = &mut state.account.tally;
        match kept.was_sent {
            false => tally.sent(kept.sequence, echo, Instant::now()),
            true => tally.sent_again(kept.sequence, echo, Instant::now()),
        }
        kept.was_sent = true;
        kept.tries += 1;
        state.in_flight.insert(kept.sequence, kept);
        Some(message)
    }

    /// Counts a message of the server. Returns the number of frames that it ends, and the frame that it answers.
    pub fn take(&self, message: &Response) -> (u64, Option<Answered>) {
        let mut guard = self.state();
        let state = &mut *guard;
        let ended = state.account.take(message);
        let answered = match (message, ended.answered) {
            (Response::Explanation(answer), Some(sent)) => {
                let round_trip = sent.elapsed();
                state.account.round_trip.record(round_trip);
                state.in_flight.remove(&answer.sequence).map(|kept| {
                    let glass_to_answer = kept.frame.captured.at.elapsed();
                    state.account.glass_to_answer.record(glass_to_answer);
                    Answered { frame: kept.frame, round_trip, glass_to_answer }
                })
            }
            _ => None,
        };
        // Frames that a run of drops or an error has ended.
        let tally = &state.account.tally;
        state.in_flight.retain(|sequence, _| tally.is_open(*sequence));
        if ended.frames > 0 {
            state.is_careful = false;
            self.ended.notify_one();
        }
        (ended.frames, answered)
    }

    /// Sorts the frames in flight after their connection has ended: `broke` says whether with an error. Without one
    /// the server owes an ending to every frame that it has read.
    pub fn disconnected(&self, broke: bool, unanswered: Unanswered) {
        let mut guard = self.state();
        let state = &mut *guard;
        let mut in_flight = std::mem::take(&mut state.in_flight);
        let Unended { not_accepted, unanswered: open } = state.account.tally.disconnected();
        let mut again = VecDeque::new();
        for (sequence, was_read) in not_accepted.iter().map(|s| (*s, false)).chain(open.iter().map(|s| (*s, true))) {
            let Some(mut kept) = in_flight.remove(&sequence) else { continue };
            kept.tries -= u32::from(!was_read);
            match unanswered {
                _ if was_read && !broke => {
                    state.account.missing.insert(sequence);
                }
                Unanswered::SendAgain { tries } if kept.tries < tries => again.push_back(kept),
                Unanswered::SendAgain { .. } | Unanswered::Lose => state.account.tally.lost += 1,
            }
        }
        if unanswered == Unanswered::Lose {
            // It is old by the time of the next connection.
            state.account.unsent += state.waiting.len() as u64;
            state.waiting.clear();
        }
        state.is_careful = broke && !again.is_empty();
        again.append(&mut state.waiting);
        again.make_contiguous().sort_by_key(|kept| kept.sequence);
        state.waiting = again;
    }

    /// Ends the frames that wait when there is no further connection.
    pub fn close(&self, unsent: u64) {
        let mut guard = self.state();
        let state = &mut *guard;
        let tally = &mut state.account.tally;
        for kept in state.waiting.drain(..) {
            match (kept.was_sent, kept.tries) {
                (false, _) => state.account.unsent += 1,
                (true, 0) => tally.not_accepted += 1,
                (true, _) => tally.lost += 1,
            }
        }
        state.account.unsent += unsent;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl Kept {
    fn units(&self) -> u32 {
        let units = self.frame.len_bytes().div_ceil(ROOM_UNIT_BYTES).min(MAX_KEPT_BYTES / ROOM_UNIT_BYTES);
        u32::try_from(units).unwrap_or(u32::MAX)
    }
}

fn message(sequence: u64, frame: &OutgoingFrame) -> v1::Frame {
    use v1::frame::Payload as Wire;
    let payload = match frame.payload.clone() {
        Payload::Encoded(data) => Wire::Encoded(v1::EncodedImage { data, ..Default::default() }),
        Payload::Rgb { width, height, data } => Wire::Raw(v1::RawImage {
            data,
            width,
            height,
            pixel_format: v1::PixelFormat::Rgb8 as i32,
            ..Default::default()
        }),
    };
    v1::Frame {
        sequence,
        capture_time: Some(frame.captured.wall.into()),
        tag: frame.name.clone().into_bytes().into(),
        payload: Some(payload),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGAIN: Unanswered = Unanswered::SendAgain { tries: 2 };

    fn of(count: u32) -> Ledger {
        let ledger = Ledger::new();
        (0..count)
            .for_each(|number| ledger.add(OutgoingFrame::new(number.to_string(), Payload::Encoded([7; 9][..].into()))));
        ledger
    }

    fn send_all(ledger: &Ledger) -> Vec<u64> {
        std::iter::from_fn(|| ledger.send()).map(|frame| frame.sequence).collect()
    }

    fn answer(ledger: &Ledger, sequence: u64) -> Option<Answered> {
        let tag = (sequence - 1).to_string().into();
        let capture_time = ledger.state().in_flight.get(&sequence).map(|kept| kept.frame.captured.wall.into());
        let answer = v1::Explanation { sequence, tag, capture_time, ..Default::default() };
        ledger.take(&Response::Explanation(Box::new(answer))).1
    }

    #[test]
    fn an_answer_comes_with_its_frame() {
        let ledger = of(2);
        assert_eq!(send_all(&ledger), [1, 2]);
        let answered = answer(&ledger, 2).expect("it was sent");
        assert_eq!(answered.frame.name, "1");
        assert!(answered.glass_to_answer >= answered.round_trip);
        assert!(answer(&ledger, 2).is_none(), "it has ended");
        assert_eq!(ledger.state().in_flight.len(), 1);
    }

    #[test]
    fn after_going_away_the_frames_that_were_not_accepted_are_sent_again_with_their_sequences() {
        let ledger = of(4);
        assert_eq!(send_all(&ledger), [1, 2, 3, 4]);
        answer(&ledger, 1);
        ledger.take(&Response::GoingAway(v1::GoingAway { last_accepted_sequence: Some(2), ..Default::default() }));
        answer(&ledger, 2);
        ledger.disconnected(false, AGAIN);
        assert_eq!(send_all(&ledger), [3, 4]);
        assert!([3, 4].into_iter().all(|sequence| answer(&ledger, sequence).is_some()));
        ledger.close(0);
        let account = ledger.account();
        assert_eq!((account.tally.sent, account.tally.answered, account.tally.altered.len()), (4, 4, 0));
        assert!(account.missing.is_empty() && account.tally.lost == 0 && account.tally.not_accepted == 0);
    }

    #[test]
    fn a_frame_that_may_have_broken_the_server_is_sent_again_a_limited_number_of_times() {
        let ledger = of(2);
        send_all(&ledger);
        answer(&ledger, 1);
        ledger.disconnected(true, AGAIN);
        assert_eq!(send_all(&ledger), [2]);
        ledger.disconnected(true, AGAIN);
        assert!(send_all(&ledger).is_empty());
        assert_eq!(ledger.account().tally.lost, 1);
    }

    #[tokio::test]
    async fn after_a_broken_connection_a_frame_is_sent_alone_until_one_ends() {
        let ledger = of(3);
        send_all(&ledger);
        ledger.disconnected(true, AGAIN);
        ledger.make_room().await;
        assert_eq!(ledger.send().map(|frame| frame.sequence), Some(1));
        let alone = tokio::time::timeout(Duration::from_millis(20), ledger.make_room());
        assert!(alone.await.is_err(), "frame 1 has not ended");
        assert!(answer(&ledger, 1).is_some());
        ledger.make_room().await;
        assert_eq!(send_all(&ledger), [2, 3]);
    }

    #[test]
    fn a_cameras_frames_are_lost_with_their_connection() {
        let ledger = of(3);
        ledger.send();
        ledger.send();
        ledger.disconnected(true, Unanswered::Lose);
        ledger.close(5);
        let account = ledger.account();
        assert_eq!((account.tally.sent, account.tally.lost, account.unsent), (2, 2, 6));
    }

    #[test]
    fn a_frame_that_the_server_read_and_never_ended_is_missing() {
        let ledger = of(2);
        send_all(&ledger);
        answer(&ledger, 1);
        ledger.disconnected(false, AGAIN);
        assert!(send_all(&ledger).is_empty());
        assert_eq!(ledger.account().missing.into_iter().collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn frames_without_a_further_connection_are_accounted_for() {
        let ledger = of(3);
        ledger.send();
        ledger.send();
        ledger.take(&Response::GoingAway(v1::GoingAway { last_accepted_sequence: Some(1), ..Default::default() }));
        ledger.disconnected(true, AGAIN);
        ledger.close(0);
        let Account { tally, unsent, .. } = ledger.account();
        assert_eq!((tally.sent, tally.lost, tally.not_accepted, unsent), (2, 1, 1, 1));
    }

    #[tokio::test]
    async fn frames_in_flight_take_bounded_room() {
        let ledger = Ledger::new();
        let large = || Payload::Encoded(vec![0; MAX_KEPT_BYTES / 2 + 1].into());
        for name in ["a", "b"] {
            ledger.add(OutgoingFrame::new(name, large()));
        }
        ledger.make_room().await;
        ledger.send();
        let waiting = tokio::time::timeout(Duration::from_millis(20), ledger.make_room());
        assert!(waiting.await.is_err(), "there is no room for the second");
        let run = v1::Dropped { first_sequence: 1, last_sequence: 1, count: 1, ..Default::default() };
        ledger.take(&Response::Dropped(run));
        ledger.make_room().await;
        assert_eq!(ledger.send().map(|frame| frame.sequence), Some(2));
    }
}
