//! What can happen.

use std::time::Duration;

use proptest::prelude::*;

use super::item::{MAX_COST, MAX_WORKERS};
use crate::schedule::queue::line::MAX_PRIORITY;
use crate::stream::{Overflow, Policy};

pub(super) const STREAMS: usize = 4;

#[derive(Debug, Clone)]
pub(super) enum Event {
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

pub(super) fn policy() -> impl Strategy<Value = Policy> {
    let overflow = prop_oneof![Just(Overflow::Latest), Just(Overflow::Block), Just(Overflow::Reject)];
    (overflow, 1usize..5, prop::option::weighted(0.2, 1u64..80)).prop_map(|(overflow, depth, interval)| Policy {
        overflow,
        depth,
        unordered: false,
        min_interval: interval.map(Duration::from_millis),
    })
}

pub(super) fn event() -> impl Strategy<Value = Event> {
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
