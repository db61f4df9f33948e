//! A simulated CUDA card under the worker that drives it: copies beside computation, a clock of its own, memory that
//! runs out, recordings that are evicted, and failures on demand.
//!
//! Time is simulated: the host's clock stands still while the worker does something, and moves when it waits for the
//! card. So what overlaps is known exactly.

use std::collections::{BTreeMap, HashMap};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::cases;
use super::item::budget;
use crate::explain::{ExplainError, Method, RowMaps, Target, TargetMaps};
use crate::frame::Payload;
use crate::plan::{Interrupt, PlanError};
use crate::schedule::admission::Budgets;
use crate::schedule::background::Compute;
use crate::schedule::clock::Clock;
use crate::schedule::device::{AsyncDevice, Batch, RowResult};
use crate::schedule::error::JobError;
use crate::schedule::fake::{out_of_memory, pixels, served};
use crate::schedule::finish::finish;
use crate::schedule::job::{Ending, Outcome, Reply};
use crate::schedule::model_key::ModelKey;
use crate::schedule::outputs::Outputs;
use crate::schedule::prepare::{Chosen, PreparedRow, prepare};
use crate::schedule::queue::next_batch::Prepared;
use crate::schedule::queue::ticket::{StreamKey, Ticket};
use crate::schedule::queue::turn::Turn;
use crate::schedule::served::Served;
use crate::schedule::worker::Worker;
use crate::telemetry::{Progress, Stage};
use crate::torch::cuda::CudaError;

/// Nanoseconds that a row takes on a card of ordinary speed: its copies, its forward and its reverse run.
const COPY_IN: u64 = 100;
const FORWARD: u64 = 1000;
const REVERSE: u64 = 1500;
const COPY_OUT: u64 = 200;
/// Memory of a row in flight, of a recording for each of its rows, and of a model.
const ROW: u64 = 4;
const RECORDED_ROW: u64 = 2;
const MODEL: u64 = 10;
const MEMORY: u64 = 64;
const MAX_ROWS: usize = 4;
const MODELS: usize = 2;

/// The host's time.
struct SimulatedClock {
    began: Instant,
    ns: AtomicU64,
}

impl SimulatedClock {
    fn ns(&self) -> u64 {
        self.ns.load(Ordering::Relaxed)
    }

    fn pass(&self, ns: u64) {
        self.ns.fetch_add(ns, Ordering::Relaxed);
    }

    fn wait_until(&self, ns: u64) {
        self.ns.fetch_max(ns, Ordering::Relaxed);
    }

    fn at(&self, ns: u64) -> Instant {
        self.began + Duration::from_nanos(ns)
    }
}

impl Clock for SimulatedClock {
    fn now(&self) -> Instant {
        self.at(self.ns())
    }
}

/// What a test does to the card, and what it has seen.
#[derive(Debug, Default)]
struct Controls {
    /// Every duration is multiplied by it.
    slowness: u64,
    is_broken: bool,
    /// Calls of each kind that panic from now on.
    panics: BTreeMap<&'static str, u32>,
    /// Memory that another program has taken.
    taken_by_others: u64,
    used: u64,
    most_used: u64,
    /// When each batch was computed and copied, in the order of submission.
    spans: Vec<Spans>,
    interrupted: usize,
}

/// Begin and end of a batch on the card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Spans {
    copy_in: (u64, u64),
    forward: (u64, u64),
    /// Of a batch that was not stopped.
    reverse: Option<(u64, u64)>,
}

/// A card with one engine for each direction of copies, and one for computation.
struct Card {
    clock: Arc<SimulatedClock>,
    controls: Arc<Mutex<Controls>>,
    models: HashMap<ModelKey, u64>,
    /// Model, rows and memory; the one that was used least recently first.
    recordings: Vec<(ModelKey, usize, u64)>,
    /// When each engine is free.
    copy_in_free: u64,
    compute_free: u64,
    copy_out_free: u64,
}

struct InFlight {
    rows: usize,
    /// Index in [`Controls::spans`].
    number: usize,
    memory: Held,
}

/// Memory that is given back whatever becomes of the batch.
struct Held {
    controls: Arc<Mutex<Controls>>,
    units: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        lock(&self.controls).used -= self.units;
    }
}

fn lock(controls: &Mutex<Controls>) -> std::sync::MutexGuard<'_, Controls> {
    controls.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Card {
    fn new(clock: &Arc<SimulatedClock>, controls: &Arc<Mutex<Controls>>) -> Self {
        Card {
            clock: Arc::clone(clock),
            controls: Arc::clone(controls),
            models: HashMap::new(),
            recordings: Vec::new(),
            copy_in_free: 0,
            compute_free: 0,
            copy_out_free: 0,
        }
    }

    /// What any call of the card may do.
    fn call(&self, kind: &'static str) -> Result<(), ExplainError> {
        let mut controls = lock(&self.controls);
        if let Some(left) = controls.panics.get_mut(kind).filter(|left| **left > 0) {
            *left -= 1;
            drop(controls);
            resume_unwind(Box::new("expected by the test"));
        }
        if controls.is_broken {
            return Err(CudaError::Lost("expected by the test".into()).into());
        }
        Ok(())
    }

    /// Takes memory; recordings go for it, the least recently used first.
    fn take(&mut self, units: u64) -> Result<Held, ExplainError> {
        loop {
            let mut controls = lock(&self.controls);
            if controls.used + units + controls.taken_by_others <= MEMORY {
                controls.used += units;
                controls.most_used = controls.most_used.max(controls.used);
                return Ok(Held { controls: Arc::clone(&self.controls), units });
            }
            if self.recordings.is_empty() {
                return Err(out_of_memory());
            }
            let (_, _, freed) = self.recordings.remove(0);
            controls.used -= freed;
        }
    }

    /// Finds or makes the recording for a batch.
    fn record(&mut self, model: ModelKey, rows: usize) -> Result<(), ExplainError> {
        if let Some(at) = self.recordings.iter().position(|(of, count, _)| (*of, *count) == (model, rows)) {
            let used = self.recordings.remove(at);
            self.recordings.push(used);
            return Ok(());
        }
        let mut held = self.take(RECORDED_ROW * rows as u64)?;
        self.recordings.push((model, rows, held.units));
        held.units = 0;
        Ok(())
    }

    /// Lets an engine work on something that is ready at a moment; returns begin and end.
    fn work(free: &mut u64, ready: u64, ns: u64) -> (u64, u64) {
        let begin = ready.max(*free);
        *free = begin + ns;
        (begin, *free)
    }

    fn ns(&self, rows: usize, of_row: u64) -> u64 {
        rows as u64 * of_row * lock(&self.controls).slowness
    }
}

impl AsyncDevice for Card {
    type InFlight = InFlight;

    fn depth(&self) -> usize {
        2
    }

    fn load(&mut self, model: &Arc<Served>) -> Result<(), ExplainError> {
        self.call("load")?;
        let mut held = self.take(MODEL)?;
        self.models.insert(model.key(), held.units);
        held.units = 0;
        Ok(())
    }

    fn unload(&mut self, model: ModelKey) {
        let mut controls = lock(&self.controls);
        controls.used -= self.models.remove(&model).unwrap_or(0);
        let (gone, kept) = std::mem::take(&mut self.recordings).into_iter().partition(|(of, _, _)| *of == model);
        self.recordings = kept;
        let gone: Vec<(ModelKey, usize, u64)> = gone;
        controls.used -= gone.iter().map(|(_, _, units)| units).sum::<u64>();
    }

    fn submit(&mut self, batch: &Batch<'_>) -> Result<InFlight, ExplainError> {
        self.call("submit")?;
        assert!(self.models.contains_key(&batch.model), "a batch of a model that is not loaded");
        let rows = batch.inputs.len();
        self.record(batch.model, rows)?;
        let memory = self.take(ROW * rows as u64)?;
        let [copy, forward] = [COPY_IN, FORWARD].map(|of_row| self.ns(rows, of_row));
        let copy_in = Self::work(&mut self.copy_in_free, self.clock.ns(), copy);
        let forward = Self::work(&mut self.compute_free, copy_in.1, forward);
        let mut controls = lock(&self.controls);
        controls.spans.push(Spans { copy_in, forward, reverse: None });
        Ok(InFlight { rows, number: controls.spans.len() - 1, memory })
    }

    fn interrupt(&mut self, _: &mut InFlight) {
        lock(&self.controls).interrupted += 1;
        // A panic here must not keep the batch from being collected.
        let _ = self.call("interrupt");
    }

    fn collect(
        &mut self,
        in_flight: InFlight,
        batch: &Batch<'_>,
        interrupt: &dyn Interrupt,
        ended: &mut dyn FnMut(Stage, Option<Instant>),
    ) -> Result<Vec<RowResult>, ExplainError> {
        let InFlight { rows, number, memory } = in_flight;
        assert_eq!(rows, batch.inputs.len(), "another batch is collected than was submitted");
        self.call("collect")?;
        let Spans { copy_in, forward, .. } = lock(&self.controls).spans[number];
        self.clock.wait_until(forward.1);
        ended(Stage::CopyIn, Some(self.clock.at(copy_in.1)));
        ended(Stage::Forward, Some(self.clock.at(forward.1)));
        if interrupt.stop() {
            return Err(PlanError::Interrupted.into());
        }
        let [reverse, copy] = [REVERSE, COPY_OUT].map(|of_row| self.ns(rows, of_row));
        let reverse = Self::work(&mut self.compute_free, self.clock.ns(), reverse);
        let copy_out = Self::work(&mut self.copy_out_free, reverse.1, copy);
        lock(&self.controls).spans[number].reverse = Some(reverse);
        self.clock.wait_until(copy_out.1);
        ended(Stage::Backward, Some(self.clock.at(reverse.1)));
        ended(Stage::Fuse, Some(self.clock.at(reverse.1)));
        ended(Stage::CopyOut, Some(self.clock.at(copy_out.1)));
        drop(memory);
        let row = |value: &f32| {
            let target = TargetMaps { score: *value, ..TargetMaps::default() };
            Ok(RowMaps { logits: vec![*value, 0.0, 0.0], targets: vec![target] })
        };
        Ok(batch.values().iter().map(|input| row(&input[0])).collect())
    }
}

#[derive(Debug, Clone)]
enum Event {
    /// A batch, if the worker has room.
    Submit {
        rows: usize,
        model: usize,
    },
    Collect,
    /// A frame's client has gone.
    Cancel {
        back: usize,
    },
    Pass {
        ns: u64,
    },
    Slow {
        factor: u64,
    },
    /// Another program takes so much memory in all.
    Exhaust {
        units: u64,
    },
    Panic {
        kind: &'static str,
    },
    Break,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => (1..=MAX_ROWS, 0..MODELS).prop_map(|(rows, model)| Event::Submit { rows, model }),
        8 => Just(Event::Collect),
        2 => (0..6usize).prop_map(|back| Event::Cancel { back }),
        2 => (0..5000u64).prop_map(|ns| Event::Pass { ns }),
        1 => (1..20u64).prop_map(|factor| Event::Slow { factor }),
        1 => (0..MEMORY - MODEL * MODELS as u64).prop_map(|units| Event::Exhaust { units }),
        1 => prop::sample::select(vec!["submit", "collect", "interrupt"]).prop_map(|kind| Event::Panic { kind }),
    ]
}

/// A frame that was submitted.
struct Frame {
    ticket: Ticket,
    is_cancelled: bool,
}

struct World {
    clock: Arc<SimulatedClock>,
    controls: Arc<Mutex<Controls>>,
    worker: Worker<Card>,
    models: Vec<Arc<Served>>,
    frames: Vec<Frame>,
    /// Frames and what became of them, in the order of their endings.
    outcomes: Arc<Mutex<Vec<(usize, Outcome)>>>,
    budgets: Budgets,
    busy: Duration,
    has_panicked: bool,
}

impl World {
    fn new() -> Self {
        let clock = Arc::new(SimulatedClock { began: Instant::now(), ns: AtomicU64::new(0) });
        let controls = Arc::new(Mutex::new(Controls { slowness: 1, ..Controls::default() }));
        let mut worker = Worker::new(Card::new(&clock, &controls), Arc::clone(&clock) as Arc<dyn Clock>);
        let models: Vec<_> = ["a", "b"].map(|name| served(name, MAX_ROWS as u32)).into();
        for model in &models {
            worker.load(model).expect("there is memory for it");
        }
        World {
            clock,
            controls,
            worker,
            models,
            frames: Vec::new(),
            outcomes: Arc::default(),
            budgets: Budgets([(); 3].map(|()| budget((usize::MAX, 1 << 40)))),
            busy: Duration::ZERO,
            has_panicked: false,
        }
    }

    fn apply(&mut self, event: &Event) {
        match *event {
            Event::Submit { rows, model } if self.worker.has_room() && self.worker.lost().is_none() => {
                let rows = (0..rows).map(|_| self.row(model)).collect();
                self.worker.submit(rows);
            }
            Event::Submit { .. } => {}
            Event::Collect => self.collect(),
            Event::Cancel { back } => {
                let at = self.frames.len().checked_sub(1 + back);
                if let Some(frame) = at.and_then(|at| self.frames.get_mut(at)) {
                    frame.is_cancelled |= frame.ticket.end();
                }
            }
            Event::Pass { ns } => self.clock.pass(ns),
            Event::Slow { factor } => lock(&self.controls).slowness = factor,
            Event::Exhaust { units } => lock(&self.controls).taken_by_others = units,
            Event::Panic { kind } => {
                self.has_panicked = true;
                *lock(&self.controls).panics.entry(kind).or_default() += 1;
            }
            Event::Break => lock(&self.controls).is_broken = true,
        }
    }

    fn row(&mut self, model: usize) -> PreparedRow {
        let (number, now) = (self.frames.len(), self.clock.now());
        let ticket = Ticket::new();
        self.frames.push(Frame { ticket: ticket.clone(), is_cancelled: false });
        let outcomes = Arc::clone(&self.outcomes);
        let reply = Reply::new(move |outcome| {
            outcomes.lock().unwrap_or_else(PoisonError::into_inner).push((number, outcome));
        });
        let payload: Payload = pixels(number as u32, [1, 1, 1]);
        let chosen = Chosen {
            turn: Turn::new(StreamKey(0), ticket.clone(), 0, 1, None, now),
            model: Arc::clone(&self.models[model]),
            method: Method::default(),
            targets: vec![Target::Top(1)],
            outputs: Outputs { top_predictions: 1, ..Outputs::default() },
            payload,
            progress: Progress::start(now),
            admission: self.budgets.try_admit(4).expect("there is room"),
            onlooker: None,
            ending: Ending::new(ticket, reply),
        };
        match prepare(chosen, &(Arc::clone(&self.clock) as Arc<dyn Clock>), &Compute::Here) {
            Prepared::Row(row) => row,
            other => panic!("a sound frame: {other:?}"),
        }
    }

    fn collect(&mut self) {
        let Some((rows, took)) = self.worker.collect() else { return };
        self.busy += took;
        for row in rows {
            let ticket = row.about.ending.ticket.clone();
            finish(row, &*self.clock, &Compute::Here);
            assert!(ticket.is_over(), "a row that is collected has an ending");
        }
    }

    /// Collects what is in flight.
    fn run_out(&mut self) {
        while !self.worker.is_idle() {
            self.collect();
        }
    }

    /// What must hold whatever happened.
    fn check(&self) -> Result<(), TestCaseError> {
        let outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        let numbers: Vec<usize> = outcomes.iter().map(|(number, _)| *number).collect();
        prop_assert!(numbers.is_sorted_by(|a, b| a < b), "each ends once, in order: {numbers:?}");
        let owed = self.frames.iter().enumerate().filter(|(_, frame)| !frame.is_cancelled).map(|(number, _)| number);
        prop_assert_eq!(&numbers, &owed.collect::<Vec<_>>());
        for (number, outcome) in outcomes.iter() {
            let answer = match outcome {
                Ok(answer) => answer,
                Err(JobError::Broken) if self.has_panicked => continue,
                Err(JobError::OutOfMemory) => continue,
                Err(JobError::Batch(error)) if error.is_lost() && self.worker.lost().is_some() => continue,
                Err(error) => return Err(TestCaseError::fail(format!("frame {number}: {error}"))),
            };
            prop_assert_eq!(answer.predictions[0].logit, *number as f32);
            prop_assert!(answer.batch_size as usize <= MAX_ROWS);
            let stages = answer.timings.stages();
            prop_assert!(stages.is_sorted_by_key(|timing| timing.start), "{stages:?}");
            let sum: Duration = stages.iter().map(|timing| timing.duration).sum();
            prop_assert_eq!(sum, answer.timings.total());
        }
        let controls = lock(&self.controls);
        prop_assert!(controls.most_used <= MEMORY);
        prop_assert!(self.busy <= Duration::from_nanos(self.clock.ns()), "the card is not busy twice at a time");
        let computed = controls.spans.iter().flat_map(|spans| [Some(spans.forward), spans.reverse]).flatten();
        let mut computed: Vec<(u64, u64)> = computed.collect();
        computed.sort_unstable();
        prop_assert!(computed.windows(2).all(|pair| pair[0].1 <= pair[1].0), "one batch at a time computes");
        Ok(())
    }

    /// Drops the models: the card has all of its memory again.
    fn unload(mut self) -> u64 {
        self.models.clear();
        self.worker.unload_unused();
        lock(&self.controls).used
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 20_000, ..ProptestConfig::with_cases(cases(1000)) })]

    #[test]
    fn each_row_ends_once_in_order_and_no_memory_stays(events in prop::collection::vec(event(), 0..80)) {
        let mut world = World::new();
        for event in &events {
            world.apply(event);
        }
        world.run_out();
        world.check()?;
        prop_assert_eq!(world.unload(), 0);
    }

    #[test]
    fn a_card_that_breaks_is_noticed_with_the_next_batch_and_loses_no_row(
        before in prop::collection::vec(event(), 0..40),
        after in prop::collection::vec(event(), 0..40),
    ) {
        let mut world = World::new();
        before.iter().chain([&Event::Break]).for_each(|event| world.apply(event));
        let is_in_flight = !world.worker.is_idle();
        after.iter().for_each(|event| world.apply(event));
        world.run_out();
        world.check()?;
        let submits = after.iter().any(|event| matches!(event, Event::Submit { .. }));
        // A batch that panics or finds no memory may end before it meets the failure.
        let excused = world.has_panicked || lock(&world.controls).taken_by_others > 0;
        prop_assert!(world.worker.lost().is_some() || !(submits || is_in_flight) || excused);
    }

    #[test]
    fn copies_of_a_batch_run_beside_the_computation_of_the_one_before(
        batches in prop::collection::vec(1..=MAX_ROWS, 2..20),
        factor in 1..5u64,
    ) {
        let mut world = World::new();
        world.apply(&Event::Slow { factor });
        for &rows in &batches {
            if !world.worker.has_room() {
                world.collect();
            }
            world.apply(&Event::Submit { rows, model: 0 });
        }
        world.run_out();
        world.check()?;
        let controls = lock(&world.controls);
        for pair in controls.spans.windows(2) {
            prop_assert!(pair[1].copy_in.0 < pair[0].reverse.expect("it ran").1, "{pair:?}");
        }
        let rows: usize = batches.iter().sum();
        let one_by_one = rows as u64 * (COPY_IN + FORWARD + REVERSE + COPY_OUT) * factor;
        prop_assert!(world.clock.ns() < one_by_one, "{} of {one_by_one} ns", world.clock.ns());
    }
}
