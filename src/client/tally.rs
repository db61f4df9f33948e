//! Counts how each frame of a stream ended, and finds frames without an ending or with two.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use bytes::Bytes;
use prost_types::Timestamp;

use super::names;
use crate::proto::v1::explain_stream_response::Message as Response;
use crate::telemetry::status_name;

/// The counts of one stream. Sequence numbers are those of the client's frames.
#[derive(Debug, Default)]
pub struct Tally {
    /// Frames that were sent and have not ended.
    open: BTreeMap<u64, Sent>,
    /// Runs of drops that span more open frames than they end, as when drops of different reasons alternate.
    unsettled: Vec<Run>,
    last_ended: Option<u64>,
    /// Set by GoingAway: the last frame that the server has read, if any.
    last_accepted: Option<Option<u64>>,
    pub sent: u64,
    pub answered: u64,
    /// Dropped frames by reason, as in [`names::drop_reason`].
    pub dropped: BTreeMap<String, u64>,
    /// Failed frames by status name.
    pub failed: BTreeMap<String, u64>,
    /// Frames that were not accepted because the server went away before it read them.
    pub not_accepted: u64,
    /// Frames without an answer because the connection broke.
    pub lost: u64,
    /// Endings of frames that were not open: ended before, or never sent.
    pub unexpected: u64,
    /// Answers and errors that came after one with a higher sequence.
    pub out_of_order: u64,
    /// Frames whose tag or capture time came back changed.
    pub altered: BTreeSet<u64>,
}

/// The frames that a message ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ended {
    /// Number of frames.
    pub frames: u64,
    /// Time at which the answered frame was sent, or was due.
    pub answered: Option<Instant>,
}

/// The frames that had not ended when their connection ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Unended {
    /// The server has not read them, as its GoingAway says.
    pub not_accepted: BTreeSet<u64>,
    /// The server may have read them.
    pub unanswered: BTreeSet<u64>,
}

/// The fields of a frame that the server returns unchanged.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Echo {
    pub tag: Bytes,
    pub capture_time: Option<Timestamp>,
}

#[derive(Debug)]
struct Sent {
    at: Instant,
    echo: Echo,
}

#[derive(Debug, Clone, Copy)]
struct Run {
    first: u64,
    last: u64,
    count: u64,
}

impl Tally {
    /// Counts a sent frame. `at` is the time at which it was sent, or was due.
    pub fn sent(&mut self, sequence: u64, echo: Echo, at: Instant) {
        self.sent += 1;
        self.open.insert(sequence, Sent { at, echo });
    }

    /// Notes that a frame, which was counted before, was sent again.
    pub fn sent_again(&mut self, sequence: u64, echo: Echo, at: Instant) {
        self.open.insert(sequence, Sent { at, echo });
    }

    /// Counts a message of the server.
    pub fn take(&mut self, message: &Response) -> Ended {
        match message {
            Response::Opened(_) => Ended::default(),
            Response::Explanation(answer) => {
                self.echoed(answer.sequence, |sent| sent.tag == answer.tag && sent.capture_time == answer.capture_time);
                Ended { frames: 1, answered: self.answered(answer.sequence) }
            }
            Response::FrameError(error) => {
                // An error has no capture time.
                self.echoed(error.sequence, |sent| sent.tag == error.tag);
                self.failed(error.sequence, status_name(error.code));
                Ended { frames: 1, answered: None }
            }
            Response::Dropped(run) => {
                let reason = names::drop_reason(run.reason);
                self.dropped(run.first_sequence, run.last_sequence, run.count, &reason);
                Ended { frames: run.count, answered: None }
            }
            Response::GoingAway(going) => {
                self.went_away(going.last_accepted_sequence);
                Ended::default()
            }
        }
    }

    /// Checks the echo of an ending: `is_same` compares it with the echo that was sent. Call it before the ending is
    /// counted.
    pub fn echoed(&mut self, sequence: u64, is_same: impl FnOnce(&Echo) -> bool) {
        if self.open.get(&sequence).is_some_and(|sent| !is_same(&sent.echo)) {
            self.altered.insert(sequence);
        }
    }

    /// Counts an answer. Returns the time at which the frame was sent, if the frame was open.
    pub fn answered(&mut self, sequence: u64) -> Option<Instant> {
        self.answered += 1;
        self.end(sequence).map(|sent| sent.at)
    }

    /// Counts an error.
    pub fn failed(&mut self, sequence: u64, status: &str) {
        *self.failed.entry(status.to_owned()).or_default() += 1;
        self.end(sequence);
    }

    /// Counts a run of drops: `count` frames from `first` to `last`, both included, dropped for one reason.
    pub fn dropped(&mut self, first: u64, last: u64, count: u64, reason: &str) {
        *self.dropped.entry(reason.to_owned()).or_default() += count;
        self.unsettled.push(Run { first, last, count });
        self.settle();
    }

    /// Notes that the server is going away and reads no frame after `last_accepted`; `None`: it has read no frame.
    pub fn went_away(&mut self, last_accepted: Option<u64>) {
        self.last_accepted = Some(last_accepted);
    }

    /// Closes the account at the stream's end. Returns the frames without an ending, and counts the drops of runs that
    /// exceed the open frames as unexpected.
    pub fn close(&mut self) -> BTreeSet<u64> {
        let Unended { not_accepted, unanswered } = self.disconnected();
        self.not_accepted += not_accepted.len() as u64;
        unanswered
    }

    /// Takes the frames without an ending out of the account when their connection has ended.
    pub fn disconnected(&mut self) -> Unended {
        // At the end, not at GoingAway: the server may still receive frames then.
        let unread = match self.last_accepted.take() {
            None => BTreeMap::new(),
            Some(None) => std::mem::take(&mut self.open),
            Some(Some(last)) => self.open.split_off(&last.saturating_add(1)),
        };
        // Runs are assigned frames in order of their last frame: the earliest has the fewest candidates.
        self.unsettled.sort_by_key(|run| run.last);
        for run in std::mem::take(&mut self.unsettled) {
            let ended: Vec<u64> = range(&self.open, run).take(run.count as usize).collect();
            self.unexpected += run.count - ended.len() as u64;
            for sequence in ended {
                self.open.remove(&sequence);
            }
        }
        let unanswered = std::mem::take(&mut self.open).into_keys().collect();
        Unended { not_accepted: unread.into_keys().collect(), unanswered }
    }

    /// Whether a frame was sent and has no ending yet.
    pub fn is_open(&self, sequence: u64) -> bool {
        self.open.contains_key(&sequence)
    }

    /// Frames that were sent and have no ending yet.
    pub fn outstanding(&self) -> usize {
        self.open.len()
    }

    pub fn dropped_total(&self) -> u64 {
        self.dropped.values().sum()
    }

    pub fn failed_total(&self) -> u64 {
        self.failed.values().sum()
    }

    fn end(&mut self, sequence: u64) -> Option<Sent> {
        if self.last_ended.is_some_and(|last| sequence < last) {
            self.out_of_order += 1;
        }
        self.last_ended = self.last_ended.max(Some(sequence));
        let sent = self.open.remove(&sequence);
        match sent {
            Some(_) => self.settle(),
            None => self.unexpected += 1,
        }
        sent
    }

    /// Ends the frames of each run that names exactly as many open frames as it counts.
    fn settle(&mut self) {
        let open = &mut self.open;
        let mut unexpected = 0;
        self.unsettled.retain(|&run| {
            let named: Vec<u64> = range(open, run).collect();
            if named.len() as u64 > run.count {
                return true;
            }
            unexpected += run.count - named.len() as u64;
            for sequence in named {
                open.remove(&sequence);
            }
            false
        });
        self.unexpected += unexpected;
    }
}

fn range(open: &BTreeMap<u64, Sent>, run: Run) -> impl Iterator<Item = u64> + '_ {
    let valid = run.first <= run.last;
    let bounds = if valid { run.first..=run.last } else { 1..=1 };
    open.range(bounds).map(|(&sequence, _)| sequence).filter(move |_| valid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(count: u64) -> Tally {
        let mut tally = Tally::default();
        (1..=count).for_each(|sequence| tally.sent(sequence, Echo::default(), Instant::now()));
        tally
    }

    #[test]
    fn no_frame_stays_open_when_each_has_an_ending() {
        let mut tally = of(6);
        tally.answered(1);
        tally.dropped(2, 4, 3, "REPLACED");
        tally.failed(5, "INVALID_ARGUMENT");
        tally.answered(6);
        assert!(tally.close().is_empty());
        assert_eq!((tally.answered, tally.dropped_total(), tally.failed_total()), (2, 3, 1));
        assert_eq!((tally.unexpected, tally.out_of_order), (0, 0));
    }

    #[test]
    fn a_frame_without_an_ending_is_missing() {
        let mut tally = of(3);
        tally.answered(1);
        tally.answered(3);
        assert_eq!(tally.close(), BTreeSet::from([2]));
    }

    #[test]
    fn a_frame_that_ends_twice_or_was_never_sent_is_unexpected() {
        let mut tally = of(2);
        tally.answered(1);
        tally.answered(1);
        tally.failed(9, "INTERNAL");
        tally.dropped(1, 2, 2, "EXPIRED");
        assert_eq!(tally.unexpected, 3);
        assert!(tally.close().is_empty());
    }

    #[test]
    fn runs_of_alternating_reasons_are_settled_at_the_end() {
        let mut tally = of(6);
        tally.dropped(1, 5, 3, "REPLACED");
        tally.dropped(2, 6, 2, "EXPIRED");
        tally.answered(4);
        assert!(tally.close().is_empty());
        assert_eq!(tally.unexpected, 0);
    }

    #[test]
    fn an_answer_settles_the_run_around_it() {
        let mut tally = of(3);
        tally.dropped(1, 3, 2, "REPLACED");
        tally.answered(2);
        assert!(tally.open.is_empty() && tally.unsettled.is_empty());
    }

    #[test]
    fn an_earlier_frame_behind_a_later_one_is_out_of_order() {
        let mut tally = of(2);
        tally.answered(2);
        tally.answered(1);
        assert_eq!(tally.out_of_order, 1);
    }

    #[test]
    fn an_altered_echo_is_noted() {
        let mut tally = Tally::default();
        for sequence in 1..=3 {
            let echo = Echo { tag: sequence.to_string().into(), capture_time: None };
            tally.sent(sequence, echo, Instant::now());
        }
        tally.echoed(1, |echo| echo.tag == "1" && echo.capture_time.is_none());
        tally.echoed(2, |echo| echo.tag == "1");
        tally.echoed(9, |_| false);
        assert_eq!(tally.altered, BTreeSet::from([2]), "frame 9 was never sent: `unexpected` counts that");
    }

    #[test]
    fn frames_after_the_last_accepted_one_were_not_accepted() {
        let mut tally = of(4);
        tally.went_away(Some(3));
        tally.sent(5, Echo::default(), Instant::now());
        (1..=3).for_each(|sequence| assert!(tally.answered(sequence).is_some()));
        assert!(tally.close().is_empty());
        assert_eq!(tally.not_accepted, 2);
    }

    #[test]
    fn a_frame_that_is_sent_again_counts_once() {
        let mut tally = of(3);
        tally.answered(1);
        tally.went_away(Some(2));
        let unended = tally.disconnected();
        let expected = Unended { not_accepted: BTreeSet::from([3]), unanswered: BTreeSet::from([2]) };
        assert_eq!(unended, expected);
        for sequence in [2, 3] {
            tally.sent_again(sequence, Echo::default(), Instant::now());
            assert!(tally.is_open(sequence) && tally.answered(sequence).is_some());
        }
        assert!(tally.close().is_empty());
        assert_eq!((tally.sent, tally.answered, tally.unexpected, tally.not_accepted), (3, 3, 0, 0));
    }

    #[test]
    fn a_run_that_ends_before_it_begins_ends_nothing() {
        let mut tally = of(2);
        tally.dropped(2, 1, 1, "REPLACED");
        assert_eq!(tally.unexpected, 1);
        assert_eq!(tally.close().len(), 2);
    }
}
