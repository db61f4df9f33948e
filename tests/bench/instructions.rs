//! The work on a frame besides the model, as cases whose instructions and allocations are counted.
//!
//! `tests/bench/instructions.py` runs this under callgrind and compares the counts with the committed ones. Counts,
//! unlike times, do not depend on the load of the machine.
#![allow(unsafe_code, reason = "an allocator that counts is `unsafe` to implement")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use camlens::frame::{AffineTransform, Channels, InputSize, Limits, Payload, PixelFormat, Pixels, Preparation, decode};
use camlens::model::description::{Preprocessing, Resize};
use camlens::render::{ColorMap, ElementType, Map, PictureFormat, ValueRange, WireTensor, encode, heat_map, overlay};
use camlens::stream::{Bounds, Message, Overflow, Policy, Session};
use camlens::telemetry::{FrameOutcome, FrameRecord, Progress, Source, Stage, Telemetry, TelemetryConfig};

const SIDE: u32 = 224;

fn main() {
    // One-time set-up is not counted: each case runs once before it is measured.
    let square = Frame::raw(SIDE, SIDE, Preprocessing::default());
    let steps =
        Preprocessing { resize: Some(Resize::Shorter(256)), crop: Some([SIDE, SIDE]), ..Preprocessing::default() };
    let large = Frame::raw(640, 480, steps.clone());
    let photograph = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/readme.jpg");
    let photograph = std::fs::read(photograph).expect("a fixture");
    let photograph = Frame::new(Payload::encoded(photograph), steps);
    let values: Vec<f32> = (0..3 * SIDE * SIDE).map(|at| ((at * 37 % 1_000) as f32 - 400.0) / 100.0).collect();
    let map = &values[..(SIDE * SIDE) as usize];
    let pixels = Pixels::upright(SIDE, SIDE, Channels::Rgb, bytes(SIDE * SIDE * 3));
    let unwatched = Watched::by(Telemetry::disabled());
    let measured = Watched::new(TelemetryConfig::default());
    // Nothing listens there: the work is counted up to the exporter's queue.
    let traced = Watched::new(TelemetryConfig {
        otlp_endpoint: Some("http://localhost:1".to_owned()),
        trace_ratio: Some(1.0),
        ..TelemetryConfig::default()
    });

    for counted in [false, true] {
        case(counted, ("prepare_as_it_is", prepare_as_it_is), || square.prepare());
        case(counted, ("prepare_resized", prepare_resized), || large.prepare());
        case(counted, ("prepare_photograph", prepare_photograph), || photograph.prepare());
        case(counted, ("tensor_f32", tensor_f32), || tensor(&values, ElementType::F32));
        case(counted, ("tensor_f16", tensor_f16), || tensor(&values, ElementType::F16));
        case(counted, ("tensor_u8", tensor_u8), || tensor(&values, ElementType::U8));
        case(counted, ("picture_heat_map", picture_heat_map), || {
            let map = Map::new(map, SIDE, SIDE).expect("a map");
            let picture = heat_map(&map, ValueRange::default(), ColorMap::default()).expect("a picture");
            encode(&picture, PictureFormat::Jpeg { quality: 90 }).expect("a file").len()
        });
        case(counted, ("picture_overlay", picture_overlay), || {
            let map = Map::new(map, SIDE, SIDE).expect("a map");
            let stays = AffineTransform::IDENTITY;
            overlay(&pixels, &map, &stays, ValueRange::default(), ColorMap::default(), 0.5)
                .expect("a picture")
                .data()
                .len()
        });
        case(counted, ("session_of_100_frames", session_of_100_frames), session);
        case(counted, ("frame_unwatched", frame_unwatched), || unwatched.end_a_frame());
        case(counted, ("frame_measured", frame_measured), || measured.end_a_frame());
        case(counted, ("frame_measured_and_traced", frame_measured_and_traced), || traced.end_a_frame());
    }
}

type Measure = fn(&dyn Fn() -> usize) -> usize;

/// A separate function, so that callgrind finds it by its name.
fn case(counted: bool, (name, measure): (&str, Measure), run: impl Fn() -> usize) {
    if counted {
        let before = ALLOCATIONS.get();
        measure(&run);
        let allocations = ALLOCATIONS.get() - before;
        println!("{name} {allocations}");
    } else {
        black_box(run());
    }
}

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator with a counter for each thread.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every method forwards to the system allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread may allocate after its counter has been dropped.
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(place, layout) }
    }
}

macro_rules! cases {
    ($($name:ident)*) => {
        $(
            #[inline(never)]
            fn $name(run: &dyn Fn() -> usize) -> usize {
                // Different code for each case, or the linker would merge them.
                black_box(stringify!($name)).len() + black_box(run())
            }
        )*
    };
}

cases! {
    prepare_as_it_is prepare_resized prepare_photograph
    tensor_f32 tensor_f16 tensor_u8 picture_heat_map picture_overlay
    session_of_100_frames frame_unwatched frame_measured frame_measured_and_traced
}

struct Frame {
    payload: Payload,
    preparation: Preparation,
}

impl Frame {
    fn new(payload: Payload, steps: Preprocessing) -> Self {
        let input = InputSize::new(3, Some(SIDE), Some(SIDE));
        let preparation = Preparation::new(&steps, input, &Limits::default()).expect("sound steps");
        Frame { payload, preparation }
    }

    fn raw(width: u32, height: u32, steps: Preprocessing) -> Self {
        let data: Bytes = bytes(width * height * 3).into();
        Frame::new(Payload::Raw { data, width, height, pixel_format: PixelFormat::Rgb8, stride_bytes: None }, steps)
    }

    fn prepare(&self) -> usize {
        let mut input = Vec::new();
        let decoded = decode(&self.payload, &Limits::default(), None).expect("a sound frame");
        self.preparation.prepare(&decoded, &mut input).expect("it fits");
        input.len()
    }
}

fn bytes(count: u32) -> Vec<u8> {
    (0..count).map(|at| (at * 7 % 256) as u8).collect()
}

fn tensor(values: &[f32], element_type: ElementType) -> usize {
    WireTensor::encode(values, &[3, SIDE, SIDE], element_type).expect("finite").data.len()
}

/// A hundred frames, each accepted, dispatched, answered and sent.
fn session() -> usize {
    let policy = Policy { overflow: Overflow::Latest, depth: 1, unordered: false, min_interval: None };
    let mut session = Session::<u64, ()>::new(policy, Bounds { max_in_flight: 4, max_unsent_bytes: 1 << 20 });
    let now = Instant::now();
    let mut sent = 0;
    for sequence in 0..100 {
        session.accept(sequence, now, None).expect("in order");
        while session.next_action().is_some() {}
        session.taken(sequence);
        session.answered(sequence, sequence, 100);
        while let Some(message) = session.next_message() {
            sent += usize::from(matches!(message, Message::Answer { .. }));
        }
    }
    sent
}

/// Telemetry with an open stream, to which frames are reported.
struct Watched {
    telemetry: Telemetry,
    source: Arc<Source>,
}

impl Watched {
    fn new(config: TelemetryConfig) -> Self {
        Watched::by(Telemetry::start(&config, true).expect("a sound configuration"))
    }

    fn by(telemetry: Telemetry) -> Self {
        let source = telemetry.call_source(("m", 1));
        Watched { telemetry, source }
    }

    /// Reports a frame that went through every stage.
    fn end_a_frame(&self) -> usize {
        let mut now = Instant::now();
        let progress = Progress::start(now);
        for stage in Stage::ALL {
            now += Duration::from_micros(100);
            progress.mark(stage, now);
        }
        let record = FrameRecord {
            trace: self.telemetry.place("", ""),
            source: Arc::clone(&self.source),
            sequence: 1,
            outcome: FrameOutcome::Answered,
            progress,
            accepted_at: SystemTime::UNIX_EPOCH,
            captured_at: None,
            payload_bytes: 100,
            policy: "latest",
            classes: vec![1],
            target_layers: Vec::new(),
            agreement: None,
            batch: None,
        };
        self.telemetry.frame(record, now);
        1
    }
}
