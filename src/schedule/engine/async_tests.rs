//! An engine over a device that has two batches in flight and models that come and go.

use std::collections::HashSet;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;
use crate::explain::{ExplainError, HostMap, MapKind, RowMaps, TargetMaps};
use crate::plan::{Interrupt, PlanError};
use crate::schedule::device::{Batch, RowResult};
use crate::schedule::fake::{Bench, out_of_memory, served};
use crate::schedule::model_key::ModelKey;
use crate::schedule::warm_up::add_model;

const PANICS_AT_SUBMIT: u32 = 13;
const PANICS_AT_COLLECT: u32 = 14;
const FAILS_AT_SUBMIT: u32 = 15;
/// In a batch of more rows than one.
const HAS_NO_MEMORY: u32 = 16;
const CANNOT_RUN: &str = "bad";
const PATIENCE: Duration = Duration::from_secs(30);

/// What the device was told, in order.
#[derive(Debug, PartialEq, Eq)]
enum Event {
    Loaded(ModelKey),
    Unloaded(ModelKey),
    Submitted(ModelKey, Vec<u32>),
    Interrupted(Vec<u32>),
}

/// A device of depth 2. Each batch is collected when the test says so, unless it was interrupted; without `go`, at
/// once.
struct Pipelined {
    events: Sender<Event>,
    go: Option<Receiver<()>>,
}

struct InFlight {
    numbers: Vec<u32>,
    is_interrupted: bool,
}

impl AsyncDevice for Pipelined {
    type InFlight = InFlight;

    fn depth(&self) -> usize {
        2
    }

    fn load(&mut self, model: &Arc<Served>) -> Result<(), ExplainError> {
        self.events.send(Event::Loaded(model.key())).expect("the test listens");
        if model.metadata.name == CANNOT_RUN { Err(ExplainError::NotFinite) } else { Ok(()) }
    }

    fn unload(&mut self, model: ModelKey) {
        // The test may have ended.
        let _ = self.events.send(Event::Unloaded(model));
    }

    fn submit(&mut self, batch: &Batch<'_>) -> Result<InFlight, ExplainError> {
        let numbers: Vec<u32> = batch.values().iter().map(|row| row[0] as u32).collect();
        self.events.send(Event::Submitted(batch.model, numbers.clone())).expect("the test listens");
        assert!(!numbers.contains(&PANICS_AT_SUBMIT), "expected by the test");
        match numbers.as_slice() {
            [FAILS_AT_SUBMIT, ..] => Err(ExplainError::NotFinite),
            [HAS_NO_MEMORY, _, ..] => Err(out_of_memory()),
            _ => Ok(InFlight { numbers, is_interrupted: false }),
        }
    }

    fn interrupt(&mut self, in_flight: &mut InFlight) {
        in_flight.is_interrupted = true;
        self.events.send(Event::Interrupted(in_flight.numbers.clone())).expect("the test listens");
    }

    fn collect(
        &mut self,
        in_flight: InFlight,
        batch: &Batch<'_>,
        interrupt: &dyn Interrupt,
        ended: &mut dyn FnMut(Stage, Option<Instant>),
    ) -> Result<Vec<RowResult>, ExplainError> {
        let InFlight { numbers, is_interrupted } = in_flight;
        assert_eq!(numbers, batch.values().iter().map(|row| row[0] as u32).collect::<Vec<_>>());
        if let Some(go) = self.go.as_ref().filter(|_| !is_interrupted) {
            go.recv().expect("the test says when");
        }
        ended(Stage::CopyIn, None);
        ended(Stage::Forward, None);
        if is_interrupted || interrupt.stop() {
            return Err(ExplainError::Plan(PlanError::Interrupted));
        }
        assert!(!numbers.contains(&PANICS_AT_COLLECT), "expected by the test");
        let map = HostMap { values: vec![1.0], shape: vec![1, 1, 1] };
        let maps = [(MapKind::GuidedBackprop, map)].into_iter().collect();
        let target = TargetMaps { score: 1.0, maps, ..TargetMaps::default() };
        let row = RowMaps { logits: vec![1.0, 0.0, 0.0], targets: vec![target] };
        Ok(numbers.iter().map(|_| Ok(row.clone())).collect())
    }
}

struct Scene {
    bench: Bench,
    events: Receiver<Event>,
}

impl Scene {
    /// The device waits for [`Bench::go`] before it ends a batch.
    fn gated(models: &[Arc<Served>]) -> Self {
        let (go, wait) = channel();
        Self::new(models, go, Some(wait))
    }

    fn new(models: &[Arc<Served>], go: Sender<()>, wait: Option<Receiver<()>>) -> Self {
        let (sender, events) = channel();
        let device = Pipelined { events: sender, go: wait };
        let bench = Bench::over(models, vec![move || device], go, channel().1);
        let scene = Scene { bench, events };
        for model in models {
            assert_eq!(scene.event(), Event::Loaded(model.key()));
        }
        scene
    }

    fn event(&self) -> Event {
        self.events.recv_timeout(PATIENCE).expect("something happens")
    }

    /// The next batch that is submitted.
    fn submitted(&self) -> Vec<u32> {
        match self.event() {
            Event::Submitted(_, numbers) => numbers,
            other => panic!("{other:?} instead of a batch"),
        }
    }

    /// Submits a first frame, 1, gathers `others` behind it, and lets it end: the others then come in full batches.
    fn behind_the_first(&self, lane: &Lane, others: &[u32]) -> Vec<Handle> {
        self.bench.submit(lane, 1);
        assert_eq!(self.submitted(), [1]);
        let handles = others.iter().map(|number| self.bench.submit(lane, *number)).collect();
        self.settle();
        self.bench.go();
        assert_eq!(self.bench.ended().0, 1);
        handles
    }

    /// Waits until every frame that was chosen is prepared.
    fn settle(&self) {
        super::tests::settle(&self.bench);
    }

    fn answered(&self, number: u32) -> usize {
        let (ended, outcome) = self.bench.ended();
        assert_eq!(ended, number);
        outcome.expect("an answer").batch_size as usize
    }
}

#[test]
fn two_batches_are_in_flight_and_are_answered_in_order() {
    let model = served("m", 1);
    let scene = Scene::gated(&[Arc::clone(&model)]);
    let lane = scene.bench.lane(&model);
    scene.behind_the_first(&lane, &[2, 3, 4]);
    assert_eq!((scene.submitted(), scene.submitted()), (vec![2], vec![3]));
    assert!(scene.events.try_recv().is_err(), "the third waits for the first to be collected");
    // A worker that found no third row would wait for the second batch.
    scene.settle();
    scene.bench.go();
    assert_eq!(scene.answered(2), 1);
    assert_eq!(scene.submitted(), [4]);
    scene.bench.go();
    scene.bench.go();
    assert_eq!((scene.answered(3), scene.answered(4)), (1, 1));
    scene.bench.engine.stop();
}

#[test]
fn a_batch_that_is_not_full_waits_until_nothing_is_in_flight() {
    let model = served("m", 2);
    let scene = Scene::gated(&[Arc::clone(&model)]);
    scene.behind_the_first(&scene.bench.lane(&model), &[2, 3, 4]);
    assert_eq!(scene.submitted(), [2, 3]);
    assert!(scene.events.recv_timeout(Duration::from_millis(50)).is_err(), "a fifth frame could still join it");
    scene.bench.go();
    assert_eq!(scene.submitted(), [4]);
    scene.bench.go();
    assert_eq!([scene.answered(2), scene.answered(3), scene.answered(4)], [2, 2, 1]);
    scene.bench.engine.stop();
}

#[test]
fn batches_in_flight_that_nobody_waits_for_are_interrupted() {
    let model = served("m", 1);
    let scene = Scene::gated(&[Arc::clone(&model)]);
    let lane = scene.bench.lane(&model);
    let handles = scene.behind_the_first(&lane, &[2, 3]);
    assert_eq!((scene.submitted(), scene.submitted()), (vec![2], vec![3]));
    assert!(handles.iter().all(|handle| scene.bench.engine.cancel(handle)));
    // The first one finds out while it is collected, or before if the worker was slow; the second one before.
    scene.bench.go();
    let mut event = scene.event();
    if event == Event::Interrupted(vec![2]) {
        event = scene.event();
    }
    assert_eq!(event, Event::Interrupted(vec![3]));
    scene.bench.submit(&lane, 4);
    assert_eq!(scene.submitted(), [4]);
    scene.bench.go();
    assert_eq!(scene.answered(4), 1);
    assert!(scene.bench.nothing_ended());
    scene.bench.engine.stop();
}

#[test]
fn a_panic_in_one_batch_costs_its_row_and_leaves_the_other_batch_alone() {
    for panics in [PANICS_AT_SUBMIT, PANICS_AT_COLLECT] {
        let model = served("m", 2);
        let scene = Scene::gated(&[Arc::clone(&model)]);
        scene.behind_the_first(&scene.bench.lane(&model), &[panics, 2, 3, 4]);
        assert_eq!((scene.submitted(), scene.submitted()), (vec![panics, 2], vec![3, 4]));
        let is_collected = panics == PANICS_AT_COLLECT;
        (0..if is_collected { 2 } else { 0 }).for_each(|_| scene.bench.go());
        assert_eq!((scene.submitted(), scene.submitted()), (vec![panics], vec![2]), "row by row");
        scene.bench.go();
        let (number, outcome) = scene.bench.ended();
        assert!(number == panics && matches!(outcome, Err(JobError::Broken)));
        assert_eq!(scene.answered(2), 1);
        scene.bench.go();
        assert_eq!((scene.answered(3), scene.answered(4)), (2, 2));
        scene.bench.engine.stop();
    }
}

#[test]
fn a_failure_of_one_batch_is_not_the_other_ones() {
    let model = served("m", 1);
    let scene = Scene::gated(&[Arc::clone(&model)]);
    scene.behind_the_first(&scene.bench.lane(&model), &[FAILS_AT_SUBMIT, 3]);
    assert_eq!((scene.submitted(), scene.submitted()), (vec![FAILS_AT_SUBMIT], vec![3]));
    assert!(matches!(scene.bench.ended(), (FAILS_AT_SUBMIT, Err(JobError::Batch(_)))));
    scene.bench.go();
    assert_eq!(scene.answered(3), 1);
    scene.bench.engine.stop();
}

#[test]
fn a_batch_without_memory_is_halved_beside_another_in_flight() {
    let model = served("m", 2);
    let scene = Scene::gated(&[Arc::clone(&model)]);
    scene.behind_the_first(&scene.bench.lane(&model), &[HAS_NO_MEMORY, 2, 3, 4]);
    assert_eq!((scene.submitted(), scene.submitted()), (vec![HAS_NO_MEMORY, 2], vec![3, 4]));
    assert_eq!(scene.submitted(), [HAS_NO_MEMORY]);
    scene.bench.go();
    assert_eq!(scene.submitted(), [2]);
    scene.bench.go();
    scene.bench.go();
    let answered = [HAS_NO_MEMORY, 2, 3, 4].map(|number| scene.answered(number));
    assert_eq!(answered, [1, 1, 2, 2]);
    scene.bench.engine.stop();
}

#[test]
fn stopping_collects_what_is_in_flight_and_ends_what_waits() {
    let model = served("m", 1);
    let scene = Scene::gated(&[Arc::clone(&model)]);
    scene.behind_the_first(&scene.bench.lane(&model), &[2, 3, 4]);
    assert_eq!((scene.submitted(), scene.submitted()), (vec![2], vec![3]));
    thread::scope(|scope| {
        let stopping = scope.spawn(|| scene.bench.engine.stop());
        assert!(matches!(scene.bench.ended(), (4, Err(JobError::Stopped))));
        scene.bench.go();
        scene.bench.go();
        assert_eq!((scene.answered(2), scene.answered(3)), (1, 1));
        stopping.join().expect("it stops");
    });
}

#[test]
fn a_stream_keeps_its_model_when_that_is_replaced_and_new_streams_get_the_new_one() {
    let old = served("m", 1);
    let scene = Scene::gated(&[Arc::clone(&old)]);
    let (engine, old_key) = (&scene.bench.engine, old.key());
    let old_lane = scene.bench.lane(&old);
    scene.bench.submit(&old_lane, 1);
    assert_eq!(scene.event(), Event::Submitted(old_key, vec![1]));
    let new = served("m", 1);
    thread::scope(|scope| {
        let adding = scope.spawn(|| add_model(engine, &new));
        scene.bench.go();
        assert_eq!(scene.event(), Event::Loaded(new.key()));
        assert_eq!(scene.event(), Event::Submitted(new.key(), vec![0]), "a first frame");
        assert_eq!(engine.served()[0].key(), old_key, "it is not proved yet");
        scene.bench.go();
        adding.join().expect("no panic").expect("it can run");
    });
    assert_eq!(scene.answered(1), 1);
    let keys: Vec<ModelKey> = engine.served().iter().map(|model| model.key()).collect();
    assert_eq!(keys, [new.key()]);
    for (lane, key, number) in [(&old_lane, old_key, 2), (&scene.bench.lane(&new), new.key(), 3)] {
        scene.bench.submit(lane, number);
        assert_eq!(scene.event(), Event::Submitted(key, vec![number]));
        scene.bench.go();
        assert_eq!(scene.answered(number), 1);
    }
    drop((old_lane, old));
    assert_eq!(scene.event(), Event::Unloaded(old_key));
    engine.stop();
}

#[test]
fn a_retired_model_goes_on_for_its_streams_and_is_unloaded_when_they_end() {
    let model = served("m", 1);
    let scene = Scene::gated(&[Arc::clone(&model)]);
    let (lane, key) = (scene.bench.lane(&model), model.key());
    scene.bench.submit(&lane, 1);
    assert_eq!(scene.submitted(), [1]);
    assert!(scene.bench.engine.retire_model("m", 1) && !scene.bench.engine.retire_model("m", 1));
    assert!(scene.bench.engine.served().is_empty());
    scene.bench.submit(&lane, 2);
    assert_eq!(model.open_lanes(), 1);
    scene.bench.go();
    scene.bench.go();
    assert_eq!((scene.answered(1), scene.answered(2)), (1, 1));
    drop((lane, model));
    assert_eq!(scene.submitted(), [2]);
    assert_eq!(scene.event(), Event::Unloaded(key));
    scene.bench.engine.stop();
}

#[test]
fn the_model_that_was_used_last_is_known() {
    let models = ["a", "b", "c"].map(|name| served(name, 1));
    let scene = Scene::gated(&models);
    let [a, b, c] = &models;
    let lane = scene.bench.lane(a);
    drop(scene.bench.lane(b));
    assert!(c.last_use() < a.last_use() && a.last_use() < b.last_use());
    scene.bench.submit(&lane, 1);
    assert!(b.last_use() < a.last_use());
    scene.bench.go();
    scene.bench.engine.stop();
}

#[test]
fn a_model_that_cannot_be_loaded_is_known_by_name_and_the_others_go_on() {
    let good = served("good", 1);
    let scene = Scene::gated(&[Arc::clone(&good)]);
    let bad = served(CANNOT_RUN, 1);
    let error = add_model(&scene.bench.engine, &bad).expect_err("it cannot run");
    assert_eq!((error.name.as_str(), error.version), (CANNOT_RUN, 1));
    assert_eq!(scene.event(), Event::Loaded(bad.key()));
    let models = scene.bench.engine.watch_models();
    let can_run = ["good", CANNOT_RUN, "other"].map(|name| models.borrow().can_run(name));
    assert_eq!(can_run, [Some(true), Some(false), None]);
    scene.bench.submit(&scene.bench.lane(&good), 1);
    assert_eq!(scene.submitted(), [1]);
    scene.bench.go();
    assert_eq!(scene.answered(1), 1);
    scene.bench.engine.stop();
    let error = add_model(&scene.bench.engine, &served("late", 1)).expect_err("the engine has stopped");
    assert!(error.to_string().contains("stopping"), "{error}");
}

#[test]
fn every_frame_is_answered_while_its_model_is_replaced_again_and_again() {
    let first = served("m", 2);
    let scene = Scene::new(std::slice::from_ref(&first), channel().0, None);
    let engine = &scene.bench.engine;
    let first_key = first.key();
    drop(first);
    let is_over = AtomicBool::new(false);
    let submitted = thread::scope(|scope| {
        let clients = [100, 200].map(|number| {
            let (bench, is_over) = (&scene.bench, &is_over);
            scope.spawn(move || {
                let mut count = 0;
                // At least one frame, however late the thread begins.
                while count == 0 || !is_over.load(Ordering::Relaxed) {
                    if bench.engine.in_work().iter().all(|(_, in_work)| in_work.frames < 50) {
                        // As a call does it: a lane for the model that is served now.
                        bench.submit(&bench.lane(&bench.engine.served()[0]), number);
                        count += 1;
                    }
                    thread::sleep(Duration::from_micros(200));
                }
                count
            })
        });
        for _ in 0..30 {
            add_model(engine, &served("m", 2)).expect("it can run");
        }
        is_over.store(true, Ordering::Relaxed);
        clients.map(|client| client.join().expect("no panic")).iter().sum::<u32>()
    });
    assert!(submitted > 0);
    for _ in 0..submitted {
        assert!(scene.bench.ended().1.is_ok());
    }
    let last = engine.served()[0].key();
    let mut loaded = HashSet::from([first_key]);
    // The device drops every model but the last.
    while loaded != HashSet::from([last]) {
        match scene.event() {
            Event::Loaded(key) => assert!(loaded.insert(key)),
            Event::Unloaded(key) => assert!(loaded.remove(&key)),
            Event::Submitted(..) | Event::Interrupted(_) => {}
        }
    }
    engine.stop();
}
