//! A frame in work, in as few words as can be.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use crate::schedule::admission::{Admission, Budget, Limit};
use crate::schedule::queue::turn::{Ready, Turn, Waiting};

pub(super) const MAX_BATCH: usize = 3;
pub(super) const MAX_WORKERS: usize = 3;
pub(super) const MAX_COST: u32 = 6;
pub(super) const AGEING: Duration = Duration::from_millis(100);
/// Frames and KiB, of a stream, of a model, of all.
pub(super) const STREAM: (usize, u64) = (100, 12);
pub(super) const MODEL: (usize, u64) = (6, 24);
pub(super) const PROCESS: (usize, u64) = (9, 40);

/// What frames hold at the moment, by stream, by model and in all.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) frames: BTreeMap<&'static str, BTreeMap<usize, usize>>,
    pub(super) kib: BTreeMap<&'static str, BTreeMap<usize, u64>>,
}

impl Held {
    pub(super) fn change(&mut self, places: [(&'static str, usize); 3], frames: isize, kib: i64) {
        for (level, index) in places {
            let count = self.frames.entry(level).or_default().entry(index).or_default();
            *count = count.saturating_add_signed(frames);
            let sum = self.kib.entry(level).or_default().entry(index).or_default();
            *sum = sum.saturating_add_signed(kib);
        }
    }

    pub(super) fn within(&self) -> bool {
        [("stream", STREAM), ("model", MODEL), ("process", PROCESS)].into_iter().all(|(level, (frames, kib))| {
            self.frames.get(level).is_none_or(|counts| counts.values().all(|count| *count <= frames))
                && self.kib.get(level).is_none_or(|sums| sums.values().all(|sum| *sum <= kib))
        })
    }
}

/// For each worker, whether it has a model.
pub(super) type Runs = [bool; MAX_WORKERS];

/// A frame in work. Dropping it gives its room back.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) turn: Turn,
    pub(super) sequence: u64,
    pub(super) model: usize,
    /// The workers that have the model.
    pub(super) workers: Runs,
    pub(super) shape: u32,
    pub(super) kib: u64,
    pub(super) held: Rc<RefCell<Held>>,
    pub(super) _admission: Admission,
}

impl Item {
    pub(super) fn stream(&self) -> usize {
        self.turn.stream.0 as usize
    }

    pub(super) fn places(&self) -> [(&'static str, usize); 3] {
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

    fn runs_on(&self, worker: usize) -> bool {
        self.workers[worker]
    }
}

impl Ready for Item {
    fn turn(&self) -> &Turn {
        &self.turn
    }

    fn shape(&self) -> [u32; 3] {
        [1, 1, self.shape]
    }

    fn runs_on(&self, worker: usize) -> bool {
        self.workers[worker]
    }
}

pub(super) fn budget((frames, kib): (usize, u64)) -> Budget {
    Budget::new(Limit { frames: ("frames", frames), bytes: ("bytes", kib << 10) })
}
