//! Where frames wait until they are chosen: a line for each stream, served in a fair order.
//!
//! Deficit round robin (M. Shreedhar, G. Varghese, "Efficient Fair Queuing using Deficit Round Robin", SIGCOMM 1995) within
//! classes: the highest class goes first, and a stream that waits rises by one class each [`Line::ageing`], so that none
//! starves. Frames of unlike cost share the device by cost, not by count.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::ticket::StreamKey;
use super::turn::{Turn, Waiting};

/// The highest class of a stream.
pub const MAX_PRIORITY: u8 = 7;

/// Frames that are not chosen yet. Within a stream, the order is the stream's.
#[derive(Debug)]
pub(in crate::schedule) struct Line<J> {
    /// In the order of their ranks; each with at least one frame.
    streams: VecDeque<Queue<J>>,
    /// The rank of whoever comes to the end of the line next.
    last_rank: u64,
    ageing: Duration,
    /// Batches that the device has taken so far.
    batches: u64,
    /// Frames that were found expired, for whoever tells their clients.
    expired: Vec<J>,
}

#[derive(Debug)]
struct Queue<J> {
    stream: StreamKey,
    jobs: VecDeque<J>,
    rank: u64,
    /// What it may still take before others have had theirs.
    deficit: u32,
    /// Since when it has waited for its turn.
    since: Instant,
    /// When its turn came, and came to nothing so far: the number of batches then.
    due: Option<u64>,
}

/// Whose turn it is.
struct Next {
    /// The place in the line.
    chosen: usize,
    /// How many rounds are granted to all of that class, and above, before.
    rounds: u32,
    class: u8,
}

impl<J: Waiting> Queue<J> {
    /// The class of its first frame, raised by the time it has waited.
    fn class(&self, now: Instant, ageing: Duration) -> u8 {
        let Some(first) = self.jobs.front() else { return 0 };
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let waited = nanoseconds(now.saturating_duration_since(self.since));
        let risen = waited.checked_div(nanoseconds(ageing)).unwrap_or(u64::from(MAX_PRIORITY));
        let own = first.turn().priority;
        own.saturating_add(u8::try_from(risen).unwrap_or(MAX_PRIORITY)).min(MAX_PRIORITY.max(own))
    }

    fn cost(&self) -> u32 {
        self.jobs.front().map_or(0, |first| first.turn().cost)
    }
}

impl<J: Waiting> Line<J> {
    pub(in crate::schedule) fn new(ageing: Duration) -> Self {
        Line { streams: VecDeque::new(), last_rank: 0, ageing, batches: 0, expired: Vec::new() }
    }

    pub(in crate::schedule) fn push(&mut self, job: J, now: Instant) {
        let stream = job.turn().stream;
        match self.streams.iter_mut().find(|queue| queue.stream == stream) {
            Some(queue) => queue.jobs.push_back(job),
            None => {
                let jobs = VecDeque::from([job]);
                let rank = self.new_rank();
                self.streams.push_back(Queue { stream, jobs, rank, deficit: 0, since: now, due: None });
            }
        }
    }

    /// Forgets a stream's frames that were ended while they waited.
    pub(in crate::schedule) fn sweep(&mut self, stream: StreamKey) {
        if let Some(index) = self.streams.iter().position(|queue| queue.stream == stream) {
            self.streams[index].jobs.retain(|job| !job.turn().ticket.is_over());
            if self.streams[index].jobs.is_empty() {
                self.streams.remove(index);
            }
        }
    }

    /// A frame that was chosen has come to nothing: its stream, when it still waits, has the turn back. So a camera whose
    /// newer frame replaces the chosen one does not have to line up again.
    pub(in crate::schedule) fn give_back(&mut self, turn: &Turn) {
        let Some(index) = self.streams.iter().position(|queue| queue.stream == turn.stream) else { return };
        if let Some(mut queue) = self.streams.remove(index) {
            queue.deficit = queue.deficit.saturating_add(turn.cost);
            queue.since = queue.since.min(turn.since);
            queue.due = Some(queue.due.map_or(turn.due, |due| due.min(turn.due)));
            queue.rank = queue.rank.min(turn.rank);
            let place = self.streams.partition_point(|other| other.rank < queue.rank);
            self.streams.insert(place, queue);
        }
    }

    fn new_rank(&mut self) -> u64 {
        self.last_rank += 1;
        self.last_rank
    }

    /// The device has taken a batch.
    pub(in crate::schedule) fn batch_formed(&mut self) {
        self.batches += 1;
    }

    /// The next frame that `fits`, of the stream whose turn it is: its first frame, so that a stream's order holds. The
    /// stream then goes to the end of the line. When a batch was formed without the stream since its turn came, the frame is
    /// the device's at once: a camera that is faster than its frames are decoded would else replace each of them in time.
    pub(in crate::schedule) fn next(&mut self, now: Instant, fits: impl Fn(&J) -> bool) -> Option<J> {
        self.clean(now);
        let Next { chosen, rounds, class } = self.whose_turn(now, fits)?;
        for queue in self.streams.iter_mut().filter(|_| rounds > 0) {
            if queue.class(now, self.ageing) >= class {
                // A stream whose frames do not fit for long must not save up.
                let most = queue.cost();
                let granted = queue.deficit.saturating_add(rounds);
                queue.deficit = granted.min(most).max(queue.deficit);
            }
        }
        let mut queue = self.streams.remove(chosen)?;
        let mut job = queue.jobs.pop_front()?;
        queue.deficit = queue.deficit.saturating_sub(job.turn().cost);
        let due = queue.due.take().unwrap_or(self.batches);
        if due < self.batches {
            job.turn().ticket.take();
        }
        let turn = job.turn_mut();
        (turn.since, turn.due, turn.rank) = (queue.since, due, queue.rank);
        queue.since = now;
        if !queue.jobs.is_empty() {
            queue.rank = self.new_rank();
            self.streams.push_back(queue);
        }
        Some(job)
    }

    /// The frame whose turn it is.
    pub(in crate::schedule) fn first(&mut self, now: Instant) -> Option<&J> {
        self.clean(now);
        let Next { chosen, .. } = self.whose_turn(now, |_| true)?;
        self.streams.get(chosen)?.jobs.front()
    }

    fn whose_turn(&self, now: Instant, fits: impl Fn(&J) -> bool) -> Option<Next> {
        let fits = |queue: &Queue<J>| queue.jobs.front().is_some_and(&fits);
        let class = |queue: &Queue<J>| queue.class(now, self.ageing);
        let highest = self.streams.iter().filter(|queue| fits(queue)).map(class).max()?;
        let candidates = || self.streams.iter().enumerate().filter(|(_, queue)| fits(queue) && class(queue) == highest);
        // A round grants each stream a unit. As many of them as the first needs that can then afford its frame.
        let missing = |queue: &Queue<J>| queue.cost().saturating_sub(queue.deficit);
        let rounds = candidates().map(|(_, queue)| missing(queue)).min()?;
        let (chosen, _) = candidates().find(|(_, queue)| missing(queue) == rounds)?;
        Some(Next { chosen, rounds, class: highest })
    }

    /// Takes what has ended or expired from the front of each stream's line.
    fn clean(&mut self, now: Instant) {
        for queue in &mut self.streams {
            while let Some(first) = queue.jobs.front()
                && !first.turn().is_alive(now)
                && let Some(job) = queue.jobs.pop_front()
            {
                if !job.turn().ticket.is_over() {
                    self.expired.push(job);
                }
            }
        }
        self.streams.retain(|queue| !queue.jobs.is_empty());
    }

    /// Frames that have expired since this was last asked. They are no longer in the line, and their clients do not know.
    pub(in crate::schedule) fn take_expired(&mut self) -> Vec<J> {
        std::mem::take(&mut self.expired)
    }
}

#[cfg(test)]
mod tests {
    use super::super::ticket::Ticket;
    use super::*;

    /// Stream, number.
    #[derive(Debug)]
    struct Small(Turn, u32);

    impl Waiting for Small {
        type Key = ();

        fn turn(&self) -> &Turn {
            &self.0
        }

        fn turn_mut(&mut self) -> &mut Turn {
            &mut self.0
        }

        fn key(&self) {}

        fn belongs_to(&self, (): &()) -> bool {
            true
        }

        fn max_batch(&self) -> usize {
            1
        }
    }

    struct Scene {
        line: Line<Small>,
        now: Instant,
    }

    impl Scene {
        fn new(ageing_ms: u64) -> Self {
            Scene { line: Line::new(Duration::from_millis(ageing_ms)), now: Instant::now() }
        }

        fn push(&mut self, stream: u64, number: u32, cost: u32, priority: u8) -> Ticket {
            let ticket = Ticket::new();
            let turn = Turn::new(StreamKey(stream), ticket.clone(), priority, cost, None, self.now);
            self.line.push(Small(turn, number), self.now);
            ticket
        }

        fn next(&mut self) -> Option<u32> {
            self.line.next(self.now, |_| true).map(|job| job.1)
        }

        fn drain(&mut self) -> Vec<u32> {
            std::iter::from_fn(|| self.next()).collect()
        }

        fn pass(&mut self, ms: u64) {
            self.now += Duration::from_millis(ms);
        }
    }

    #[test]
    fn streams_of_a_class_take_turns() {
        let mut scene = Scene::new(1000);
        for number in 0..3 {
            scene.push(1, 10 + number, 2, 0);
        }
        scene.push(2, 20, 2, 0);
        scene.push(3, 30, 2, 0);
        assert_eq!(scene.drain(), [10, 20, 30, 11, 12]);
    }

    #[test]
    fn a_stream_of_costly_frames_gets_no_more_of_the_device_than_others() {
        let mut scene = Scene::new(1_000_000);
        for number in 0..40 {
            scene.push(1, 100 + number, 6, 0);
            scene.push(2, 200 + number, 2, 0);
        }
        let first: Vec<u32> = (0..40).filter_map(|_| scene.next()).collect();
        let costly = first.iter().filter(|&&number| number < 200).count();
        assert_eq!(costly, 10, "6 of 8 parts of the work are 3 of 4 frames of the other: {first:?}");
    }

    #[test]
    fn the_higher_class_goes_first_until_the_lower_one_has_waited_long_enough() {
        let mut scene = Scene::new(100);
        scene.push(1, 1, 2, 0);
        scene.push(2, 20, 2, 2);
        assert_eq!(scene.next(), Some(20));
        // Two intervals later the first stream is of the same class, and has been in line for longer.
        scene.pass(200);
        scene.push(2, 21, 2, 2);
        assert_eq!(scene.drain(), [1, 21]);
    }

    #[test]
    fn a_stream_whose_chosen_frame_was_replaced_has_its_turn_back() {
        let mut scene = Scene::new(1000);
        scene.push(1, 10, 2, 0);
        scene.push(2, 20, 2, 0);
        let chosen = scene.line.next(scene.now, |_| true).expect("a frame");
        assert_eq!(chosen.1, 10);
        scene.push(1, 11, 2, 0);
        assert!(chosen.0.ticket.withdraw());
        scene.line.give_back(&chosen.0);
        assert_eq!(scene.drain(), [11, 20]);
    }

    #[test]
    fn ended_and_expired_frames_are_skipped_and_the_expired_ones_are_told() {
        let mut scene = Scene::new(1000);
        scene.push(1, 10, 2, 0).end();
        scene.push(1, 11, 2, 0);
        scene.line.streams[0].jobs[1].0.expires_at = Some(scene.now + Duration::from_millis(5));
        scene.push(1, 12, 2, 0);
        scene.pass(5);
        assert_eq!(scene.drain(), [12]);
        let expired: Vec<u32> = scene.line.take_expired().into_iter().map(|job| job.1).collect();
        assert_eq!(expired, [11]);
        assert!(scene.line.streams.is_empty());
    }

    #[test]
    fn a_stream_that_does_not_fit_keeps_its_place() {
        let mut scene = Scene::new(1000);
        scene.push(1, 10, 2, 0);
        scene.push(2, 20, 2, 0);
        scene.push(3, 30, 2, 0);
        let even = |job: &Small| job.1 != 10;
        assert_eq!(scene.line.next(scene.now, even).map(|job| job.1), Some(20));
        assert_eq!(scene.drain(), [10, 30]);
    }
}
