//! Cameras before one device, in simulated time: sessions, queue, preparation ahead, learned batch sizes, device.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::schedule::batching::Batching;
use crate::schedule::capacity::DeviceTimes;
use crate::schedule::capacity::dice::Dice;
use crate::schedule::queue::next_batch::{Prepared, Taken};
use crate::schedule::queue::ticket::{StreamKey, Ticket};
use crate::schedule::queue::turn::{Ready, Turn, Waiting};
use crate::schedule::queue::{Dispatch, Workers};
use crate::stream::{Accepted, Action, Bounds, Message, Overflow, Policy, Session};

/// The server's defaults.
const AGEING: Duration = Duration::from_secs(1);
const BOUNDS: Bounds = Bounds { max_in_flight: 16, max_unsent_bytes: 1 << 27 };
const LATEST: Policy = Policy { overflow: Overflow::Latest, depth: 1, unordered: false, min_interval: None };
/// Of a period: how much earlier or later a frame comes, and how much longer or shorter a camera's period is. Phases
/// then drift, as those of real cameras do.
const JITTER: f64 = 0.04;
const DRIFT: f64 = 0.004;
/// Decoding takes this share of the device's time for a frame, beside its work.
pub(super) const DECODING: f64 = 0.1;
/// Periods and full batches after which sizes are learned and queues have their usual lengths; the first and the last
/// frames do not count.
const SETTLING_PERIODS: f64 = 10.0;
const SETTLING_BATCHES: f64 = 80.0;

/// What cameras got from a device.
#[derive(Debug, Clone, Default)]
pub(super) struct Served {
    pub(super) sent: usize,
    /// Seconds from arrival to answer, of those that were answered.
    pub(super) latencies_s: Vec<f64>,
}

impl Served {
    /// The share of the frames that were answered.
    pub(super) fn answered(&self) -> f64 {
        self.latencies_s.len() as f64 / self.sent.max(1) as f64
    }

    /// The share of the frames that were answered within `seconds`.
    pub(super) fn within(&self, seconds: f64) -> f64 {
        self.latencies_s.iter().filter(|latency| **latency <= seconds).count() as f64 / self.sent.max(1) as f64
    }

    pub(super) fn add(&mut self, other: Served) {
        self.sent += other.sent;
        self.latencies_s.extend(other.latencies_s);
    }
}

/// A number around 0, `width` wide.
fn around(dice: &mut Dice, width: f64) -> f64 {
    width * (dice.roll() - 0.5)
}

#[derive(Debug, Clone)]
struct Row {
    turn: Turn,
    sequence: u64,
    batching: Rc<Batching>,
}

impl Waiting for Row {
    type Key = ();

    fn turn(&self) -> &Turn {
        &self.turn
    }

    fn turn_mut(&mut self) -> &mut Turn {
        &mut self.turn
    }

    fn key(&self) {}

    fn belongs_to(&self, (): &()) -> bool {
        true
    }

    fn max_batch(&self) -> usize {
        self.batching.rows()
    }

    fn runs_on(&self, _: usize) -> bool {
        true
    }
}

impl Ready for Row {
    fn turn(&self) -> &Turn {
        &self.turn
    }

    fn shape(&self) -> [u32; 3] {
        [3, 224, 224]
    }

    fn runs_on(&self, _: usize) -> bool {
        true
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Frame { camera: usize },
    Decoded { row: usize },
    BatchEnds,
}

struct Camera {
    session: Session<(), ()>,
    period_s: f64,
    /// The moment of its next frame, without its jitter.
    due_s: f64,
    sequence: u64,
    tickets: BTreeMap<u64, Ticket>,
    arrivals: BTreeMap<u64, Instant>,
}

/// A device with its cameras.
struct Pod {
    now: Instant,
    device: DeviceTimes,
    cameras: Vec<Camera>,
    dispatch: Dispatch<Row, Row>,
    batching: Rc<Batching>,
    decoding: BTreeMap<usize, Row>,
    running: Option<(Vec<Row>, Instant)>,
    /// Each with its moment and a number, so that equal moments keep their order.
    events: BinaryHeap<Reverse<(Instant, usize, Event)>>,
    numbers: usize,
    /// Frames that arrive from then on and before then count.
    counts: (Instant, Instant),
    served: Served,
}

/// `streams` cameras of about `rate_hz`, for `seconds` seconds.
pub(super) fn serve(device: &DeviceTimes, streams: u32, rate_hz: f64, seconds: f64, dice: &mut Dice) -> Served {
    let began = Instant::now();
    let period_s = 1.0 / rate_hz;
    let batches_s = if device.rows() > 1 { SETTLING_BATCHES * device.batch_s(device.rows()) } else { 0.0 };
    let settling = Duration::from_secs_f64((SETTLING_PERIODS * period_s).max(batches_s));
    let camera = |dice: &mut Dice| Camera {
        session: Session::new(LATEST, BOUNDS),
        period_s: period_s * (1.0 + around(dice, DRIFT)),
        due_s: period_s * dice.roll(),
        sequence: 0,
        tickets: BTreeMap::new(),
        arrivals: BTreeMap::new(),
    };
    let mut pod = Pod {
        now: began,
        device: *device,
        cameras: (0..streams).map(|_| camera(dice)).collect(),
        dispatch: Dispatch::new(AGEING, Duration::ZERO, Workers::Alike(1)),
        batching: Rc::new(Batching::at_most(device.rows())),
        decoding: BTreeMap::new(),
        running: None,
        events: BinaryHeap::new(),
        numbers: 0,
        counts: (began + settling, began + settling + Duration::from_secs_f64(seconds)),
        served: Served::default(),
    };
    for camera in 0..pod.cameras.len() {
        pod.next_frame(camera, began, dice);
    }
    let end = pod.counts.1 + settling;
    while let Some(Reverse((at, _, event))) = pod.events.pop()
        && at < end
    {
        pod.now = at;
        pod.happens(event, began, dice);
    }
    pod.served
}

impl Pod {
    fn at(&mut self, moment: Instant, event: Event) {
        self.numbers += 1;
        self.events.push(Reverse((moment, self.numbers, event)));
    }

    fn next_frame(&mut self, camera: usize, began: Instant, dice: &mut Dice) {
        let Camera { due_s, period_s, .. } = &mut self.cameras[camera];
        let at_s = (*due_s + around(dice, JITTER) * *period_s).max(0.0);
        *due_s += *period_s;
        self.at(began + Duration::from_secs_f64(at_s), Event::Frame { camera });
    }

    fn happens(&mut self, event: Event, began: Instant, dice: &mut Dice) {
        match event {
            Event::Frame { camera } => {
                self.arrives(camera);
                self.next_frame(camera, began, dice);
            }
            Event::Decoded { row } => {
                let row = self.decoding.remove(&row).expect("it was chosen");
                let turn = row.turn.clone();
                let prepared = if turn.is_alive(self.now) { Prepared::Row(row) } else { Prepared::Ended };
                self.dispatch.prepared(&turn, prepared, self.now);
            }
            Event::BatchEnds => self.batch_ends(),
        }
        self.choose();
        if self.running.is_none() {
            self.run();
            self.choose();
        }
    }

    /// As `server::camlens::stream` does it.
    fn arrives(&mut self, index: usize) {
        let now = self.now;
        let counts = self.counts.0 <= now && now < self.counts.1;
        let camera = &mut self.cameras[index];
        camera.sequence += 1;
        let sequence = camera.sequence;
        let accepted = camera.session.accept(sequence, now, None).expect("sequences increase");
        assert_eq!(accepted, Accepted::Waits);
        camera.arrivals.insert(sequence, now);
        self.served.sent += usize::from(counts);
        let ticket = Ticket::new();
        camera.tickets.insert(sequence, ticket.clone());
        let turn = Turn::new(StreamKey(index as u64), ticket, 0, 2, None, now);
        self.dispatch.push(Row { turn, sequence, batching: Rc::clone(&self.batching) }, now);
        let camera = &mut self.cameras[index];
        while let Some(action) = camera.session.next_action() {
            let Action::Withdraw { sequence, reason } = action else { panic!("nobody cancels: {action:?}") };
            if camera.tickets.get(&sequence).is_some_and(Ticket::withdraw) {
                camera.tickets.remove(&sequence);
                camera.session.dropped(sequence, reason);
                self.dispatch.sweep(StreamKey(index as u64));
            } else {
                camera.session.taken(sequence);
            }
        }
    }

    fn choose(&mut self) {
        while let Some(row) = self.dispatch.choose(self.now) {
            let number = self.numbers;
            self.decoding.insert(number, row);
            let takes = Duration::from_secs_f64(DECODING * self.device.batch_s(1));
            self.at(self.now + takes, Event::Decoded { row: number });
        }
    }

    fn run(&mut self) {
        if let Taken::Rows(rows) = self.dispatch.take(0, 0, self.now) {
            let takes = Duration::from_secs_f64(self.device.batch_s(rows.len() as u32));
            self.at(self.now + takes, Event::BatchEnds);
            self.running = Some((rows, self.now));
        }
    }

    fn batch_ends(&mut self) {
        let (rows, since) = self.running.take().expect("a batch runs");
        let cost = rows.iter().map(|row| row.turn.cost).sum();
        self.batching.ran(rows.len(), cost, self.now - since);
        for row in rows {
            assert!(row.turn.ticket.end(), "a row on the device is not replaced");
            let camera = &mut self.cameras[row.turn.stream.0 as usize];
            camera.tickets.remove(&row.sequence);
            camera.session.answered(row.sequence, (), 1);
            while let Some(message) = camera.session.next_message() {
                let Message::Answer { sequence, .. } = message else { continue };
                let arrived = camera.arrivals.remove(&sequence).expect("it was sent");
                if self.counts.0 <= arrived && arrived < self.counts.1 {
                    self.served.latencies_s.push((self.now - arrived).as_secs_f64());
                }
            }
            camera.arrivals.retain(|sequence, _| *sequence > row.sequence);
        }
    }
}
