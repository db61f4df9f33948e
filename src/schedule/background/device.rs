//! A device on a thread of the idle class.

use std::borrow::Cow;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use super::enter_idle_class;
use crate::explain::{ExplainError, Method, Target};
use crate::plan::Interrupt;
use crate::schedule::device::{Batch, Device, RowResult};
use crate::schedule::model_key::ModelKey;
use crate::schedule::row_input::RowInput;
use crate::schedule::served::Served;
use crate::telemetry::Stage;

/// How often a running batch is asked for whether anybody still waits for it.
const INTERRUPT_INTERVAL: Duration = Duration::from_millis(10);

/// Runs another device's batches on a thread of the idle class, while the worker's thread waits.
pub struct BackgroundDevice {
    jobs: Sender<Job>,
    is_untuned: Arc<AtomicBool>,
}

enum Job {
    Load(Arc<Served>, Sender<thread::Result<Result<(), ExplainError>>>),
    Unload(ModelKey),
    Tune(Duration, Arc<AtomicBool>, Sender<thread::Result<()>>),
    Run(OwnedBatch, Arc<AtomicBool>, Sender<Event>),
}

enum Event {
    Ended(Stage),
    Done(thread::Result<Result<Vec<RowResult>, ExplainError>>),
}

/// A [`Batch`] that can be sent to another thread.
struct OwnedBatch {
    model: ModelKey,
    method: Method,
    shape: [u32; 3],
    inputs: Vec<Vec<f32>>,
    targets: Vec<Vec<Target>>,
}

impl OwnedBatch {
    fn of(batch: &Batch<'_>) -> Self {
        OwnedBatch {
            model: batch.model,
            method: batch.method.clone(),
            shape: batch.shape,
            inputs: batch.values().into_iter().map(Cow::into_owned).collect(),
            targets: batch.targets.iter().map(|targets| targets.to_vec()).collect(),
        }
    }

    fn borrowed(&self) -> Batch<'_> {
        Batch {
            model: self.model,
            method: &self.method,
            shape: self.shape,
            inputs: self.inputs.iter().map(|values| RowInput::Values(values)).collect(),
            targets: self.targets.iter().map(Vec::as_slice).collect(),
        }
    }
}

impl BackgroundDevice {
    /// Starts the thread, which makes the device. It ends when this is dropped.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start<D: Device>(device: impl FnOnce() -> D + Send + 'static) -> io::Result<Self> {
        let (jobs, received) = mpsc::channel();
        let is_untuned = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&is_untuned);
        thread::Builder::new().name("camlens-idle-device".to_owned()).spawn(move || {
            enter_idle_class();
            work(device(), &received, &told);
        })?;
        Ok(BackgroundDevice { jobs, is_untuned })
    }

    /// Hands a job to the thread. It lives as long as `jobs` does: it catches panics.
    fn send(&self, job: Job) {
        if let Err(lost) = self.jobs.send(job) {
            resume_unwind(Box::new(lost.to_string()));
        }
    }
}

fn work(mut device: impl Device, jobs: &Receiver<Job>, is_untuned: &AtomicBool) {
    // Before a reply: the worker asks after it.
    let tell = |device: &dyn Device| is_untuned.store(device.is_untuned(), Ordering::Release);
    // A receiver that is gone does not wait for a result.
    for job in jobs {
        match job {
            Job::Load(model, reply) => {
                let loaded = catch_unwind(AssertUnwindSafe(|| device.load(&model)));
                tell(&device);
                let _ = reply.send(loaded);
            }
            Job::Unload(model) => {
                let _ = catch_unwind(AssertUnwindSafe(|| device.unload(model)));
                tell(&device);
            }
            Job::Tune(time, is_interrupted, reply) => {
                let interrupt = || is_interrupted.load(Ordering::Relaxed);
                let tuned = catch_unwind(AssertUnwindSafe(|| device.tune(time, &interrupt)));
                tell(&device);
                let _ = reply.send(tuned);
            }
            Job::Run(batch, is_unwanted, events) => {
                let interrupt = || is_unwanted.load(Ordering::Relaxed);
                let mut ended = |stage| {
                    let _ = events.send(Event::Ended(stage));
                };
                let result = catch_unwind(AssertUnwindSafe(|| device.run(&batch.borrowed(), &interrupt, &mut ended)));
                drop(batch);
                tell(&device);
                let _ = events.send(Event::Done(result));
            }
        }
    }
}

impl Device for BackgroundDevice {
    fn load(&mut self, model: &Arc<Served>) -> Result<(), ExplainError> {
        let (reply, result) = mpsc::channel();
        self.send(Job::Load(Arc::clone(model), reply));
        result.recv().unwrap_or_else(|lost| Err(Box::new(lost))).unwrap_or_else(|panic| resume_unwind(panic))
    }

    fn unload(&mut self, model: ModelKey) {
        self.send(Job::Unload(model));
    }

    fn is_untuned(&self) -> bool {
        self.is_untuned.load(Ordering::Acquire)
    }

    fn tune(&mut self, time: Duration, interrupt: &dyn Interrupt) {
        let (reply, result) = mpsc::channel();
        let is_interrupted = Arc::new(AtomicBool::new(interrupt.stop()));
        self.send(Job::Tune(time, Arc::clone(&is_interrupted), reply));
        loop {
            match result.recv_timeout(INTERRUPT_INTERVAL) {
                Ok(tuned) => return tuned.unwrap_or_else(|panic| resume_unwind(panic)),
                Err(RecvTimeoutError::Timeout) => is_interrupted.store(interrupt.stop(), Ordering::Relaxed),
                Err(lost @ RecvTimeoutError::Disconnected) => resume_unwind(Box::new(lost)),
            }
        }
    }

    fn run(
        &mut self,
        batch: &Batch<'_>,
        interrupt: &dyn Interrupt,
        ended: &mut dyn FnMut(Stage),
    ) -> Result<Vec<RowResult>, ExplainError> {
        let (sent, events) = mpsc::channel();
        let is_unwanted = Arc::new(AtomicBool::new(interrupt.stop()));
        self.send(Job::Run(OwnedBatch::of(batch), Arc::clone(&is_unwanted), sent));
        loop {
            match events.recv_timeout(INTERRUPT_INTERVAL) {
                Ok(Event::Ended(stage)) => {
                    ended(stage);
                    // The end of a stage may end frames: the device asks next.
                    is_unwanted.store(interrupt.stop(), Ordering::Relaxed);
                }
                Ok(Event::Done(result)) => return result.unwrap_or_else(|panic| resume_unwind(panic)),
                Err(RecvTimeoutError::Timeout) => is_unwanted.store(interrupt.stop(), Ordering::Relaxed),
                Err(lost @ RecvTimeoutError::Disconnected) => resume_unwind(Box::new(lost)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{IDLE, policy};
    use super::*;
    use crate::plan::Never;
    use crate::schedule::fake::served;

    /// Does what the first number of a batch says.
    struct Obedient;

    const WAIT_FOR_INTERRUPT: f32 = 1.0;
    const PANIC: f32 = 2.0;

    impl Device for Obedient {
        fn run(
            &mut self,
            batch: &Batch<'_>,
            interrupt: &dyn Interrupt,
            ended: &mut dyn FnMut(Stage),
        ) -> Result<Vec<RowResult>, ExplainError> {
            assert_eq!(policy(), IDLE);
            ended(Stage::Forward);
            match batch.values()[0][0] {
                PANIC => panic!("expected by the test"),
                WAIT_FOR_INTERRUPT => {
                    while !interrupt.stop() {
                        thread::sleep(Duration::from_millis(1));
                    }
                }
                _ => {}
            }
            Ok(batch.inputs.iter().map(|_| Ok(Default::default())).collect())
        }
    }

    fn run(
        device: &mut BackgroundDevice,
        first: f32,
        interrupt: &dyn Interrupt,
    ) -> (Vec<Stage>, Result<Vec<RowResult>, ExplainError>) {
        let model = served("one", 1);
        let (method, input) = (Method::default(), [first, 0.0]);
        let batch = Batch {
            model: model.key(),
            method: &method,
            shape: [1, 1, 2],
            inputs: vec![RowInput::Values(&input); 2],
            targets: vec![&[], &[]],
        };
        let mut stages = Vec::new();
        let result = device.run(&batch, interrupt, &mut |stage| stages.push(stage));
        (stages, result)
    }

    #[test]
    fn a_batch_runs_in_the_idle_class_and_its_stages_end_on_the_workers_thread() {
        let mut device = BackgroundDevice::start(|| Obedient).unwrap();
        let before = policy();
        let (stages, result) = run(&mut device, 0.0, &Never);
        assert_eq!((stages, result.unwrap().len(), policy()), (vec![Stage::Forward], 2, before));
    }

    #[test]
    fn a_batch_that_nobody_waits_for_any_more_is_told_so() {
        let mut device = BackgroundDevice::start(|| Obedient).unwrap();
        let since = std::time::Instant::now();
        let (_, result) = run(&mut device, WAIT_FOR_INTERRUPT, &|| since.elapsed() > Duration::from_millis(30));
        assert!(result.is_ok());
    }

    #[test]
    fn a_panic_is_the_workers_and_the_device_runs_other_batches() {
        let mut device = BackgroundDevice::start(|| Obedient).unwrap();
        let panic = catch_unwind(AssertUnwindSafe(|| run(&mut device, PANIC, &Never))).map(|_| ()).unwrap_err();
        assert_eq!(panic.downcast_ref(), Some(&"expected by the test"));
        assert!(run(&mut device, 0.0, &Never).1.is_ok());
    }
}
