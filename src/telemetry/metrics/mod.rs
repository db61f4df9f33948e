//! Metrics: counts and measurements over all frames.
//!
//! The labels are the models that are served and words of this program, never what a client sends: their number is
//! bounded. What happens to frames is recorded as they end; what only has to be read (queues, memory, …) is read when
//! somebody asks.

pub mod catalogue;
mod page;
mod process;

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use opentelemetry::KeyValue;
use opentelemetry::metrics::{BoundCounter, BoundHistogram, Histogram, Meter, MeterProvider};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::reader::MetricReader;
use opentelemetry_sdk::metrics::{InstrumentKind, ManualReader, Pipeline, SdkMeterProvider, Temporality};
use parking_lot::Mutex;

use self::catalogue::{Kind, MODEL_NAME, MODEL_VERSION, Metric};
use super::record::outcome::{Agreement, FrameOutcome};
use super::stage::{Stage, Timings};

pub use page::{Page, PageError};

/// A value that is read when somebody asks: called with what to do with each value and its attributes.
pub type Reading = dyn Fn(&mut dyn FnMut(f64, &[KeyValue])) + Send + Sync;

/// Frames that claim to be older are not live ones.
const LONGEST_AGE: Duration = Duration::from_secs(3600);

/// The instruments of one process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    provider: SdkMeterProvider,
    meter: Meter,
    models: Mutex<HashMap<(String, i64), Arc<ModelInstruments>>>,
    calls: Histogram<f64>,
    page: Option<Page>,
}

impl Metrics {
    /// `with_page`: there will be somebody to read the Prometheus page. `reader`: for whoever pushes.
    ///
    /// # Errors
    /// When the page cannot be set up.
    pub fn new(resource: Resource, with_page: bool, reader: Option<Arc<ManualReader>>) -> Result<Self, PageError> {
        let mut builder = SdkMeterProvider::builder().with_resource(resource);
        let mut page = None;
        if with_page {
            let (ready, exporter) = Page::new()?;
            builder = builder.with_reader(exporter);
            page = Some(ready);
        }
        if let Some(reader) = reader {
            builder = builder.with_reader(Shared(reader));
        }
        let provider = builder.build();
        let meter = provider.meter("camlens");
        let calls = histogram(&meter, &catalogue::CALL_DURATION);
        let metrics = Metrics(Arc::new(Inner { provider, meter, models: Mutex::default(), calls, page }));
        process::observe(&metrics);
        Ok(metrics)
    }

    /// The Prometheus page, when there is one.
    pub fn page(&self) -> Option<&Page> {
        self.0.page.as_ref()
    }

    /// The instruments for the frames of a model.
    pub fn model(&self, name: &str, version: i64) -> Arc<ModelInstruments> {
        let mut models = self.0.models.lock();
        let instruments = models
            .entry((name.to_owned(), version))
            .or_insert_with(|| Arc::new(ModelInstruments::new(&self.0.meter, name, version)));
        Arc::clone(instruments)
    }

    /// A call has ended. `method` and `status` must be words of a bounded number.
    pub fn call(&self, method: &'static str, status: &'static str, lasted: Duration) {
        let attributes = [
            KeyValue::new("rpc.system.name", "grpc"),
            KeyValue::new("rpc.method", method),
            KeyValue::new("rpc.response.status_code", status),
        ];
        self.0.calls.record(lasted.as_secs_f64(), &attributes);
    }

    /// Reads a metric whenever somebody asks for it.
    pub fn observe(&self, metric: &'static Metric, read: Box<Reading>) {
        let Metric { name, unit, description, .. } = *metric;
        let meter = &self.0.meter;
        match metric.kind {
            Kind::Counter => {
                let builder = meter.f64_observable_counter(name).with_unit(unit).with_description(description);
                builder.with_callback(move |observer| read(&mut |value, with| observer.observe(value, with))).build();
            }
            Kind::UpDownCounter => {
                let builder = meter.f64_observable_up_down_counter(name).with_unit(unit).with_description(description);
                builder.with_callback(move |observer| read(&mut |value, with| observer.observe(value, with))).build();
            }
            // Of values that are read there is no history to put into buckets.
            Kind::Histogram(_) => {}
        }
    }

    /// Reads nothing any more, so that what the readings hold can go.
    pub fn shutdown(&self) {
        if let Err(error) = self.0.provider.shutdown() {
            tracing::debug!(%error, "metrics did not shut down");
        }
    }
}

/// One reader, shared by the provider that fills it and the collector that reads it.
#[derive(Debug)]
struct Shared(Arc<ManualReader>);

impl MetricReader for Shared {
    fn register_pipeline(&self, pipeline: Weak<Pipeline>) {
        self.0.register_pipeline(pipeline);
    }

    fn collect(&self, metrics: &mut ResourceMetrics) -> OTelSdkResult {
        self.0.collect(metrics)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn temporality(&self, kind: InstrumentKind) -> Temporality {
        self.0.temporality(kind)
    }
}

/// The instruments for the frames of one model, each bound to its attributes.
#[derive(Debug)]
pub struct ModelInstruments {
    answered: Ended,
    cancelled: Ended,
    dropped: Ended,
    /// By reason.
    drops: Bindings<BoundCounter<u64>>,
    /// By code.
    failed: Bindings<BoundCounter<u64>>,
    failed_duration: BoundHistogram<f64>,
    age: BoundHistogram<f64>,
    stages: [BoundHistogram<f64>; Stage::ALL.len()],
    payload: BoundCounter<u64>,
    batch_size: BoundHistogram<f64>,
    agrees: BoundCounter<u64>,
    disagrees: BoundCounter<u64>,
}

/// Count and duration of the frames that end in one way.
#[derive(Debug)]
struct Ended {
    count: BoundCounter<u64>,
    duration: BoundHistogram<f64>,
}

impl ModelInstruments {
    fn new(meter: &Meter, name: &str, version: i64) -> Self {
        let own = [KeyValue::new(MODEL_NAME, name.to_owned()), KeyValue::new(MODEL_VERSION, version)];
        let with = |more: &[KeyValue]| [&own[..], more].concat();
        let agreement = counter(meter, &catalogue::PREDICTION_AGREEMENT);
        let agreed = |word: Agreement| agreement.bind(&with(&[KeyValue::new("camlens.agreement", word.name())]));
        let outcome = |name: &'static str| KeyValue::new("camlens.outcome", name);
        let (ended, dropped) = (counter(meter, &catalogue::FRAME_ENDED), counter(meter, &catalogue::FRAME_DROPPED));
        let (duration, stages) =
            (histogram(meter, &catalogue::FRAME_DURATION), histogram(meter, &catalogue::STAGE_DURATION));
        let ended_as = |name| {
            let attributes = with(&[outcome(name)]);
            Ended { count: ended.bind(&attributes), duration: duration.bind(&attributes) }
        };
        ModelInstruments {
            answered: ended_as("answered"),
            cancelled: ended_as("cancelled"),
            dropped: ended_as("dropped"),
            age: histogram(meter, &catalogue::FRAME_AGE).bind(&own),
            failed_duration: duration.bind(&with(&[outcome("failed")])),
            drops: Bindings::new({
                let own = own.clone();
                move |reason| dropped.bind(&[&own[..], &[KeyValue::new("camlens.drop.reason", reason)]].concat())
            }),
            failed: Bindings::new({
                let (own, ended) = (with(&[outcome("failed")]), ended.clone());
                move |code| ended.bind(&[&own[..], &[KeyValue::new("error.type", code)]].concat())
            }),
            stages: Stage::ALL.map(|stage| stages.bind(&with(&[KeyValue::new("camlens.stage", stage.name())]))),
            payload: counter(meter, &catalogue::PAYLOAD_SIZE).bind(&own),
            batch_size: histogram(meter, &catalogue::BATCH_SIZE).bind(&own),
            agrees: agreed(Agreement::Agrees),
            disagrees: agreed(Agreement::Disagrees),
        }
    }

    pub(super) fn frame(&self, outcome: &FrameOutcome, timings: &Timings, payload_bytes: u64) {
        for timing in timings.stages() {
            self.stages[timing.stage as usize].record(timing.duration.as_secs_f64());
        }
        let duration = match outcome {
            FrameOutcome::Answered => self.answered.count(),
            FrameOutcome::Cancelled => self.cancelled.count(),
            FrameOutcome::Dropped { reason, .. } => {
                self.drops.with(reason, |drops| drops.add(1));
                self.dropped.count()
            }
            FrameOutcome::Failed { .. } => {
                self.failed.with(outcome.status(), |failed| failed.add(1));
                &self.failed_duration
            }
        };
        duration.record(timings.total().as_secs_f64());
        self.payload.add(payload_bytes);
    }

    /// `captured_at` is the client's word.
    pub(super) fn age(&self, captured_at: SystemTime) {
        // A time that is not plausible comes from another clock or another day.
        if let Ok(age) = captured_at.elapsed()
            && age <= LONGEST_AGE
        {
            self.age.record(age.as_secs_f64());
        }
    }

    pub(super) fn agreement(&self, agreement: Agreement) {
        match agreement {
            Agreement::Agrees => self.agrees.add(1),
            Agreement::Disagrees => self.disagrees.add(1),
        }
    }

    pub(super) fn batch(&self, rows: u32) {
        self.batch_size.record(f64::from(rows));
    }
}

impl Ended {
    fn count(&self) -> &BoundHistogram<f64> {
        self.count.add(1);
        &self.duration
    }
}

/// An instrument bound to each of a few words, when the word first comes up.
struct Bindings<T> {
    bind: Box<dyn Fn(&'static str) -> T + Send + Sync>,
    known: Mutex<Vec<(&'static str, T)>>,
}

impl<T> Bindings<T> {
    fn new(bind: impl Fn(&'static str) -> T + Send + Sync + 'static) -> Self {
        Bindings { bind: Box::new(bind), known: Mutex::default() }
    }

    fn with(&self, word: &'static str, act: impl FnOnce(&T)) {
        let mut known = self.known.lock();
        let index = known.iter().position(|(name, _)| *name == word).unwrap_or_else(|| {
            known.push((word, (self.bind)(word)));
            known.len() - 1
        });
        act(&known[index].1);
    }
}

impl<T> std::fmt::Debug for Bindings<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Bindings")
    }
}

fn counter(meter: &Meter, metric: &'static Metric) -> opentelemetry::metrics::Counter<u64> {
    meter.u64_counter(metric.name).with_unit(metric.unit).with_description(metric.description).build()
}

fn histogram(meter: &Meter, metric: &'static Metric) -> Histogram<f64> {
    let builder = meter.f64_histogram(metric.name).with_unit(metric.unit).with_description(metric.description);
    match metric.kind {
        Kind::Histogram(bounds) => builder.with_boundaries(bounds.to_vec()).build(),
        Kind::Counter | Kind::UpDownCounter => builder.build(),
    }
}
