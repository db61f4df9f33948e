//! No stream starves, and those of a class get like shares.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::cases;
use super::item::{AGEING, Held, Item, MAX_BATCH, MAX_COST, MAX_WORKERS, budget};
use crate::schedule::admission::Budgets;
use crate::schedule::queue::line::MAX_PRIORITY;
use crate::schedule::queue::next_batch::{Prepared, Taken};
use crate::schedule::queue::ticket::StreamKey;
use crate::schedule::queue::ticket::Ticket;
use crate::schedule::queue::turn::Turn;
use crate::schedule::queue::{Dispatch, Workers};

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
        let workers = [true; MAX_WORKERS];
        let item = Item { turn, sequence: 0, model, workers, shape: 0, kib: 0, held, _admission: admission };
        self.dispatch.push(item, self.now);
        ticket
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(4000) / 16))]

    /// A stream that waits rises to the highest class in at most 8 intervals of ageing. From then on every other stream
    /// does, before it, at most as much work as it needs itself, and two frames more; besides, two batches of another
    /// model for each worker.
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
            dispatch: Dispatch::new(AGEING, Duration::ZERO, Workers::Alike(workers)),
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
            let Taken::Rows(rows) = crowd.dispatch.take(0, 0, crowd.now) else { continue };
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
            dispatch: Dispatch::new(AGEING, Duration::ZERO, Workers::Alike(1)),
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
            let Taken::Rows(rows) = crowd.dispatch.take(0, 0, now) else { continue };
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
