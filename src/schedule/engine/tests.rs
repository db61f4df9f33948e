use std::sync::atomic::AtomicBool;

use super::worker_loop::QUIET;
use super::*;
use crate::explain::{ExplainError, MapKind, MapSet, Method};
use crate::frame::Payload;
use crate::plan::{Interrupt, PlanError};
use crate::schedule::device::{Batch, Device, RowResult};
use crate::schedule::error::JobError;
use crate::schedule::fake::{Behaviour, Bench, FakeDevice, bound, out_of_memory, pixels, served};
use crate::schedule::job::Reply;

/// Waits until every frame that was chosen is prepared.
pub(super) fn settle(bench: &Bench) {
    while bench.engine.shared.state.lock().dispatch.preparing() > 0 {
        thread::yield_now();
    }
}

/// Numbers and whether they were answered, of the next `count` frames that end, by number.
fn endings(bench: &Bench, count: usize) -> Vec<(u32, bool)> {
    let mut ended: Vec<_> = (0..count).map(|_| bench.ended()).map(|(number, o)| (number, o.is_ok())).collect();
    ended.sort_unstable();
    ended
}

#[test]
fn frames_of_several_streams_run_together_when_the_device_is_free() {
    let model = served("m", 8);
    let bench = Bench::sound(&[Arc::clone(&model)]);
    let streams: Vec<_> = (0..3).map(|_| bench.lane(&model)).collect();
    bench.submit(&streams[0], 1);
    assert_eq!(bench.began(), [1]);
    for (stream, number) in [(0, 2), (1, 3), (2, 4)] {
        bench.submit(&streams[stream], number);
    }
    settle(&bench);
    bench.go();
    assert_eq!(bench.began(), [2, 3, 4]);
    bench.go();
    assert_eq!(endings(&bench, 4), [(1, true), (2, true), (3, true), (4, true)]);
    bench.engine.stop();
}

#[test]
fn workers_run_batches_at_once_and_each_has_one_ahead() {
    let model = served("m", 1);
    let bench = Bench::of_workers(&[Arc::clone(&model)], vec![sound(), sound()]);
    let streams: Vec<_> = (0..6).map(|_| bench.lane(&model)).collect();
    let submit = |number: u32| drop(bench.submit(&streams[number as usize], number));
    submit(0);
    assert_eq!(bench.began(), [0]);
    // The other worker takes the next frame although the first one is at work.
    submit(1);
    assert_eq!(bench.began(), [1]);
    (2..6).for_each(submit);
    settle(&bench);
    assert_eq!(bench.engine.shared.state.lock().dispatch.ready(), 2, "a batch ahead for each");
    for _ in 0..6 {
        bench.go();
    }
    let mut began: Vec<u32> = (0..4).flat_map(|_| bench.began()).collect();
    began.sort_unstable();
    assert_eq!(began, [2, 3, 4, 5]);
    assert!(endings(&bench, 6).iter().all(|(_, is_answered)| *is_answered));
    bench.engine.stop();
}

/// A worker that notes which frames it runs.
fn noting(worker: u32, seen: &mpsc::Sender<(u32, u32)>) -> Behaviour {
    let seen = seen.clone();
    Box::new(move |rows, _| {
        rows.iter().for_each(|&row| seen.send((worker, row as u32)).expect("the test listens"));
        Ok(())
    })
}

#[test]
fn a_model_runs_on_the_workers_that_it_is_bound_to() {
    let (free, second) = (served("free", 1), bound("second", 1, &[1]));
    let (seen, ran) = mpsc::channel();
    let bench = Bench::of_workers(&[Arc::clone(&free), Arc::clone(&second)], vec![noting(0, &seen), noting(1, &seen)]);
    let streams: Vec<_> = (0..12).map(|number| bench.lane(if number % 2 == 0 { &free } else { &second })).collect();
    for (number, stream) in (0..).zip(&streams) {
        bench.submit(stream, number);
    }
    for _ in 0..12 {
        bench.began();
        bench.go();
    }
    assert!(endings(&bench, 12).iter().all(|(_, answered)| *answered));
    let ran: Vec<(u32, u32)> = ran.try_iter().collect();
    assert!(ran.iter().all(|(worker, number)| number % 2 == 0 || *worker == 1), "{ran:?}");
    bench.engine.stop();
}

/// A worker whose batches work.
fn sound() -> Behaviour {
    Box::new(|_, _| Ok(()))
}

#[test]
fn an_idle_worker_takes_what_was_prepared_for_a_busy_one_if_it_has_the_model() {
    let (free, first) = (served("free", 1), bound("first", 1, &[0]));
    let (release, released) = mpsc::channel();
    let busy: Behaviour = Box::new(move |_, _| {
        released.recv().expect("the test says when");
        Ok(())
    });
    let bench = Bench::of_workers(&[Arc::clone(&free), Arc::clone(&first)], vec![busy, sound()]);
    let streams: Vec<_> = (0..4).map(|_| bench.lane(&free)).collect();
    for (number, stream) in (0..).zip(&streams) {
        bench.submit(stream, number);
    }
    bench.began();
    bench.began();
    settle(&bench);
    assert_eq!(bench.engine.shared.state.lock().dispatch.ready(), 2, "a batch ahead for each worker");
    // Each worker takes one; the first stays busy with its own, and the second ends the three others.
    (0..4).for_each(|_| bench.go());
    assert!(endings(&bench, 3).iter().all(|(_, answered)| *answered));
    release.send(()).expect("the first worker waits");
    assert_eq!(endings(&bench, 1).len(), 1);
    bench.engine.stop();
}

/// Waits until `count` workers wait.
fn await_waiting(bench: &Bench, count: usize) {
    while bench.engine.shared.state.lock().waiting.len() != count {
        thread::yield_now();
    }
}

/// Two workers that wait, and a lane of their model.
fn two_idle_workers() -> (Bench, Lane) {
    let model = served("m", 4);
    let bench = Bench::of_workers(&[Arc::clone(&model)], vec![sound(), sound()]);
    await_waiting(&bench, 2);
    let lane = bench.lane(&model);
    (bench, lane)
}

/// Keeps the only thread of the pool busy until the sender is dropped.
fn occupy_pool(bench: &Bench) -> mpsc::Sender<()> {
    let (release, released) = mpsc::channel::<()>();
    let tasks = bench.engine.shared.state.lock().tasks.clone().expect("an engine that runs");
    tasks.run(move || {
        // The sender is dropped, not used.
        let _ = released.recv();
    });
    release
}

#[test]
fn a_lone_frame_is_prepared_and_rendered_by_its_worker() {
    let (bench, lane) = two_idle_workers();
    let release = occupy_pool(&bench);
    for number in 0..3 {
        await_waiting(&bench, 2);
        bench.submit(&lane, number);
        assert_eq!(bench.began(), [number]);
        bench.go();
        assert_eq!(endings(&bench, 1), [(number, true)]);
    }
    // While one works, the other waits for rows of the pool: it does not prepare what might run beside others.
    await_waiting(&bench, 2);
    bench.submit(&lane, 3);
    assert_eq!(bench.began(), [3]);
    bench.submit(&bench.lane(&lane.model), 4);
    bench.go();
    assert!(bench.nothing_ended());
    drop(release);
    assert_eq!(bench.began(), [4]);
    bench.go();
    assert_eq!(endings(&bench, 2), [(3, true), (4, true)]);
    bench.engine.stop();
}

#[test]
fn a_lone_frame_that_breaks_ends_and_its_worker_lives_on() {
    let (bench, lane) = two_idle_workers();
    // Its pixels do not fit its shape.
    bench.submit_with(&lane, 0, |job| job.payload = Payload::Tensor { data: vec![0; 3].into(), shape: vec![1, 1, 1] });
    assert_eq!(endings(&bench, 1), [(0, false)]);
    await_waiting(&bench, 2);
    // Its renderer panics.
    let reply = Reply::new(|_| panic!("expected by the test"));
    bench.submit_with(&lane, 1, |job| job.reply = reply);
    assert_eq!(bench.began(), [1]);
    bench.go();
    await_waiting(&bench, 2);
    bench.submit(&lane, 2);
    assert_eq!(bench.began(), [2]);
    bench.go();
    assert_eq!(endings(&bench, 1), [(2, true)]);
    bench.engine.stop();
}

#[test]
fn a_lone_frame_that_no_worker_has_taken_yet_ends_with_the_engine() {
    let (bench, lane) = two_idle_workers();
    bench.submit(&lane, 0);
    assert_eq!(bench.began(), [0]);
    bench.submit(&lane, 1);
    settle(&bench);
    assert_eq!(bench.began(), [1]);
    // Both work. A frame is given to one of them, as if both had waited.
    bench.engine.shared.state.lock().waiting.extend([0, 1]);
    bench.submit(&lane, 2);
    assert!(bench.engine.shared.state.lock().lone.iter().any(Option::is_some));
    bench.engine.shared.close();
    assert_eq!(endings(&bench, 1), [(2, false)]);
    bench.go();
    bench.go();
    assert_eq!(endings(&bench, 2).len(), 2);
    bench.engine.stop();
}

#[test]
fn of_idle_workers_the_one_that_worked_last_works_next() {
    let model = served("m", 1);
    let (works, worker) = mpsc::channel();
    let records = |index: usize| -> super::super::fake::Behaviour {
        let works = works.clone();
        Box::new(move |_, _| {
            works.send(index).expect("the test listens");
            Ok(())
        })
    };
    let bench = Bench::of_workers(&[Arc::clone(&model)], (0..3).map(records).collect());
    let lane = bench.lane(&model);
    for number in 0..6 {
        let waiting = loop {
            let waiting = bench.engine.shared.state.lock().waiting.clone();
            if waiting.len() == 3 {
                break waiting;
            }
            thread::yield_now();
        };
        bench.submit(&lane, number);
        assert_eq!(bench.began(), [number]);
        bench.go();
        assert_eq!(endings(&bench, 1), [(number, true)]);
        assert_eq!(worker.recv(), Ok(waiting[2]), "frame {number} of workers that wait in the order {waiting:?}");
    }
    bench.engine.stop();
}

#[test]
fn frames_of_two_sizes_run_on_two_workers_at_once() {
    let model = served("m", 4);
    let bench = Bench::of_workers(&[Arc::clone(&model)], vec![sound(), sound()]);
    let lanes = [bench.lane(&model), bench.lane(&model), bench.lane(&model)];
    bench.submit(&lanes[0], 1);
    assert_eq!(bench.began(), [1]);
    bench.submit(&lanes[1], 2);
    assert_eq!(bench.began(), [2]);
    // Both work. Whoever is free first takes one size, and the other size is not left lying.
    bench.submit(&lanes[0], 3);
    bench.submit_with(&lanes[1], 4, |job| job.payload = pixels(4, [1, 2, 2]));
    settle(&bench);
    bench.go();
    bench.go();
    let mut began = [bench.began(), bench.began()].concat();
    began.sort_unstable();
    assert_eq!(began, [3, 4]);
    bench.go();
    bench.go();
    assert_eq!(endings(&bench, 4), [(1, true), (2, true), (3, true), (4, true)]);
    bench.engine.stop();
}

#[test]
fn the_end_of_one_worker_is_the_end_of_all() {
    let model = served("m", 1);
    let devices: Vec<Box<dyn FnOnce() -> super::super::fake::FakeDevice + Send>> =
        vec![Box::new(|| panic!("expected by the test")), Box::new(|| panic!("expected by the test"))];
    let config = Bench::config();
    let engine = Engine::start(config, vec![Arc::clone(&model)], devices, Arc::new(super::super::clock::SystemClock));
    let engine = engine.expect("threads start");
    let lane = engine.lane(&model);
    while engine.shared.state.lock().tasks.is_some() {
        thread::yield_now();
    }
    assert!(lane.try_admit(4).is_ok());
    engine.stop();
}

#[test]
fn a_busy_stream_does_not_hold_up_a_quiet_one() {
    let model = served("m", 2);
    let bench = Bench::sound(&[Arc::clone(&model)]);
    let (busy, quiet) = (bench.lane(&model), bench.lane(&model));
    bench.submit(&busy, 1);
    assert_eq!(bench.began(), [1]);
    for number in 2..=5 {
        bench.submit(&busy, number);
    }
    bench.submit(&quiet, 100);
    settle(&bench);
    bench.go();
    // 2 and 3 were prepared ahead before the quiet stream had a frame; then it is the quiet stream's turn.
    assert_eq!(bench.began(), [2, 3]);
    settle(&bench);
    bench.go();
    assert!(bench.began().contains(&100));
    bench.go();
    assert_eq!(bench.began().len(), 1);
    bench.go();
    assert_eq!(endings(&bench, 6).len(), 6);
    bench.engine.stop();
}

#[test]
fn a_batch_is_never_larger_than_the_model_takes() {
    let model = served("m", 2);
    let bench = Bench::sound(&[Arc::clone(&model)]);
    let stream = bench.lane(&model);
    for number in 1..=6 {
        bench.submit(&stream, number);
    }
    let mut rows = 0;
    while rows < 6 {
        let batch = bench.began();
        assert!(batch.len() <= 2, "{batch:?}");
        rows += batch.len();
        settle(&bench);
        bench.go();
    }
    bench.engine.stop();
}

#[test]
fn frames_of_another_method_size_or_model_run_apart() {
    let (one, other) = (served("one", 8), served("other", 8));
    let bench = Bench::sound(&[Arc::clone(&one), Arc::clone(&other)]);
    let guided = Method { maps: MapSet::of(&[MapKind::GuidedBackprop]), ..Method::default() };
    bench.submit(&bench.lane(&one), 1);
    assert_eq!(bench.began(), [1]);
    bench.submit(&bench.lane(&one), 2);
    bench.submit_with(&bench.lane(&one), 3, |job| job.method = guided);
    bench.submit_with(&bench.lane(&one), 4, |job| job.payload = pixels(4, [1, 2, 2]));
    bench.submit(&bench.lane(&other), 5);
    bench.submit(&bench.lane(&one), 6);
    let mut batches = Vec::new();
    for _ in 0..4 {
        settle(&bench);
        bench.go();
        batches.push(bench.began());
    }
    bench.go();
    batches.sort();
    assert_eq!(batches, [vec![2, 6], vec![3], vec![4], vec![5]]);
    assert_eq!(endings(&bench, 6).len(), 6);
    bench.engine.stop();
}

#[test]
fn a_waiting_frame_can_be_replaced_and_one_on_the_device_cannot() {
    let model = served("m", 8);
    let bench = Bench::sound(&[Arc::clone(&model)]);
    let stream = bench.lane(&model);
    let running = bench.submit(&stream, 1);
    assert_eq!(bench.began(), [1]);
    let waiting = bench.submit(&stream, 2);
    settle(&bench);
    assert!(!bench.engine.withdraw(&running));
    assert!(bench.engine.withdraw(&waiting) && !bench.engine.withdraw(&waiting));
    bench.submit(&stream, 3);
    settle(&bench);
    bench.go();
    assert_eq!(bench.began(), [3]);
    bench.go();
    assert_eq!(endings(&bench, 2), [(1, true), (3, true)]);
    bench.engine.stop();
    assert!(bench.nothing_ended(), "whoever replaced the frame says so; the engine does not");
}

#[test]
fn a_batch_whose_frames_are_all_cancelled_is_interrupted() {
    let model = served("m", 8);
    let interrupted = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&interrupted);
    let bench = Bench::new(
        &[Arc::clone(&model)],
        Box::new(move |rows, interrupt| {
            if rows == [1.0] {
                seen.store(interrupt.stop(), Ordering::SeqCst);
                return Err(ExplainError::Plan(PlanError::Interrupted));
            }
            Ok(())
        }),
    );
    let stream = bench.lane(&model);
    let cancelled = bench.submit(&stream, 1);
    assert_eq!(bench.began(), [1]);
    assert!(bench.engine.cancel(&cancelled));
    bench.submit(&stream, 2);
    bench.go();
    assert_eq!(bench.began(), [2]);
    bench.go();
    assert_eq!(endings(&bench, 1), [(2, true)]);
    assert!(interrupted.load(Ordering::SeqCst));
    bench.engine.stop();
    assert!(bench.nothing_ended());
}

/// Lets `first` run alone and gathers `others` behind it; they then run as one batch.
fn as_one_batch(bench: &Bench, model: &Arc<Served>, others: &[u32]) {
    bench.submit(&bench.lane(model), 1000);
    assert_eq!(bench.began(), [1000]);
    for number in others {
        bench.submit(&bench.lane(model), *number);
    }
    settle(bench);
    bench.go();
    assert_eq!(bench.ended().0, 1000);
    assert_eq!(bench.began(), others);
}

#[test]
fn out_of_memory_halves_the_batch_once() {
    let model = served("m", 8);
    // What has more than two rows, or row 4, does not fit.
    let behaviour = |rows: &[f32], _: &dyn crate::plan::Interrupt| {
        if rows.len() > 2 || rows.contains(&4.0) { Err(out_of_memory()) } else { Ok(()) }
    };
    let bench = Bench::new(&[Arc::clone(&model)], Box::new(behaviour));
    as_one_batch(&bench, &model, &[1, 2, 3, 4]);
    bench.go();
    assert_eq!(bench.began(), [1, 2]);
    bench.go();
    assert_eq!(bench.began(), [3, 4]);
    bench.go();
    for _ in 0..4 {
        let (number, outcome) = bench.ended();
        match number {
            1 | 2 => assert_eq!(outcome.expect("it fits").batch_size, 2),
            _ => assert!(matches!(outcome, Err(JobError::OutOfMemory))),
        }
    }
    bench.engine.stop();
}

#[test]
fn a_panic_costs_the_frame_that_causes_it_and_no_other() {
    let model = served("m", 8);
    let behaviour = |rows: &[f32], _: &dyn crate::plan::Interrupt| {
        assert!(!rows.contains(&2.0), "expected by the test");
        Ok(())
    };
    let bench = Bench::new(&[Arc::clone(&model)], Box::new(behaviour));
    as_one_batch(&bench, &model, &[1, 2, 3]);
    bench.go();
    for alone in [1, 2, 3] {
        assert_eq!(bench.began(), [alone]);
        bench.go();
    }
    let mut outcomes: Vec<_> = (0..3).map(|_| bench.ended()).collect();
    outcomes.sort_by_key(|(number, _)| *number);
    assert!(outcomes[0].1.is_ok() && outcomes[2].1.is_ok());
    assert!(matches!(outcomes[1].1, Err(JobError::Broken)));
    bench.engine.stop();
}

#[test]
fn what_is_wrong_with_a_method_is_wrong_for_each_frame_of_the_batch() {
    let model = served("m", 8);
    let bench = Bench::new(&[Arc::clone(&model)], Box::new(|_, _| Err(ExplainError::NotFinite)));
    bench.submit(&bench.lane(&model), 1);
    bench.began();
    bench.go();
    assert!(matches!(bench.ended().1, Err(JobError::Batch(error)) if matches!(*error, ExplainError::NotFinite)));
    bench.engine.stop();
}

#[test]
fn a_frame_that_cannot_be_read_ends_without_the_device() {
    let model = served("m", 8);
    let bench = Bench::sound(&[Arc::clone(&model)]);
    bench.submit_with(&bench.lane(&model), 1, |job| job.payload = pixels(1, [2, 1, 1]));
    assert!(matches!(bench.ended(), (1, Err(JobError::Frame(_)))));
    bench.engine.stop();
}

#[test]
fn stopping_ends_what_waits_and_finishes_what_runs() {
    let model = served("m", 1);
    let bench = Bench::sound(&[Arc::clone(&model)]);
    let stream = bench.lane(&model);
    for number in 1..=3 {
        bench.submit(&stream, number);
    }
    assert_eq!(bench.began(), [1]);
    settle(&bench);
    thread::scope(|scope| {
        let stopping = scope.spawn(|| bench.engine.stop());
        assert!((0..2).map(|_| bench.ended()).all(|(_, outcome)| matches!(outcome, Err(JobError::Stopped))));
        bench.go();
        assert_eq!(endings(&bench, 1), [(1, true)]);
        stopping.join().expect("it stops");
    });
    bench.submit(&stream, 4);
    assert!(matches!(bench.ended(), (4, Err(JobError::Stopped))), "a frame that comes too late is told so");
}

#[test]
fn an_answer_tells_every_stage_in_order_and_gives_its_room_back() {
    let model = served("m", 8);
    let bench = Bench::sound(&[Arc::clone(&model)]);
    bench.submit(&bench.lane(&model), 1);
    bench.began();
    bench.go();
    let answer = bench.ended().1.expect("an answer");
    let stages: Vec<Stage> = answer.timings.stages().iter().map(|timing| timing.stage).collect();
    let expected =
        [Stage::Receive, Stage::Queue, Stage::Decode, Stage::Preprocess, Stage::Batch, Stage::Forward, Stage::Render];
    assert_eq!(stages, expected);
    let lane = bench.lane(&model);
    let _all_of_it: Vec<_> = (0..100).map(|_| lane.try_admit(4).expect("there is room")).collect();
    assert!(lane.try_admit(1).is_err());
    bench.engine.stop();
}

/// Runs as [`FakeDevice`] does, and tunes until the test has had enough: each time until it is interrupted.
struct Tunable {
    device: FakeDevice,
    tunes: mpsc::Receiver<()>,
    tuned: mpsc::Sender<bool>,
    is_untuned: Arc<AtomicBool>,
}

impl Device for Tunable {
    fn is_untuned(&self) -> bool {
        self.is_untuned.load(Ordering::Relaxed)
    }

    fn tune(&mut self, _: Duration, interrupt: &dyn Interrupt) {
        if self.tunes.recv().is_err() {
            self.is_untuned.store(false, Ordering::Relaxed);
            return;
        }
        let since = Instant::now();
        while !interrupt.stop() && since.elapsed() < Duration::from_secs(60) {
            thread::yield_now();
        }
        self.tuned.send(interrupt.stop()).expect("the test listens");
    }

    fn run(
        &mut self,
        batch: &Batch<'_>,
        interrupt: &dyn Interrupt,
        ended: &mut dyn FnMut(Stage),
    ) -> Result<Vec<RowResult>, ExplainError> {
        self.device.run(batch, interrupt, ended)
    }
}

/// An engine with such a device; when to tune, whether each time was interrupted, and whether it is untuned.
fn tunable(model: &Arc<Served>) -> (Bench, mpsc::Sender<()>, mpsc::Receiver<bool>, Arc<AtomicBool>) {
    let ((go, wait), (began_sender, began)) = (mpsc::channel(), mpsc::channel());
    let ((tune, tunes), (tuned_sender, tuned)) = (mpsc::channel(), mpsc::channel());
    let is_untuned = Arc::new(AtomicBool::new(true));
    let device = FakeDevice::new(wait, began_sender, Box::new(|_, _| Ok(())));
    let device = Tunable { device, tunes, tuned: tuned_sender, is_untuned: Arc::clone(&is_untuned) };
    (Bench::over(&[Arc::clone(model)], vec![move || device], go, began), tune, tuned, is_untuned)
}

#[test]
fn a_device_is_tuned_while_no_frame_waits_and_a_frame_interrupts_it() {
    let model = served("m", 1);
    let (bench, tune, tuned, _) = tunable(&model);
    let lane = bench.lane(&model);
    // Not before the engine may.
    tune.send(()).unwrap();
    thread::sleep(3 * QUIET);
    bench.submit(&lane, 1);
    assert_eq!(bench.began(), [1]);
    bench.go();
    assert_eq!(bench.ended().0, 1);
    bench.engine.tune();
    thread::sleep(3 * QUIET);
    assert!(tuned.try_recv().is_err(), "nothing interrupts it while there is nothing to do");
    bench.submit(&lane, 2);
    assert_eq!(tuned.recv(), Ok(true));
    assert_eq!(bench.began(), [2]);
    bench.go();
    assert_eq!(bench.ended().0, 2);
    // So does the engine's end.
    tune.send(()).unwrap();
    thread::sleep(3 * QUIET);
    drop(tune);
    bench.engine.stop();
    assert!(tuned.try_iter().all(|is_interrupted| is_interrupted));
}

#[test]
fn a_device_that_always_has_frames_is_tuned_between_them() {
    let model = served("m", 1);
    let (bench, tune, _tuned, is_untuned) = tunable(&model);
    // It tunes in no time.
    drop(tune);
    let lane = bench.lane(&model);
    (0..40).for_each(|number| drop(bench.submit(&lane, number)));
    bench.began();
    bench.engine.tune();
    assert!(is_untuned.load(Ordering::Relaxed));
    (0..39).for_each(|_| bench.go());
    (0..39).for_each(|_| drop(bench.began()));
    assert!(!is_untuned.load(Ordering::Relaxed));
    bench.go();
    (0..40).for_each(|_| drop(bench.ended()));
    bench.engine.stop();
}
