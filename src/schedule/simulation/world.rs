//! Whatever happens, each accepted frame ends once, in order, and within budgets.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::cases;
use super::events::{Event, STREAMS, event, policy};
use super::item::{AGEING, Held, Item, MAX_BATCH, MAX_WORKERS, MODEL, PROCESS, Runs, STREAM, budget};
use crate::schedule::admission::{Admission, Budgets};
use crate::schedule::queue::next_batch::{Prepared, Taken};
use crate::schedule::queue::ticket::StreamKey;
use crate::schedule::queue::ticket::Ticket;
use crate::schedule::queue::turn::Turn;
use crate::schedule::queue::{Dispatch, Workers};
use crate::stream::{Accepted, Action, Bounds, DropReason, Message, Overflow, Policy, Session};

const BOUNDS: Bounds = Bounds { max_in_flight: 4, max_unsent_bytes: 100 };

/// What the engine tells a stream's task about a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Answered { bytes: usize },
    Refused,
    Expired,
}

/// A stream: its task, and its client.
struct Client {
    session: Session<&'static str, &'static str>,
    block: bool,
    model: usize,
    budgets: Budgets,
    /// The handles of frames in work.
    tickets: BTreeMap<u64, Ticket>,
    /// Outcomes on their way to the task.
    posted: VecDeque<(u64, Outcome)>,
    /// A frame that was read and finds no room in the server.
    waiting_for_room: Option<Offer>,
    accepted: Vec<u64>,
    /// First, last and count of each ending that the client has read.
    told: Vec<(u64, u64, u64)>,
    /// Frames whose ending was an answer or an error.
    answered: BTreeSet<u64>,
    unordered: bool,
    has_gone: bool,
}

#[derive(Debug, Clone, Copy)]
struct Offer {
    sequence: u64,
    kib: u64,
    cost: u32,
    shape: u32,
    expires_at: Option<Instant>,
    priority: u8,
}

/// A batch on the device.
struct Running {
    rows: Vec<Item>,
    /// Its forward run is over.
    is_half_done: bool,
}

struct World {
    now: Instant,
    clients: Vec<Client>,
    dispatch: Dispatch<Item, Item>,
    decoding: Vec<Item>,
    /// The workers that have each of the two models; `None`: all.
    bound: Option<[Runs; 2]>,
    /// What each worker runs.
    workers: Vec<Option<Running>>,
    /// Those that have found nothing.
    idle: BTreeSet<usize>,
    held: Rc<RefCell<Held>>,
}

impl World {
    fn new(policies: &[(Policy, bool)], max_delay: Duration, workers: usize, bound: Option<[Runs; 2]>) -> Self {
        let (models, process) = ([budget(MODEL), budget(MODEL)], budget(PROCESS));
        let clients = policies.iter().enumerate().map(|(index, (policy, unordered))| {
            let model = index % 2;
            Client {
                session: Session::new(Policy { unordered: *unordered, ..*policy }, BOUNDS),
                block: policy.overflow == Overflow::Block,
                model,
                budgets: Budgets([budget(STREAM), models[model].clone(), process.clone()]),
                tickets: BTreeMap::new(),
                posted: VecDeque::new(),
                waiting_for_room: None,
                accepted: Vec::new(),
                told: Vec::new(),
                answered: BTreeSet::new(),
                unordered: *unordered,
                has_gone: false,
            }
        });
        World {
            now: Instant::now(),
            clients: clients.collect(),
            dispatch: Dispatch::new(
                AGEING,
                max_delay,
                if bound.is_some() { Workers::Bound(workers) } else { Workers::Alike(workers) },
            ),
            decoding: Vec::new(),
            bound,
            workers: (0..workers).map(|_| None).collect(),
            idle: BTreeSet::new(),
            held: Rc::default(),
        }
    }

    fn apply(&mut self, event: &Event) {
        match *event {
            Event::Frame { stream, gap, kib, cost, shape, ttl_ms, priority, is_bad } => {
                let expires_at = ttl_ms.map(|ms| self.now + Duration::from_millis(ms));
                let client = &mut self.clients[stream];
                if client.waiting_for_room.is_some() || !client.session.wants_frames() {
                    return;
                }
                let sequence = client.accepted.last().map_or(0, |last| last + gap);
                self.arrive(stream, Offer { sequence, kib, cost, shape, expires_at, priority }, is_bad);
            }
            Event::Pass { ms } => {
                self.now += Duration::from_millis(ms);
                let now = self.now;
                for client in &mut self.clients {
                    if client.session.deadline().is_some_and(|deadline| deadline <= now) {
                        client.session.tick(now);
                    }
                }
            }
            Event::Decoded { index, is_sound } => self.decoded(index, is_sound),
            Event::Device { worker, bytes } => self.work(worker % self.workers.len(), bytes),
            Event::Hear { stream } => {
                if let Some((sequence, outcome)) = self.clients[stream].posted.pop_front() {
                    self.heard(stream, sequence, outcome);
                }
            }
            Event::Read { stream } => self.clients[stream].read(),
            Event::Cancel { stream, back } => {
                let client = &mut self.clients[stream];
                let last = client.accepted.last().copied().unwrap_or(0);
                client.session.cancel(last.saturating_sub(back));
            }
            Event::Update { stream, policy } => {
                self.clients[stream].block = policy.overflow == Overflow::Block;
                self.clients[stream].session.update(policy);
            }
            Event::HalfClose { stream } => self.clients[stream].session.half_close(),
            Event::Fail { stream } => self.clients[stream].session.fail("failed"),
            Event::Gone { stream } => {
                self.clients[stream].has_gone = true;
                self.clients[stream].session.gone();
            }
            Event::Drain { stream } => {
                let now = self.now;
                self.clients[stream].session.drain(now, Duration::from_millis(200));
            }
        }
        self.settle();
    }

    /// As `server::stream` does it.
    fn arrive(&mut self, stream: usize, offer: Offer, is_bad: bool) {
        let client = &mut self.clients[stream];
        let Offer { sequence, kib, .. } = offer;
        let admission = client.budgets.try_admit(kib << 10);
        if is_bad {
            client.accepted.push(sequence);
            client.session.refuse(sequence).expect("it increases");
            client.answered(sequence, 1);
            return;
        }
        match admission {
            Ok(admission) => self.accept(stream, offer, Some(admission)),
            Err(_) if client.block => client.waiting_for_room = Some(offer),
            Err(_) => self.accept(stream, offer, None),
        }
    }

    fn accept(&mut self, stream: usize, offer: Offer, admission: Option<Admission>) {
        let client = &mut self.clients[stream];
        let Offer { sequence, kib, cost, shape, expires_at, priority } = offer;
        client.accepted.push(sequence);
        let Some(admission) = admission else {
            client.session.refuse(sequence).expect("it increases");
            client.answered(sequence, 1);
            return;
        };
        match client.session.accept(sequence, self.now, expires_at).expect("it increases") {
            Accepted::RateLimited => return,
            Accepted::Rejected => return client.answered(sequence, 1),
            Accepted::Waits => {}
        }
        let ticket = Ticket::new();
        client.tickets.insert(sequence, ticket.clone());
        let key = StreamKey(stream as u64);
        let turn = Turn::new(key, ticket, priority, cost, expires_at, self.now);
        let held = Rc::clone(&self.held);
        let model = client.model;
        let workers = self.bound.map_or([true; MAX_WORKERS], |bound| bound[model]);
        let item = Item { turn, sequence, model, workers, shape, kib, held, _admission: admission };
        self.held.borrow_mut().change(item.places(), 1, kib as i64);
        self.dispatch.push(item, self.now);
    }

    /// A frame's outcome, unless somebody has ended it before.
    fn finish(&mut self, item: &Item, outcome: Outcome) {
        if item.turn.ticket.end() {
            self.clients[item.stream()].posted.push_back((item.sequence, outcome));
        }
    }

    fn decoded(&mut self, index: usize, is_sound: bool) {
        if self.decoding.is_empty() {
            return;
        }
        let item = self.decoding.remove(index % self.decoding.len());
        let turn = item.turn.clone();
        let prepared = if !turn.is_alive(self.now) {
            self.finish(&item, Outcome::Expired);
            Prepared::Ended
        } else if !is_sound {
            self.finish(&item, Outcome::Refused);
            Prepared::Refused
        } else {
            Prepared::Row(item)
        };
        self.dispatch.prepared(&turn, prepared, self.now);
    }

    fn work(&mut self, worker: usize, bytes: usize) {
        match self.workers[worker].take() {
            None => {
                self.idle.remove(&worker);
                let taken = self.dispatch.take(worker, self.idle.len(), self.now);
                if !matches!(taken, Taken::Rows(_)) {
                    self.idle.insert(worker);
                }
                if let Taken::Rows(rows) = taken {
                    assert!(rows.len() <= MAX_BATCH, "{} rows", rows.len());
                    for row in &rows {
                        assert!(row.turn.is_alive(self.now), "a frame that has ended or expired reaches the device");
                        assert_eq!((row.model, row.shape), (rows[0].model, rows[0].shape));
                        assert!(row.workers[worker], "worker {worker} does not have model {}", row.model);
                        assert!(!row.turn.ticket.withdraw(), "a frame on the device cannot be replaced");
                    }
                    self.workers[worker] = Some(Running { rows, is_half_done: false });
                }
            }
            Some(Running { rows, is_half_done: false }) => {
                let now = self.now;
                for row in rows.iter().filter(|row| row.turn.has_expired(now)) {
                    self.finish(row, Outcome::Expired);
                }
                if rows.iter().any(|row| !row.turn.ticket.is_over()) {
                    self.workers[worker] = Some(Running { rows, is_half_done: true });
                }
            }
            Some(Running { rows, .. }) => rows.iter().for_each(|row| self.finish(row, Outcome::Answered { bytes })),
        }
    }

    fn heard(&mut self, stream: usize, sequence: u64, outcome: Outcome) {
        let client = &mut self.clients[stream];
        client.tickets.remove(&sequence);
        match outcome {
            Outcome::Answered { bytes } => client.answered(sequence, bytes),
            Outcome::Refused => client.answered(sequence, 1),
            Outcome::Expired => client.session.dropped(sequence, DropReason::Expired),
        }
    }

    /// Everything that happens without anyone doing anything.
    fn settle(&mut self) {
        for stream in 0..STREAMS {
            self.carry_out(stream);
            let client = &mut self.clients[stream];
            if let Some(offer) = client.waiting_for_room {
                if client.session.is_closing() {
                    // It was read, but not accepted.
                    client.waiting_for_room = None;
                } else if let Ok(admission) = client.budgets.try_admit(offer.kib << 10) {
                    client.waiting_for_room = None;
                    self.accept(stream, offer, Some(admission));
                    self.carry_out(stream);
                }
            }
        }
        while let Some(item) = self.dispatch.choose(self.now) {
            self.decoding.push(item);
        }
        let expired = self.dispatch.take_expired();
        for item in expired.waiting.iter().chain(&expired.ready) {
            self.finish(item, Outcome::Expired);
        }
        assert!(self.held.borrow().within(), "budgets are kept: {:?}", self.held);
        for client in &self.clients {
            let most = BOUNDS.max_in_flight * 2 + 1;
            assert!(client.session.in_flight() <= most, "{} frames in flight", client.session.in_flight());
        }
    }

    fn carry_out(&mut self, stream: usize) {
        let client = &mut self.clients[stream];
        while let Some(action) = client.session.next_action() {
            let (sequence, reason) = match action {
                Action::Withdraw { sequence, reason } | Action::Abort { sequence, reason } => (sequence, reason),
            };
            let ended = match (action, client.tickets.get(&sequence)) {
                (Action::Withdraw { .. }, Some(ticket)) => ticket.withdraw(),
                (Action::Abort { .. }, Some(ticket)) => ticket.end(),
                (_, None) => false,
            };
            if ended {
                client.tickets.remove(&sequence);
                client.session.dropped(sequence, reason);
                self.dispatch.sweep(StreamKey(stream as u64));
            } else if let Action::Withdraw { .. } = action {
                client.session.taken(sequence);
            }
        }
        while let Some((sequence, _)) = client.session.next_evicted() {
            client.answered.remove(&sequence);
        }
    }

    /// Clients say no more and read to the end; the device works off what is left.
    fn run_out(&mut self) {
        for stream in 0..STREAMS {
            self.apply(&Event::HalfClose { stream });
        }
        let mut rounds = 0;
        while !self.clients.iter().all(|client| client.session.is_over() && client.posted.is_empty()) {
            for stream in 0..STREAMS {
                self.apply(&Event::Hear { stream });
                self.apply(&Event::Read { stream });
            }
            self.apply(&Event::Decoded { index: 0, is_sound: true });
            (0..self.workers.len()).for_each(|worker| self.apply(&Event::Device { worker, bytes: 1 }));
            self.apply(&Event::Pass { ms: 1 });
            rounds += 1;
            assert!(rounds < 2000, "every stream ends");
        }
    }
}

impl Client {
    fn answered(&mut self, sequence: u64, bytes: usize) {
        self.answered.insert(sequence);
        self.session.answered(sequence, "answer", bytes);
    }

    fn read(&mut self) {
        match self.session.next_message() {
            Some(Message::Answer { sequence, .. }) => self.told.push((sequence, sequence, 1)),
            Some(Message::Dropped(run)) => self.told.push((run.first, run.last, run.count)),
            Some(Message::GoingAway { .. }) | None => {}
        }
    }

    fn check(&self) -> Result<(), TestCaseError> {
        if self.has_gone {
            prop_assert!(self.tickets.values().all(Ticket::is_over), "nobody works for a client that has gone");
            return Ok(());
        }
        let ended: u64 = self.told.iter().map(|(_, _, count)| count).sum();
        prop_assert_eq!(ended, self.accepted.len() as u64, "{:?} of {:?}", self.told, self.accepted);
        for &sequence in &self.accepted {
            let as_answer = self.told.iter().filter(|told| **told == (sequence, sequence, 1)).count();
            let covered = self.told.iter().any(|(first, last, _)| (*first..=*last).contains(&sequence));
            prop_assert!(covered, "frame {} of {:?}", sequence, self.told);
            prop_assert!(!self.answered.contains(&sequence) || as_answer == 1, "frame {} of {:?}", sequence, self.told);
        }
        if !self.unordered {
            let firsts: Vec<u64> = self.told.iter().map(|(first, _, _)| *first).collect();
            prop_assert!(firsts.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", self.told);
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 20_000, ..ProptestConfig::with_cases(cases(4000)) })]

    #[test]
    fn every_accepted_frame_ends_once_in_order_within_budgets_and_none_that_has_ended_reaches_the_device(
        policies in prop::collection::vec((policy(), any::<bool>()), STREAMS),
        max_delay in prop_oneof![3 => Just(0u64), 1 => 1u64..40],
        workers in 1..=MAX_WORKERS,
        bound in prop::option::of(any::<[Runs; 2]>()),
        events in prop::collection::vec(event(), 0..140),
    ) {
        // Each model has a worker at least.
        let bound = bound.map(|mut runs| {
            for (model, runs) in runs.iter_mut().enumerate() {
                runs[model % workers] |= !runs[..workers].contains(&true);
            }
            runs
        });
        let mut world = World::new(&policies, Duration::from_millis(max_delay), workers, bound);
        for event in &events {
            world.apply(event);
        }
        world.run_out();
        for client in &world.clients {
            client.check()?;
        }
        world.workers.clear();
        world.decoding.clear();
        let World { dispatch, held, .. } = world;
        drop(dispatch);
        prop_assert!(held.borrow().frames.values().all(|level| level.values().all(|count| *count == 0)), "{:?}", held);
    }
}
