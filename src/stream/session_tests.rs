use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

type TestSession = Session<&'static str, &'static str>;

const BOUNDS: Bounds = Bounds { max_in_flight: 4, max_unsent_bytes: 100 };

fn latest() -> TestSession {
    Session::new(Policy { overflow: Overflow::Latest, depth: 1, unordered: false }, BOUNDS)
}

fn block() -> TestSession {
    Session::new(Policy { overflow: Overflow::Block, depth: 4, unordered: false }, BOUNDS)
}

fn accept(session: &mut TestSession, sequences: impl IntoIterator<Item = u64>) {
    for sequence in sequences {
        session.accept(sequence).expect("sequences increase");
    }
}

fn messages(session: &mut TestSession) -> Vec<Message<&'static str>> {
    std::iter::from_fn(|| session.next_message()).collect()
}

fn actions(session: &mut TestSession) -> Vec<Action> {
    std::iter::from_fn(|| session.next_action()).collect()
}

fn answer(sequence: u64) -> Message<&'static str> {
    Message::Answer { sequence, answer: "answer" }
}

fn dropped(first: u64, last: u64, count: u64, reason: DropReason) -> Message<&'static str> {
    Message::Dropped(DroppedRun { first, last, count, reason })
}

#[test]
fn a_newer_frame_replaces_the_waiting_one_and_says_so() {
    let mut session = latest();
    accept(&mut session, [1, 2]);
    assert_eq!(actions(&mut session), [Action::Replace { sequence: 1 }]);
    session.dropped(1, DropReason::Replaced);
    session.answered(2, "answer", 1);
    assert_eq!(messages(&mut session), [dropped(1, 1, 1, DropReason::Replaced), answer(2)]);
}

#[test]
fn a_frame_on_the_device_is_not_replaced_again() {
    let mut session = latest();
    accept(&mut session, [1, 2]);
    assert_eq!(actions(&mut session), [Action::Replace { sequence: 1 }]);
    session.taken(1);
    accept(&mut session, [3]);
    assert_eq!(actions(&mut session), [Action::Replace { sequence: 2 }]);
}

#[test]
fn a_frame_that_is_refused_on_arrival_replaces_nobody_and_keeps_its_place() {
    let mut session = latest();
    accept(&mut session, [1, 2]);
    assert_eq!(actions(&mut session), [Action::Replace { sequence: 1 }]);
    session.taken(1);
    session.refuse(3).expect("sequences increase");
    session.answered(3, "error", 1);
    assert_eq!(actions(&mut session), [], "frame 2 still waits");
    assert_eq!(messages(&mut session), []);
    session.answered(1, "answer", 1);
    session.answered(2, "answer", 1);
    let error = Message::Answer { sequence: 3, answer: "error" };
    assert_eq!(messages(&mut session), [answer(1), answer(2), error]);
    assert_eq!(session.refuse(3), Err(OutOfOrder { got: 3, last: 3 }));
}

#[test]
fn refused_frames_are_bounded_like_others() {
    let mut session = latest();
    accept(&mut session, [1]);
    let mut sequence = 1;
    while session.wants_frames() {
        sequence += 1;
        session.refuse(sequence).expect("sequences increase");
        session.answered(sequence, "error", 1);
    }
    assert_eq!(session.in_flight(), BOUNDS.max_in_flight + 1, "one more than the bound, as the newest frame may be");
    session.answered(1, "answer", 1);
    assert!(session.wants_frames());
    assert_eq!(messages(&mut session).len() as u64, sequence);
}

#[test]
fn replaced_frames_wait_for_their_place_and_become_one_notice() {
    let mut session = latest();
    accept(&mut session, [1]);
    session.taken(1);
    for sequence in [2, 3, 5, 8] {
        accept(&mut session, [sequence]);
    }
    for sequence in [2, 3, 5] {
        session.dropped(sequence, DropReason::Replaced);
    }
    assert_eq!(messages(&mut session), []);
    session.answered(1, "answer", 1);
    assert_eq!(messages(&mut session), [answer(1), dropped(2, 5, 3, DropReason::Replaced)]);
}

#[test]
fn alternating_reasons_become_one_notice_each_the_earlier_first() {
    let mut session = latest();
    accept(&mut session, [1, 2, 3, 4]);
    session.taken(1);
    session.dropped(2, DropReason::Cancelled);
    session.dropped(3, DropReason::Replaced);
    session.dropped(4, DropReason::Cancelled);
    session.dropped(1, DropReason::Replaced);
    assert_eq!(
        messages(&mut session),
        [dropped(1, 3, 2, DropReason::Replaced), dropped(2, 4, 2, DropReason::Cancelled)]
    );
}

#[test]
fn answers_come_in_sequence_order_whatever_the_device_does() {
    let mut session = block();
    accept(&mut session, [10, 20, 30]);
    session.answered(30, "answer", 1);
    session.answered(20, "answer", 1);
    assert_eq!(messages(&mut session), []);
    session.answered(10, "answer", 1);
    assert_eq!(messages(&mut session), [answer(10), answer(20), answer(30)]);
}

#[test]
fn an_unordered_stream_gets_answers_as_they_come() {
    let mut session: TestSession =
        Session::new(Policy { overflow: Overflow::Block, depth: 4, unordered: true }, BOUNDS);
    accept(&mut session, [1, 2]);
    session.answered(2, "answer", 1);
    assert_eq!(messages(&mut session), [answer(2)]);
    session.dropped(1, DropReason::Cancelled);
    assert_eq!(messages(&mut session), [dropped(1, 1, 1, DropReason::Cancelled)]);
}

#[test]
fn blocking_stops_reading_at_the_credit_and_drops_nothing() {
    let mut session = block();
    accept(&mut session, [1, 2, 3, 4]);
    assert!(!session.wants_frames());
    session.answered(1, "answer", 1);
    assert!(!session.wants_frames(), "an answer that was not sent still counts");
    assert_eq!(messages(&mut session), [answer(1)]);
    assert!(session.wants_frames());
    assert_eq!(actions(&mut session), []);
}

#[test]
fn a_smaller_depth_lowers_the_credit_of_a_blocking_stream() {
    let policy = Policy { overflow: Overflow::Block, depth: 2, unordered: false };
    assert_eq!(policy.credit(&BOUNDS), 2);
    let mut session: TestSession = Session::new(policy, BOUNDS);
    accept(&mut session, [1, 2]);
    assert!(!session.wants_frames());
}

#[test]
fn blocking_stops_reading_while_large_answers_wait() {
    let mut session = block();
    accept(&mut session, [1]);
    session.answered(1, "answer", 1000);
    assert!(!session.wants_frames());
    messages(&mut session);
    assert!(session.wants_frames());
}

#[test]
fn a_slow_reader_loses_its_oldest_answers_and_nothing_else() {
    let mut session = latest();
    for sequence in [1, 2, 3] {
        accept(&mut session, [sequence]);
        session.answered(sequence, "answer", 60);
    }
    assert_eq!(
        std::iter::from_fn(|| session.next_evicted()).collect::<Vec<_>>(),
        [(2, "answer"), (1, "answer")],
        "an account is kept of them"
    );
    assert_eq!(messages(&mut session), [dropped(1, 2, 2, DropReason::SlowReader), answer(3)]);
}

#[test]
fn a_camera_is_read_on_when_its_reader_is_slow() {
    let mut session = latest();
    for sequence in 1..=20 {
        assert!(session.wants_frames());
        accept(&mut session, [sequence]);
        session.answered(sequence, "answer", 1);
        assert!(session.in_flight() <= BOUNDS.max_in_flight);
    }
    let told = messages(&mut session);
    assert_eq!(told[0], dropped(1, 16, 16, DropReason::SlowReader));
    assert_eq!(told[1..], [answer(17), answer(18), answer(19), answer(20)]);
}

#[test]
fn one_answer_may_wait_however_large_it_is() {
    let mut session = latest();
    accept(&mut session, [1]);
    session.answered(1, "answer", 1_000_000);
    assert_eq!(messages(&mut session), [answer(1)]);
}

#[test]
fn a_sequence_that_does_not_increase_ends_the_stream_after_what_is_pending() {
    let mut session = block();
    accept(&mut session, [0, 7, 8]);
    session.answered(0, "answer", 1);
    assert_eq!(session.accept(7), Err(OutOfOrder { got: 7, last: 8 }));
    session.fail("out of order");
    assert!(!session.wants_frames());
    let abort = |sequence| Action::Abort { sequence, reason: DropReason::StreamEnded };
    assert_eq!(actions(&mut session), [abort(7), abort(8)]);
    session.dropped(7, DropReason::StreamEnded);
    session.answered(8, "answer", 1);
    assert!(!session.is_over());
    assert_eq!(messages(&mut session), [answer(0), dropped(7, 7, 1, DropReason::StreamEnded), answer(8)]);
    assert!(session.is_over());
    assert_eq!(session.into_ending(), Err("out of order"));
}

#[test]
fn half_closing_finishes_what_was_accepted() {
    let mut session = block();
    accept(&mut session, [1]);
    session.half_close();
    assert!(!session.wants_frames() && !session.is_over());
    session.answered(1, "answer", 1);
    assert!(!session.is_over());
    assert_eq!(messages(&mut session), [answer(1)]);
    assert!(session.is_over());
    assert_eq!(session.into_ending(), Ok(()));
}

#[test]
fn a_cancelled_frame_is_dropped_unless_its_answer_was_faster() {
    let mut session = block();
    accept(&mut session, [1, 2]);
    session.cancel(1);
    session.cancel(2);
    session.cancel(3);
    let abort = |sequence| Action::Abort { sequence, reason: DropReason::Cancelled };
    assert_eq!(actions(&mut session), [abort(1), abort(2)]);
    session.dropped(1, DropReason::Cancelled);
    session.answered(2, "answer", 1);
    assert_eq!(messages(&mut session), [dropped(1, 1, 1, DropReason::Cancelled), answer(2)]);
    session.cancel(2);
    assert_eq!(actions(&mut session), []);
}

#[test]
fn draining_says_so_first_and_finishes_what_was_accepted() {
    let now = Instant::now();
    let mut session = block();
    accept(&mut session, [1, 2]);
    session.answered(1, "answer", 1);
    session.drain(now, Duration::from_secs(5));
    assert!(!session.wants_frames());
    session.answered(2, "answer", 1);
    assert_eq!(
        messages(&mut session),
        [Message::GoingAway { last_accepted: Some(2), drain_timeout: Duration::from_secs(5) }, answer(1), answer(2)]
    );
    assert!(session.is_over());
    assert_eq!(session.into_ending(), Ok(()));
}

#[test]
fn what_is_not_finished_when_the_drain_ends_is_dropped() {
    let now = Instant::now();
    let mut session = block();
    accept(&mut session, [1, 2]);
    session.drain(now, Duration::from_secs(5));
    session.answered(1, "answer", 1);
    assert_eq!(session.deadline(), Some(now + Duration::from_secs(5)));
    session.tick(now + Duration::from_secs(4));
    assert_eq!(actions(&mut session), []);
    session.tick(now + Duration::from_secs(5));
    assert_eq!(actions(&mut session), [Action::Abort { sequence: 2, reason: DropReason::Draining }]);
    session.dropped(2, DropReason::Draining);
    assert_eq!(messages(&mut session)[1..], [answer(1), dropped(2, 2, 1, DropReason::Draining)]);
    assert!(session.is_over());
}

#[test]
fn draining_an_idle_stream_ends_it_and_names_no_frame() {
    let mut session = block();
    session.drain(Instant::now(), Duration::ZERO);
    assert_eq!(messages(&mut session), [Message::GoingAway { last_accepted: None, drain_timeout: Duration::ZERO }]);
    assert!(session.is_over());
}

#[test]
fn a_dead_stream_takes_its_frames_along_and_says_nothing() {
    let mut session = block();
    accept(&mut session, [1, 2]);
    session.answered(1, "answer", 1);
    session.gone();
    assert_eq!(actions(&mut session), [Action::Abort { sequence: 2, reason: DropReason::StreamEnded }]);
    assert!(!session.has_message() && !session.is_over());
    session.dropped(2, DropReason::StreamEnded);
    assert!(session.is_over());
    assert_eq!(messages(&mut session), []);
}

#[test]
fn an_update_holds_for_the_frames_that_follow_and_keeps_the_order() {
    let mut session = latest();
    accept(&mut session, [1]);
    session.update(Policy { overflow: Overflow::Block, depth: 4, unordered: true });
    accept(&mut session, [2]);
    assert_eq!(actions(&mut session), []);
    session.answered(2, "answer", 1);
    assert_eq!(messages(&mut session), []);
}

/// What may happen to a stream, in any order.
#[derive(Debug, Clone)]
enum Step {
    /// The client sends a frame; read only when the session wants it.
    Frame {
        gap: u64,
        refused: bool,
    },
    /// The device takes the n-th frame that waits for it.
    Take(usize),
    /// The n-th frame with the device, taken or not, is answered.
    Answer {
        index: usize,
        bytes: usize,
    },
    Cancel(u64),
    /// The client reads a message.
    Read,
    Drain,
    Deadline,
    HalfClose,
    Fail,
    Update {
        latest: bool,
        depth: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (1u64..4, prop::bool::weighted(0.2)).prop_map(|(gap, refused)| Step::Frame { gap, refused }),
        4 => (0usize..6).prop_map(Step::Take),
        6 => (0usize..6, 0usize..80).prop_map(|(index, bytes)| Step::Answer { index, bytes }),
        1 => (0u64..60).prop_map(Step::Cancel),
        6 => Just(Step::Read),
        1 => (any::<bool>(), 1usize..5).prop_map(|(latest, depth)| Step::Update { latest, depth }),
    ]
}

fn last_step() -> impl Strategy<Value = Step> {
    prop_oneof![Just(Step::HalfClose), Just(Step::Drain), Just(Step::Deadline), Just(Step::Fail)]
}

/// The device's side of each frame, as the engine keeps it.
#[derive(Debug, Default)]
struct World {
    /// Frames that have not ended, and whether the device has taken them.
    alive: BTreeMap<u64, bool>,
    /// Endings told to the client, each with its frames: an answer, or a run and its count.
    told: Vec<(u64, u64, u64)>,
    accepted: Vec<u64>,
    reason_of: BTreeMap<u64, DropReason>,
}

impl World {
    fn carry_out(&mut self, session: &mut TestSession) {
        while let Some(action) = session.next_action() {
            match action {
                Action::Replace { sequence } => match self.alive.get(&sequence) {
                    Some(false) => self.end(session, sequence, DropReason::Replaced),
                    Some(true) => session.taken(sequence),
                    None => {}
                },
                Action::Abort { sequence, reason } => {
                    if self.alive.contains_key(&sequence) {
                        self.end(session, sequence, reason);
                    }
                }
            }
        }
    }

    fn end(&mut self, session: &mut TestSession, sequence: u64, reason: DropReason) {
        self.alive.remove(&sequence);
        self.reason_of.insert(sequence, reason);
        session.dropped(sequence, reason);
    }

    fn nth(&self, index: usize, waiting_only: bool) -> Option<u64> {
        self.alive.iter().filter(|(_, taken)| !(waiting_only && **taken)).map(|(s, _)| *s).nth(index)
    }

    fn read(&mut self, session: &mut TestSession) -> bool {
        match session.next_message() {
            Some(Message::Answer { sequence, .. }) => self.told.push((sequence, sequence, 1)),
            Some(Message::Dropped(run)) => self.told.push((run.first, run.last, run.count)),
            Some(Message::GoingAway { .. }) => {}
            None => return false,
        }
        true
    }

    fn apply(&mut self, session: &mut TestSession, step: &Step, now: Instant) {
        match *step {
            Step::Frame { gap, refused } => {
                if session.wants_frames() {
                    let sequence = self.accepted.last().map_or(0, |last| last + gap);
                    self.accepted.push(sequence);
                    if refused {
                        session.refuse(sequence).expect("it increases");
                        session.answered(sequence, "error", 1);
                    } else {
                        session.accept(sequence).expect("it increases");
                        self.alive.insert(sequence, false);
                    }
                }
            }
            Step::Take(index) => {
                if let Some(sequence) = self.nth(index, true) {
                    self.alive.insert(sequence, true);
                }
            }
            Step::Answer { index, bytes } => {
                if let Some(sequence) = self.nth(index, false) {
                    self.alive.remove(&sequence);
                    session.answered(sequence, "answer", bytes);
                }
            }
            Step::Cancel(sequence) => session.cancel(sequence),
            Step::Read => {
                self.read(session);
            }
            Step::Drain => session.drain(now, Duration::from_secs(1)),
            Step::Deadline => {
                session.drain(now, Duration::from_secs(1));
                session.tick(now + Duration::from_secs(1));
            }
            Step::HalfClose => session.half_close(),
            Step::Fail => session.fail("failed"),
            Step::Update { latest, depth } => {
                let overflow = if latest { Overflow::Latest } else { Overflow::Block };
                session.update(Policy { overflow, depth, unordered: false });
            }
        }
        self.carry_out(session);
        for (sequence, _) in std::iter::from_fn(|| session.next_evicted()) {
            self.reason_of.insert(sequence, DropReason::SlowReader);
        }
    }
}

proptest! {
    #[test]
    fn every_accepted_frame_gets_exactly_one_ending_in_order_within_bounds(
        unordered: bool,
        latest: bool,
        depth in 1usize..5,
        steps in prop::collection::vec(step(), 0..120),
        last in last_step(),
    ) {
        let overflow = if latest { Overflow::Latest } else { Overflow::Block };
        let mut session: TestSession = Session::new(Policy { overflow, depth, unordered }, BOUNDS);
        let mut world = World::default();
        let now = Instant::now();
        for step in steps.iter().chain([&last]) {
            world.apply(&mut session, step, now);
            prop_assert!(session.in_flight() <= BOUNDS.max_in_flight + 1);
        }
        // The device finishes what is left, and the client reads to the end.
        let mut rounds = 0;
        while !session.is_over() {
            world.apply(&mut session, &Step::Answer { index: 0, bytes: 1 }, now);
            world.read(&mut session);
            rounds += 1;
            prop_assert!(rounds < 1000, "the stream ends");
        }
        let ended: u64 = world.told.iter().map(|(_, _, count)| count).sum();
        prop_assert_eq!(ended, world.accepted.len() as u64);
        for &sequence in &world.accepted {
            let answers = world.told.iter().filter(|t| **t == (sequence, sequence, 1)).count();
            let dropped = world.reason_of.contains_key(&sequence);
            let covered = world.told.iter().any(|(first, last, _)| (*first..=*last).contains(&sequence));
            prop_assert!(covered && (dropped || answers == 1), "frame {} of {:?}", sequence, world.told);
        }
        if !unordered {
            let firsts: Vec<u64> = world.told.iter().map(|(first, _, _)| *first).collect();
            prop_assert!(firsts.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", world.told);
        }
        prop_assert_eq!(session.into_ending().is_err(), matches!(last, Step::Fail));
    }
}
