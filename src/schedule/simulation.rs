//! Sessions, budgets, tickets, line and batch together, in simulated time: what the server and the engine's threads do with
//! them, in any order that can happen.
//!
//! `PROPTEST_CASES` says how many sequences of events are tried; a test run tries a few thousand, a campaign more.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::admission::{Admission, Budget, Budgets, Limit};
use super::dispatch::Dispatch;
use super::job::StreamKey;
use super::line::MAX_PRIORITY;
use super::next_batch::{Prepared, Taken};
use super::ticket::Ticket;
use super::turn::{Ready, Turn, Waiting};
use crate::stream::{Accepted, Action, Bounds, DropReason, Message, Overflow, Policy, Session};

const STREAMS: usize = 4;
const MAX_BATCH: usize = 3;
const MAX_WORKERS: usize = 3;
const AGEING: Duration = Duration::from_millis(100);
const BOUNDS: Bounds = Bounds { max_in_flight: 4, max_unsent_bytes: 100 };
/// Frames and KiB, of a stream, of a model, of all.
const STREAM: (usize, u64) = (100, 12);
const MODEL: (usize, u64) = (6, 24);
const PROCESS: (usize, u64) = (9, 40);
const MAX_COST: u32 = 6;

/// What frames hold at the moment, by stream, by model and in all.
#[derive(Debug, Default)]
struct Held {
    frames: BTreeMap<&'static str, BTreeMap<usize, usize>>,
    kib: BTreeMap<&'static str, BTreeMap<usize, u64>>,
}

impl Held {
    fn change(&mut self, places: [(&'static str, usize); 3], frames: isize, kib: i64) {
        for (level, index) in places {
            let count = self.frames.entry(level).or_default().entry(index).or_default();
            *count = count.saturating_add_signed(frames);
            let sum = self.kib.entry(level).or_default().entry(index).or_default();
            *sum = sum.saturating_add_signed(kib);
        }
    }

    fn within(&self) -> bool {
        [("stream", STREAM), ("model", MODEL), ("process", PROCESS)].into_iter().all(|(level, (frames, kib))| {
            self.frames.get(level).is_none_or(|counts| counts.values().all(|count| *count <= frames))
                && self.kib.get(level).is_none_or(|sums| sums.values().all(|sum| *sum <= kib))
        })
    }
}

/// A frame in work. Dropping it gives its room back.
#[derive(Debug)]
struct Item {
    turn: Turn,
    sequence: u64,
    model: usize,
    shape: u32,
    kib: u64,
    held: Rc<RefCell<Held>>,
    _admission: Admission,
}

impl Item {
    fn stream(&self) -> usize {
        self.turn.stream.0 as usize
    }

    fn places(&self) -> [(&'static str, usize); 3] {
        [("stream", self.stream()), ("model", self.model), ("process", 0)]
    }
}

impl Drop for Item {
    fn drop(&mut self) {
        self.held.borrow_mut().change(self.places(), -1, -(self.kib as i64));
    }
}

impl Waiting for Item {
    type Key = usize;

    fn turn(&self) -> &Turn {
        &self.turn
    }

    fn turn_mut(&mut self) -> &mut Turn {
        &mut self.turn
    }

    fn key(&self) -> usize {
        self.model
    }

    fn belongs_to(&self, key: &usize) -> bool {
        self.model == *key
    }

    fn max_batch(&self) -> usize {
        MAX_BATCH
    }
}

impl Ready for Item {
    fn turn(&self) -> &Turn {
        &self.turn
    }

    fn shape(&self) -> [u32; 3] {
        [1, 1, self.shape]
    }
}

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

#[derive(Debug, Clone)]
enum Event {
    /// The client sends a frame; read only when the session wants it.
    Frame {
        stream: usize,
        gap: u64,
        kib: u64,
        cost: u32,
        shape: u32,
        ttl_ms: Option<u64>,
        priority: u8,
        is_bad: bool,
    },
    Pass {
        ms: u64,
    },
    /// One of the frames that are being decoded is done.
    Decoded {
        index: usize,
        is_sound: bool,
    },
    /// A worker goes on: takes a batch, comes from forward to reverse, or ends.
    Device {
        worker: usize,
        bytes: usize,
    },
    /// A stream's task hears of an outcome.
    Hear {
        stream: usize,
    },
    /// A client reads a message.
    Read {
        stream: usize,
    },
    Cancel {
        stream: usize,
        back: u64,
    },
    Update {
        stream: usize,
        policy: Policy,
    },
    HalfClose {
        stream: usize,
    },
    Fail {
        stream: usize,
    },
    Gone {
        stream: usize,
    },
    Drain {
        stream: usize,
    },
}

fn policy() -> impl Strategy<Value = Policy> {
    let overflow = prop_oneof![Just(Overflow::Latest), Just(Overflow::Block), Just(Overflow::Reject)];
    (overflow, 1usize..5, prop::option::weighted(0.2, 1u64..80)).prop_map(|(overflow, depth, interval)| Policy {
        overflow,
        depth,
        unordered: false,
        min_interval: interval.map(Duration::from_millis),
    })
}

fn event() -> impl Strategy<Value = Event> {
    let stream = || 0..STREAMS;
    let frame = (
        stream(),
        1u64..3,
        1u64..8,
        1..=MAX_COST,
        prop::bool::weighted(0.1),
        prop::option::weighted(0.3, 1u64..120),
        prop_oneof![4 => Just(0u8), 1 => 0..=MAX_PRIORITY],
        prop::bool::weighted(0.1),
    );
    prop_oneof![
        12 => frame.prop_map(|(stream, gap, kib, cost, odd, ttl_ms, priority, is_bad)| Event::Frame {
            stream, gap, kib, cost, shape: u32::from(odd), ttl_ms, priority, is_bad
        }),
        6 => (1u64..60).prop_map(|ms| Event::Pass { ms }),
        8 => (0usize..4, prop::bool::weighted(0.9)).prop_map(|(index, is_sound)| Event::Decoded { index, is_sound }),
        10 => (0..MAX_WORKERS, 0usize..60).prop_map(|(worker, bytes)| Event::Device { worker, bytes }),
        8 => stream().prop_map(|stream| Event::Hear { stream }),
        8 => stream().prop_map(|stream| Event::Read { stream }),
        2 => (stream(), 0u64..6).prop_map(|(stream, back)| Event::Cancel { stream, back }),
        1 => (stream(), policy()).prop_map(|(stream, policy)| Event::Update { stream, policy }),
        1 => stream().prop_map(|stream| Event::HalfClose { stream }),
        1 => stream().prop_map(|stream| Event::Fail { stream }),
        1 => stream().prop_map(|stream| Event::Gone { stream }),
        1 => stream().prop_map(|stream| Event::Drain { stream }),
    ]
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
    /// What each worker runs.
    workers: Vec<Option<Running>>,
    /// Those that have found nothing.
    idle: BTreeSet<usize>,
    held: Rc<RefCell<Held>>,
}

fn budget((frames, kib): (usize, u64)) -> Budget {
    Budget::new(Limit { frames: ("frames", frames), bytes: ("bytes", kib << 10) })
}

impl World {
    fn new(policies: &[(Policy, bool)], max_delay: Duration, workers: usize) -> Self {
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
            dispatch: Dispatch::new(AGEING, max_delay, workers),
            decoding: Vec::new(),
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
        let item = Item { turn, sequence, model, shape, kib, held, _admission: admission };
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
                let taken = self.dispatch.take(self.idle.len(), self.now);
                if !matches!(taken, Taken::Rows(_)) {
                    self.idle.insert(worker);
                }
                if let Taken::Rows(rows) = taken {
                    assert!(rows.len() <= MAX_BATCH, "{} rows", rows.len());
                    for row in &rows {
                        assert!(row.turn.is_alive(self.now), "a frame that has ended or expired reaches the device");
                        assert_eq!((row.model, row.shape), (rows[0].model, rows[0].shape));
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
        events in prop::collection::vec(event(), 0..140),
    ) {
        let mut world = World::new(&policies, Duration::from_millis(max_delay), workers);
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

fn cases(by_default: u32) -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(by_default)
}

/// Streams that always have a frame waiting, on a device that is always busy.
struct Crowd {
    now: Instant,
    dispatch: Dispatch<Item, Item>,
    members: Vec<Member>,
    budgets: Budgets,
    held: Rc<RefCell<Held>>,
}

#[derive(Debug, Clone, Copy)]
struct Member {
    cost: u32,
    priority: u8,
    model: usize,
    /// A newer frame replaces the one that waits, every time.
    replaces: bool,
    served: u64,
    /// Work done for others since its last frame ran, once its class was as high as any.
    overtaken: u64,
    since: Instant,
}

impl Crowd {
    fn push(&mut self, stream: usize) -> Ticket {
        let Member { cost, priority, model, .. } = self.members[stream];
        let ticket = Ticket::new();
        let turn = Turn::new(StreamKey(stream as u64), ticket.clone(), priority, cost, None, self.now);
        let admission = self.budgets.try_admit(0).expect("there is room");
        let held = Rc::clone(&self.held);
        self.dispatch.push(Item { turn, sequence: 0, model, shape: 0, kib: 0, held, _admission: admission }, self.now);
        ticket
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(4000) / 16))]

    /// A stream that waits rises to the highest class in at most 8 intervals of ageing. From then on every other stream does,
    /// before it, at most as much work as it needs itself, and two frames more; besides, two batches of another model for each
    /// worker.
    #[test]
    fn no_stream_starves(
        members in prop::collection::vec((1..=MAX_COST, 0..=MAX_PRIORITY, 0usize..2, prop::bool::weighted(0.3)), 2..9),
        batch_ms in 1u64..50,
        decode_lag in 0usize..3,
        workers in 1..=MAX_WORKERS,
    ) {
        let now = Instant::now();
        let large = (1_000_000, 1 << 20);
        let mut crowd = Crowd {
            now,
            dispatch: Dispatch::new(AGEING, Duration::ZERO, workers),
            members: members.iter().map(|&(cost, priority, model, replaces)| Member {
                cost, priority, model, replaces, served: 0, overtaken: 0, since: now,
            }).collect(),
            budgets: Budgets([budget(large), budget(large), budget(large)]),
            held: Rc::default(),
        };
        let count = crowd.members.len();
        let mut waiting: Vec<Ticket> = (0..count).map(|stream| crowd.push(stream)).collect();
        let mut decoding: VecDeque<(usize, Item)> = VecDeque::new();
        let bound = u64::from(MAX_COST) * (3 * count as u64 + 2 * (MAX_BATCH * workers) as u64);
        for round in 0..600 {
            while let Some(item) = crowd.dispatch.choose(crowd.now) {
                decoding.push_back((round + decode_lag, item));
            }
            while let Some((_, item)) = decoding.pop_front_if(|(ready, _)| *ready <= round) {
                let turn = item.turn.clone();
                let prepared = if turn.ticket.is_over() { Prepared::Ended } else { Prepared::Row(item) };
                crowd.dispatch.prepared(&turn, prepared, crowd.now);
            }
            for (stream, waiting) in waiting.iter_mut().enumerate() {
                if crowd.members[stream].replaces {
                    // As a session does it: the new frame first, then the old one goes.
                    let older = std::mem::replace(waiting, crowd.push(stream));
                    if older.withdraw() {
                        crowd.dispatch.sweep(StreamKey(stream as u64));
                    }
                }
            }
            let Taken::Rows(rows) = crowd.dispatch.take(0, crowd.now) else { continue };
            crowd.now += Duration::from_millis(batch_ms);
            let now = crowd.now;
            for row in rows {
                let stream = row.stream();
                let cost = u64::from(row.turn.cost);
                for (other, member) in crowd.members.iter_mut().enumerate() {
                    let aged = now.saturating_duration_since(member.since) >= AGEING * (u32::from(MAX_PRIORITY) + 1);
                    if other != stream && aged {
                        member.overtaken += cost;
                        prop_assert!(member.overtaken <= bound, "{:?} of {:?}", other, crowd.members);
                    }
                }
                let member = &mut crowd.members[stream];
                member.served += cost;
                member.overtaken = 0;
                member.since = now;
                if !member.replaces || waiting[stream].is_over() || waiting[stream].is_same(&row.turn.ticket) {
                    waiting[stream] = crowd.push(stream);
                }
            }
        }
        let long_enough = crowd.now.saturating_duration_since(now) > 3 * AGEING * (u32::from(MAX_PRIORITY) + 1);
        prop_assert!(!long_enough || crowd.members.iter().all(|member| member.served > 0), "{:?}", crowd.members);
    }

    /// While no time passes, so that classes stay as they are.
    #[test]
    fn streams_of_a_class_that_always_have_frames_get_like_shares_whatever_their_frames_cost(
        costs in prop::collection::vec(1..=MAX_COST, 2..9),
    ) {
        let now = Instant::now();
        let large = (1_000_000, 1 << 20);
        let member = |&cost: &u32| Member {
            cost, priority: 3, model: 0, replaces: false, served: 0, overtaken: 0, since: now,
        };
        let mut crowd = Crowd {
            now,
            dispatch: Dispatch::new(AGEING, Duration::ZERO, 1),
            members: costs.iter().map(member).collect(),
            budgets: Budgets([budget(large), budget(large), budget(large)]),
            held: Rc::default(),
        };
        for stream in 0..costs.len() {
            (0..2 * MAX_BATCH).for_each(|_| drop(crowd.push(stream)));
        }
        for _ in 0..300 {
            while let Some(item) = crowd.dispatch.choose(now) {
                let turn = item.turn.clone();
                crowd.dispatch.prepared(&turn, Prepared::Row(item), now);
            }
            let Taken::Rows(rows) = crowd.dispatch.take(0, now) else { continue };
            for row in rows {
                crowd.members[row.stream()].served += u64::from(row.turn.cost);
                crowd.push(row.stream());
            }
            let most = crowd.members.iter().map(|member| member.served).max().unwrap_or(0);
            let least = crowd.members.iter().map(|member| member.served).min().unwrap_or(0);
            prop_assert!(most - least <= u64::from(2 * MAX_COST), "{:?}", crowd.members);
        }
    }
}
