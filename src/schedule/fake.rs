//! A device and a model for tests: what runs when is the test's decision.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tch::Kind;

use super::clock::SystemClock;
use super::device::{AsyncDevice, Batch, Device, RowResult};
use super::engine::{Engine, EngineConfig, Handle};
use super::job::{Job, Outcome, Reply};
use super::lane::Lane;
use super::outputs::Outputs;
use super::served::{Served, ServedLimits};
use crate::explain::{ExplainError, HostMap, MapKind, Method, RowMaps, Target, TargetMaps};
use crate::frame::{Limits, Payload};
use crate::model::description::{ModelLimits, Precision, Preprocessing};
use crate::model::dimension::{Dimension, Sizes};
use crate::model::node::ValueId;
use crate::model::{Activation, Final, InputInfo, Metadata, Scores};
use crate::plan::{Interrupt, PlanError};
use crate::telemetry::{Progress, Stage};
use crate::torch::OperatorError;

/// `[N, 1, any, any]`.
pub(super) fn metadata(name: &str) -> Metadata {
    let any = |variable| Dimension::Dynamic { example: 2, sizes: Sizes::any(variable) };
    Metadata {
        name: name.to_owned(),
        version: 1,
        digest: String::new(),
        summary: String::new(),
        license: String::new(),
        input: InputInfo {
            name: "x".to_owned(),
            kind: Kind::Float,
            shape: [any(0), Dimension::Fixed(1), any(2), any(3)],
            channels_last: false,
        },
        outputs: Vec::new(),
        scores: Scores {
            output: "y".to_owned(),
            logits: ValueId(0),
            last: Final::Logits,
            activation: Activation::Softmax,
            activation_is_known: false,
            class_count: Some(3),
        },
        labels: Vec::new(),
        layers: Vec::new(),
        layer_values: BTreeMap::new(),
        default_target_layers: Vec::new(),
        default_target_problem: None,
        unguided_gates: Vec::new(),
        rectifiers: 1,
        smooth_activations: 0,
        guide_smooth_activations: false,
        precision: Precision::Float32,
        narrow_kinds: Vec::new(),
        preprocessing: Preprocessing::default(),
        limits: ModelLimits::default(),
        max_rows: None,
        notices: Vec::new(),
        node_count: 0,
        parameter_count: 0,
        constant_bytes: 0,
    }
}

pub(crate) fn served(name: &str, max_batch: u32) -> Arc<Served> {
    Arc::new(unregistered(name, max_batch))
}

/// A model that some workers run.
pub(super) fn bound(name: &str, max_batch: u32, workers: &[usize]) -> Arc<Served> {
    Arc::new(unregistered(name, max_batch).on_workers(workers.to_vec()))
}

fn unregistered(name: &str, max_batch: u32) -> Served {
    let limits = ServedLimits { max_batch, max_targets: 4, frame: Limits::default() };
    Served::new(Arc::new(metadata(name)), limits, tch::Device::Cpu).expect("a model that takes tensors")
}

/// What a batch does: given the first value of each of its rows.
pub(super) type Behaviour = Box<dyn FnMut(&[f32], &dyn Interrupt) -> Result<(), ExplainError> + Send>;

/// Runs a batch each time that the test says so, and writes down which.
pub(super) struct FakeDevice {
    go: Arc<Mutex<Receiver<()>>>,
    began: Sender<Vec<f32>>,
    behaviour: Behaviour,
}

impl FakeDevice {
    pub(super) fn new(go: Receiver<()>, began: Sender<Vec<f32>>, behaviour: Behaviour) -> Self {
        FakeDevice { go: Arc::new(Mutex::new(go)), began, behaviour }
    }
}

impl Device for FakeDevice {
    fn run(
        &mut self,
        batch: &Batch<'_>,
        interrupt: &dyn Interrupt,
        ended: &mut dyn FnMut(Stage),
    ) -> Result<Vec<RowResult>, ExplainError> {
        let first: Vec<f32> = batch.values().iter().map(|row| row[0]).collect();
        self.began.send(first.clone()).expect("the test listens");
        self.go.lock().expect("a test that goes on").recv().expect("the test says when");
        ended(Stage::Forward);
        (self.behaviour)(&first, interrupt)?;
        let row = |value: f32| {
            let map = HostMap { values: vec![value], shape: vec![1, 1, 1] };
            let maps = [(MapKind::GuidedBackprop, map)].into_iter().collect();
            let target = TargetMaps { score: value, maps, ..TargetMaps::default() };
            Ok(RowMaps { logits: vec![value, 0.0, 0.0], targets: vec![target] })
        };
        Ok(first.into_iter().map(row).collect())
    }
}

/// A tensor whose values are all the frame's number.
pub(super) fn pixels(number: u32, shape: [u32; 3]) -> Payload {
    let pixels = (shape[1] * shape[2]) as usize;
    let data: Vec<u8> = std::iter::repeat_n((number as f32).to_le_bytes(), pixels).flatten().collect();
    Payload::Tensor { data: data.into(), shape: shape.to_vec() }
}

/// An engine over a [`FakeDevice`], from the test's side.
pub(super) struct Bench {
    pub(super) engine: Engine,
    go: Sender<()>,
    began: Mutex<Receiver<Vec<f32>>>,
    outcomes: Sender<(u32, Outcome)>,
    ended: Mutex<Receiver<(u32, Outcome)>>,
}

impl Bench {
    pub(super) fn new(models: &[Arc<Served>], behaviour: Behaviour) -> Self {
        Self::of_workers(models, vec![behaviour])
    }

    pub(super) fn config() -> EngineConfig {
        EngineConfig {
            queued_frames: 100,
            queued_bytes: 1 << 20,
            model_queued_frames: 100,
            model_queued_bytes: 1 << 20,
            stream_queued_bytes: 1 << 20,
            max_batch_delay: Duration::ZERO,
            priority_ageing: Duration::from_secs(1),
            binds_models: false,
            frame_threads: 1,
            background: false,
        }
    }

    /// With a worker for each of them.
    pub(super) fn of_workers(models: &[Arc<Served>], behaviours: Vec<Behaviour>) -> Self {
        let (go, wait) = channel();
        let wait = Arc::new(Mutex::new(wait));
        let (began_sender, began) = channel();
        let devices = behaviours.into_iter().map(|behaviour| {
            let device = FakeDevice { go: Arc::clone(&wait), began: began_sender.clone(), behaviour };
            move || device
        });
        Self::over(models, devices.collect(), go, began)
    }

    /// With devices of the test's own, which wait for `go` and tell `began`.
    pub(super) fn over<D: AsyncDevice + 'static>(
        models: &[Arc<Served>],
        devices: Vec<impl FnOnce() -> D + Send + 'static>,
        go: Sender<()>,
        began: Receiver<Vec<f32>>,
    ) -> Self {
        let binds_models = models.iter().any(|model| !(0..devices.len()).all(|worker| model.runs_on(worker)));
        let config = EngineConfig { binds_models, ..Self::config() };
        let engine = Engine::start(config, models.to_vec(), devices, Arc::new(SystemClock)).expect("threads start");
        let (outcomes, ended) = channel();
        Bench { engine, go, began: Mutex::new(began), outcomes, ended: Mutex::new(ended) }
    }

    /// Every batch works.
    pub(super) fn sound(models: &[Arc<Served>]) -> Self {
        Self::new(models, Box::new(|_, _| Ok(())))
    }

    pub(super) fn lane(&self, model: &Arc<Served>) -> Lane {
        self.engine.lane(model)
    }

    /// Submits a frame of one pixel whose value is its number.
    pub(super) fn submit(&self, lane: &Lane, number: u32) -> Handle {
        self.submit_with(lane, number, |_| {})
    }

    /// Submits a frame of pixels whose value is its number, changed as the test needs it.
    pub(super) fn submit_with(&self, lane: &Lane, number: u32, change: impl FnOnce(&mut Job)) -> Handle {
        let outcomes = self.outcomes.clone();
        let mut job = Job {
            lane: lane.clone(),
            priority: 0,
            expires_at: None,
            method: Method::default(),
            targets: vec![Target::Top(1)],
            outputs: Outputs { top_predictions: 1, ..Outputs::default() },
            payload: pixels(number, [1, 1, 1]),
            progress: Progress::start(Instant::now()),
            admission: lane.try_admit(4).expect("there is room"),
            onlooker: None,
            reply: Reply::new(move |outcome| outcomes.send((number, outcome)).expect("the test listens")),
        };
        change(&mut job);
        self.engine.submit(job)
    }

    /// Waits until the device has begun a batch; gives its rows' numbers.
    pub(super) fn began(&self) -> Vec<u32> {
        let rows = self.began.lock().expect("one test").recv().expect("a batch begins");
        rows.into_iter().map(|value| value as u32).collect()
    }

    /// Lets the batch that has begun end.
    pub(super) fn go(&self) {
        self.go.send(()).expect("the device waits");
    }

    /// Waits for a frame to end.
    pub(super) fn ended(&self) -> (u32, Outcome) {
        self.ended.lock().expect("one test").recv().expect("a frame ends")
    }

    /// Whether no frame has ended that was not asked for yet.
    pub(super) fn nothing_ended(&self) -> bool {
        self.ended.lock().expect("one test").try_recv().is_err()
    }
}

pub(super) fn out_of_memory() -> ExplainError {
    ExplainError::Plan(PlanError::Operator(OperatorError::OutOfMemory {
        operator: "fake".to_owned(),
        message: "expected by the test".to_owned(),
    }))
}
