//! Who shows frames and who looks at them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::shot::Shot;
use crate::render::Scene;

/// What is known of a stream beside its frames.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StreamFacts {
    /// Unique among the streams of the hub; part of a path.
    pub id: String,
    /// The source's name, for people.
    pub name: String,
    /// The model's name and version.
    pub model: String,
    /// The stream's policy, in words.
    pub policy: String,
}

/// Bounds on what viewers may cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Open pages and MJPEG connections.
    pub max_viewers: u32,
    /// Frames drawn per second, over all streams.
    pub max_rate_hz: f64,
    /// The longer side of a drawn frame, in pixels.
    pub max_side: u32,
}

/// The streams that can be looked at, and their viewers. Cheap to clone; clones share it.
#[derive(Clone)]
pub struct Hub(Arc<Inner>);

struct Inner {
    limits: Limits,
    viewers: AtomicUsize,
    /// Streams that somebody looks at.
    watched: AtomicUsize,
    /// In the order in which they were opened.
    streams: Mutex<BTreeMap<u64, Arc<Shown>>>,
    next: AtomicU64,
}

/// A stream as viewers see it.
pub(super) struct Shown {
    facts: Mutex<StreamFacts>,
    counts: Mutex<Counts>,
    viewers: AtomicUsize,
    /// When the next frame may be drawn.
    due: Mutex<Option<Instant>>,
    drawing: AtomicBool,
    shots: watch::Sender<Option<Arc<Shot>>>,
    ended: AtomicBool,
}

/// How the stream's frames have ended so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) answered: u64,
    pub(super) failed: u64,
    pub(super) dropped: BTreeMap<String, u64>,
}

/// How a frame ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended<'a> {
    Answered,
    Failed,
    /// For this reason.
    Dropped(&'a str),
}

impl Hub {
    pub fn new(limits: Limits) -> Self {
        Hub(Arc::new(Inner {
            limits,
            viewers: AtomicUsize::new(0),
            watched: AtomicUsize::new(0),
            streams: Mutex::default(),
            next: AtomicU64::new(0),
        }))
    }

    /// A stream that can be looked at until the returned handle is dropped.
    pub fn open(&self, facts: StreamFacts) -> Stream {
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        let shown = Arc::new(Shown {
            facts: Mutex::new(facts),
            counts: Mutex::default(),
            viewers: AtomicUsize::new(0),
            due: Mutex::new(None),
            drawing: AtomicBool::new(false),
            shots: watch::Sender::new(None),
            ended: AtomicBool::new(false),
        });
        self.0.streams.lock().insert(number, Arc::clone(&shown));
        Stream { hub: self.clone(), number, shown }
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// The streams, in the order in which they were opened.
    pub(super) fn facts(&self) -> Vec<StreamFacts> {
        self.0.streams.lock().values().map(|shown| shown.facts()).collect()
    }

    /// The stream with this id; without one, the stream that was opened last.
    pub(super) fn find(&self, id: Option<&str>) -> Option<Arc<Shown>> {
        let streams = self.0.streams.lock();
        match id {
            Some(id) => streams.values().find(|shown| shown.facts.lock().id == id).cloned(),
            None => streams.values().next_back().cloned(),
        }
    }

    /// A place for one viewer. `None`: there are as many as may be.
    pub(super) fn admit(&self) -> Option<Viewer> {
        let most = self.0.limits.max_viewers as usize;
        let counted = |viewers: usize| (viewers < most).then_some(viewers + 1);
        self.0.viewers.fetch_update(Ordering::Relaxed, Ordering::Relaxed, counted).ok()?;
        Some(Viewer { hub: self.clone(), looks_at: None })
    }
}

/// The handle of a stream's owner.
pub struct Stream {
    hub: Hub,
    number: u64,
    shown: Arc<Shown>,
}

impl Stream {
    /// Whether somebody looks at the stream, though perhaps not at its next frame.
    pub fn is_watched(&self) -> bool {
        self.shown.viewers.load(Ordering::Relaxed) > 0
    }

    /// Whether somebody waits for a frame of this stream. An owner that hears `true` shows the frame, if it can.
    pub fn wants(&self, now: Instant) -> bool {
        self.shown.wants(now, &self.hub.0)
    }

    /// [`Stream::wants`] for whoever does not own the stream.
    pub fn onlooker(&self) -> impl Fn(Instant) -> bool + Send + Sync + use<> {
        let (shown, hub) = (Arc::clone(&self.shown), self.hub.clone());
        move |now| shown.wants(now, &hub.0)
    }

    /// Shows a frame. It is drawn on a thread of the runtime's pool for blocking work; while a frame of the stream is
    /// being drawn, others are ignored.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn show(&self, scene: Scene) {
        if self.shown.drawing.swap(true, Ordering::AcqRel) {
            return;
        }
        let (shown, max_side) = (Arc::clone(&self.shown), self.hub.0.limits.max_side);
        tokio::task::spawn_blocking(move || {
            let drawn = Shot::draw(scene, max_side);
            shown.drawing.store(false, Ordering::Release);
            match drawn {
                Ok(shot) => drop(shown.shots.send_replace(Some(Arc::new(shot)))),
                Err(error) => tracing::debug!(%error, "a frame could not be drawn for the live page"),
            }
        });
    }

    /// Counts a frame that has ended.
    pub fn count(&self, ended: Ended<'_>, frames: u64) {
        let mut counts = self.shown.counts.lock();
        let count = match ended {
            Ended::Answered => &mut counts.answered,
            Ended::Failed => &mut counts.failed,
            Ended::Dropped(reason) => counts.dropped.entry(reason.to_owned()).or_default(),
        };
        *count += frames;
    }

    /// The stream's policy has changed.
    pub fn policy(&self, policy: String) {
        self.shown.facts.lock().policy = policy;
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.hub.0.streams.lock().remove(&self.number);
        self.shown.ended.store(true, Ordering::Release);
        // Wakes the viewers, which see that it has ended.
        self.shown.shots.send_modify(|_| {});
    }
}

impl Shown {
    fn wants(&self, now: Instant, hub: &Inner) -> bool {
        if self.viewers.load(Ordering::Relaxed) == 0 || self.drawing.load(Ordering::Acquire) {
            return false;
        }
        let mut due = self.due.lock();
        if due.is_some_and(|due| now < due) {
            return false;
        }
        // The streams that are looked at share the rate.
        let watched = hub.watched.load(Ordering::Relaxed).max(1);
        *due = now.checked_add(Duration::from_secs_f64(watched as f64 / hub.limits.max_rate_hz));
        true
    }

    pub(super) fn facts(&self) -> StreamFacts {
        self.facts.lock().clone()
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts.lock().clone()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// The newest drawn frame, now and when it changes.
    pub(super) fn shots(&self) -> watch::Receiver<Option<Arc<Shot>>> {
        self.shots.subscribe()
    }
}

/// One open page or MJPEG connection. Dropping it makes room for another.
pub(super) struct Viewer {
    hub: Hub,
    looks_at: Option<Arc<Shown>>,
}

impl Viewer {
    /// From now on it looks at this stream.
    pub(super) fn look_at(&mut self, shown: Arc<Shown>) {
        self.look_away();
        if shown.viewers.fetch_add(1, Ordering::Relaxed) == 0 {
            self.hub.0.watched.fetch_add(1, Ordering::Relaxed);
        }
        self.looks_at = Some(shown);
    }

    fn look_away(&mut self) {
        if let Some(shown) = self.looks_at.take()
            && shown.viewers.fetch_sub(1, Ordering::Relaxed) == 1
        {
            self.hub.0.watched.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        self.look_away();
        self.hub.0.viewers.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{AffineTransform, Channels, Pixels};
    use crate::model::description::ColorOrder;

    fn hub() -> Hub {
        Hub::new(Limits { max_viewers: 2, max_rate_hz: 10.0, max_side: 16 })
    }

    fn named(id: &str) -> StreamFacts {
        StreamFacts { id: id.to_owned(), ..StreamFacts::default() }
    }

    fn looking_at(hub: &Hub, id: &str) -> Viewer {
        let mut viewer = hub.admit().expect("a place");
        viewer.look_at(hub.find(Some(id)).expect("the stream"));
        viewer
    }

    fn scene(sequence: u64) -> Scene {
        Scene {
            sequence,
            tag: String::new(),
            frame: Some(Pixels::upright(32, 32, Channels::Gray, vec![1; 1024])),
            to_upright: AffineTransform::IDENTITY,
            map_size: (32, 32),
            color: ColorOrder::Rgb,
            predictions: Vec::new(),
            targets: Vec::new(),
            stages: Vec::new(),
            glass_to_answer: None,
        }
    }

    #[test]
    fn no_frame_is_wanted_while_nobody_looks() {
        let hub = hub();
        let (seen, unseen) = (hub.open(named("seen")), hub.open(named("unseen")));
        let now = Instant::now();
        assert!(!seen.is_watched() && !seen.wants(now));
        let viewer = looking_at(&hub, "seen");
        assert!(seen.is_watched() && seen.wants(now));
        assert!(!unseen.is_watched() && !unseen.wants(now));
        drop(viewer);
        assert!(!seen.is_watched() && !seen.wants(now + Duration::from_secs(9)));
    }

    #[test]
    fn the_rate_is_one_for_all_streams_and_all_viewers() {
        let hub = hub();
        let (one, other) = (hub.open(named("one")), hub.open(named("other")));
        let _viewers = [looking_at(&hub, "one"), looking_at(&hub, "other")];
        let start = Instant::now();
        let mut wanted = 0;
        for ms in 0..2000 {
            let now = start + Duration::from_millis(ms);
            wanted += [&one, &other].into_iter().filter(|stream| stream.wants(now)).count();
        }
        assert_eq!(wanted, 20, "10 frames a second for 2 seconds");
    }

    #[test]
    fn viewers_are_counted_and_a_place_is_free_again() {
        let hub = hub();
        let (one, _two) = (hub.admit(), hub.admit());
        assert!(one.is_some() && hub.admit().is_none());
        drop(one);
        assert!(hub.admit().is_some());
    }

    #[tokio::test]
    async fn frames_that_come_while_one_is_drawn_are_ignored_and_the_end_is_seen() {
        let hub = hub();
        let stream = hub.open(named("one"));
        let viewer = looking_at(&hub, "one");
        let shown = hub.find(None).expect("the stream");
        let mut shots = shown.shots();
        stream.shown.drawing.store(true, Ordering::Release);
        assert!(!stream.wants(Instant::now()));
        stream.show(scene(1));
        assert!(!shots.has_changed().expect("it lives"));
        stream.shown.drawing.store(false, Ordering::Release);
        stream.show(scene(2));
        shots.changed().await.expect("it is drawn");
        let drawn = shots.borrow_and_update().clone().expect("a frame");
        assert_eq!((drawn.scene.sequence, drawn.scene.frame.as_ref().map(Pixels::width)), (2, Some(16)));
        drop(stream);
        shots.changed().await.expect("it is told");
        assert!(shown.has_ended() && hub.find(None).is_none() && hub.facts().is_empty());
        drop(viewer);
    }
}
