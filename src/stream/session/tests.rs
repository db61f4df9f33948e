use super::*;

type TestSession = Session<&'static str, &'static str>;

const BOUNDS: Bounds = Bounds { max_in_flight: 4, max_unsent_bytes: 100 };

fn policy(overflow: Overflow, depth: usize) -> Policy {
    Policy { overflow, depth, unordered: false, min_interval: None }
}

fn latest() -> TestSession {
    Session::new(policy(Overflow::Latest, 1), BOUNDS)
}

fn block() -> TestSession {
    Session::new(policy(Overflow::Block, 4), BOUNDS)
}

fn accept(session: &mut TestSession, sequences: impl IntoIterator<Item = u64>) {
    for sequence in sequences {
        session.accept(sequence, Instant::now(), None).expect("sequences increase");
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
    assert_eq!(actions(&mut session), [Action::Withdraw { sequence: 1, reason: DropReason::Replaced }]);
    session.dropped(1, DropReason::Replaced);
    session.answered(2, "answer", 1);
    assert_eq!(messages(&mut session), [dropped(1, 1, 1, DropReason::Replaced), answer(2)]);
}

#[test]
fn a_frame_on_the_device_is_not_replaced_again() {
    let mut session = latest();
    accept(&mut session, [1, 2]);
    assert_eq!(actions(&mut session), [Action::Withdraw { sequence: 1, reason: DropReason::Replaced }]);
    session.taken(1);
    accept(&mut session, [3]);
    assert_eq!(actions(&mut session), [Action::Withdraw { sequence: 2, reason: DropReason::Replaced }]);
}

#[test]
fn a_frame_that_is_refused_on_arrival_replaces_nobody_and_keeps_its_place() {
    let mut session = latest();
    accept(&mut session, [1, 2]);
    assert_eq!(actions(&mut session), [Action::Withdraw { sequence: 1, reason: DropReason::Replaced }]);
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
    let mut session: TestSession = Session::new(Policy { unordered: true, ..policy(Overflow::Block, 4) }, BOUNDS);
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
    let policy = policy(Overflow::Block, 2);
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
    assert_eq!(session.accept(7, Instant::now(), None), Err(OutOfOrder { got: 7, last: 8 }));
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
    session.update(Policy { unordered: true, ..policy(Overflow::Block, 4) });
    accept(&mut session, [2]);
    assert_eq!(actions(&mut session), []);
    session.answered(2, "answer", 1);
    assert_eq!(messages(&mut session), []);
}

#[test]
fn when_the_server_holds_too_much_a_slow_reader_gives_way_earlier() {
    let mut session: TestSession = Session::new(policy(Overflow::Latest, 4), BOUNDS);
    accept(&mut session, [1, 2, 3]);
    (1..=3).for_each(|sequence| session.answered(sequence, "answer", 20));
    session.limit_unsent(usize::MAX);
    assert_eq!(session.unsent_bytes(), 60);
    session.limit_unsent(25);
    assert_eq!(session.next_evicted(), Some((2, "answer")));
    assert_eq!(session.next_evicted(), Some((1, "answer")));
    assert_eq!(messages(&mut session), [dropped(1, 2, 2, DropReason::SlowReader), answer(3)]);

    let mut session = block();
    accept(&mut session, [1]);
    session.answered(1, "answer", 20);
    session.limit_unsent(10);
    assert!(!session.wants_frames());
    session.limit_unsent(usize::MAX);
    assert!(session.wants_frames());
}

#[test]
fn a_frame_without_credit_is_rejected_and_the_others_are_not_touched() {
    let mut session: TestSession = Session::new(policy(Overflow::Reject, 2), BOUNDS);
    let now = Instant::now();
    assert_eq!(
        [1, 2, 3].map(|n| session.accept(n, now, None)),
        [Ok(Accepted::Waits), Ok(Accepted::Waits), Ok(Accepted::Rejected)]
    );
    session.answered(3, "full", 1);
    assert!(actions(&mut session).is_empty() && session.wants_frames());
    session.answered(1, "answer", 1);
    assert_eq!(messages(&mut session), [answer(1)]);
    // One answer was sent, so that there is credit for one more: the error that still waits takes none.
    assert_eq!(session.accept(4, now, None), Ok(Accepted::Waits));
    session.answered(2, "answer", 1);
    session.answered(4, "answer", 1);
    let full = Message::Answer { sequence: 3, answer: "full" };
    assert_eq!(messages(&mut session), [answer(2), full, answer(4)]);
}

#[test]
fn rejections_that_nobody_reads_stop_the_reading() {
    let mut session: TestSession = Session::new(policy(Overflow::Reject, 1), BOUNDS);
    let mut sequence = 0;
    while session.wants_frames() {
        sequence += 1;
        if session.accept(sequence, Instant::now(), None) == Ok(Accepted::Rejected) {
            session.answered(sequence, "full", 1);
        }
        assert!(sequence < 100, "it stops");
    }
    assert_eq!(session.in_flight(), 1 + BOUNDS.max_in_flight);
    session.answered(1, "answer", 1);
    assert_eq!(messages(&mut session).len(), 1 + BOUNDS.max_in_flight);
    assert!(session.wants_frames());
}

#[test]
fn a_frame_that_still_waits_when_its_time_is_up_is_withdrawn_once() {
    let mut session = block();
    let now = Instant::now();
    let soon = now + Duration::from_millis(10);
    session.accept(1, now, Some(soon)).expect("the first");
    session.accept(2, now, None).expect("it increases");
    assert_eq!(session.deadline(), Some(soon));
    session.tick(now);
    assert!(actions(&mut session).is_empty());
    session.tick(soon);
    assert_eq!(actions(&mut session), [Action::Withdraw { sequence: 1, reason: DropReason::Expired }]);
    session.tick(soon);
    assert!(actions(&mut session).is_empty() && session.deadline().is_none());
    session.dropped(1, DropReason::Expired);
    assert_eq!(messages(&mut session), [dropped(1, 1, 1, DropReason::Expired)]);
}

#[test]
fn frames_beyond_the_rate_are_dropped_and_replace_nothing() {
    let slow = Policy { min_interval: Some(Duration::from_millis(100)), ..policy(Overflow::Latest, 1) };
    let mut session: TestSession = Session::new(slow, BOUNDS);
    let now = Instant::now();
    let accepted = [0, 10, 20, 110].map(|ms| session.accept(ms, now + Duration::from_millis(ms), None));
    assert_eq!(accepted[..3], [Ok(Accepted::Waits), Ok(Accepted::RateLimited), Ok(Accepted::RateLimited)]);
    assert_eq!(accepted[3], Ok(Accepted::Waits));
    assert_eq!(actions(&mut session), [Action::Withdraw { sequence: 0, reason: DropReason::Replaced }]);
    session.dropped(0, DropReason::Replaced);
    session.answered(110, "answer", 1);
    let told = messages(&mut session);
    assert_eq!(
        told,
        [dropped(0, 0, 1, DropReason::Replaced), dropped(10, 20, 2, DropReason::RateLimited), answer(110)]
    );
}
