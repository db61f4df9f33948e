//! The frames that wait to be chosen: a queue for each stream, served in a fair order.
//!
//! Deficit round robin (M. Shreedhar, G. Varghese, "Efficient Fair Queuing using Deficit Round Robin", SIGCOMM 1995)
//! within classes: the highest class goes first, and a stream that waits rises by one class each [`Line::ageing`], so
//! that none starves. Frames of unlike cost share the device by cost, not by count.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::ticket::StreamKey;
use super::turn::{Turn, Waiting};

/// The highest priority class.
pub const MAX_PRIORITY: u8 = 7;

/// Frames that are not chosen yet. A stream's frames keep their order.
#[derive(Debug)]
pub(in crate::schedule) struct Line<J> {
    /// In the order of their ranks. None is empty.
    streams: VecDeque<Queue<J>>,
    /// The rank of the stream that joined the end of the line last.
    last_rank: u64,
    ageing: Duration,
    /// The number of batches that the device has taken.
    batches: u64,
    /// Expired frames whose clients have not been told.
    expired: Vec<J>,
}

#[derive(Debug)]
struct Queue<J> {
    stream: StreamKey,
    jobs: VecDeque<J>,
    rank: u64,
    /// Cost that it may still spend before the others have had their share.
    deficit: u32,
    /// Since when it has waited for its turn.
    since: Instant,
    /// The number of batches when its turn came, if none of its frames has run since.
    due: Option<u64>,
}

/// The stream whose turn it is.
struct Next {
    /// Index among the line's streams.
    chosen: usize,
    /// Rounds that are granted first to all streams of that class and above.
    rounds: u32,
    class: u8,
}

impl<J: Waiting> Queue<J> {
    /// The class of its first frame, raised by one for each `ageing` that it has waited.
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

    /// Removes a stream's frames that were ended while they waited.
    pub(in crate::schedule) fn sweep(&mut self, stream: StreamKey) {
        if let Some(index) = self.streams.iter().position(|queue| queue.stream == stream) {
            self.streams[index].jobs.retain(|job| !job.turn().ticket.is_over());
            if self.streams[index].jobs.is_empty() {
                self.streams.remove(index);
            }
        }
    }

    /// A chosen frame has ended without running: its stream, if it still waits, has its turn back. A camera whose newer
    /// frame replaces the chosen one thus keeps its rank.
    pub(in crate::schedule) fn give_back(&mut self, turn: &Turn) {
        let Some(index) = self.streams.iter().position(|queue| queue.stream == turn.stream) else { return };
        if let Some(mut queue) = self.streams.remove(index) {
            queue.deficit = queue.deficit.saturating_add(turn.cost);
            queue.since = queue.since.min(turn.since);
            queue.due = Some(queue.due.map_or(turn.due, |due| due.min(turn.due)));
            queue.rank = queue.rank.min(turn.rank);
            let index = self.streams.partition_point(|other| other.rank < queue.rank);
            self.streams.insert(index, queue);
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

    /// The first frame of the stream whose turn it is, among streams whose first frame `fits`. The stream then goes to
    /// the end of the line. If a batch was formed without the stream since its turn came, the frame can no longer be
    /// replaced: a camera that sends faster than its frames are decoded would otherwise replace each of them in time.
    pub(in crate::schedule) fn next(&mut self, now: Instant, fits: impl Fn(&J) -> bool) -> Option<J> {
        self.clean(now);
        let Next { chosen, rounds, class } = self.whose_turn(now, fits)?;
        for queue in self.streams.iter_mut().filter(|_| rounds > 0) {
            if queue.class(now, self.ageing) >= class {
                // A stream whose frames do not fit for a long time must not accumulate credit.
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

    /// The frame that [`Line::next`] would return.
    pub(in crate::schedule) fn first(&mut self, now: Instant, fits: impl Fn(&J) -> bool) -> Option<&J> {
        self.clean(now);
        let Next { chosen, .. } = self.whose_turn(now, fits)?;
        self.streams.get(chosen)?.jobs.front()
    }

    fn whose_turn(&self, now: Instant, fits: impl Fn(&J) -> bool) -> Option<Next> {
        let fits = |queue: &Queue<J>| queue.jobs.front().is_some_and(&fits);
        let class = |queue: &Queue<J>| queue.class(now, self.ageing);
        let highest = self.streams.iter().filter(|queue| fits(queue)).map(class).max()?;
        let candidates = || self.streams.iter().enumerate().filter(|(_, queue)| fits(queue) && class(queue) == highest);
        // A round grants each stream one unit. The stream that can afford its frame after the fewest rounds is next.
        let missing = |queue: &Queue<J>| queue.cost().saturating_sub(queue.deficit);
        let rounds = candidates().map(|(_, queue)| missing(queue)).min()?;
        let (chosen, _) = candidates().find(|(_, queue)| missing(queue) == rounds)?;
        Some(Next { chosen, rounds, class: highest })
    }

    /// Removes ended and expired frames from the front of each stream's queue.
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

    /// The frames that have expired since the last call. Their clients have not been told.
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

        fn runs_on(&self, _: usize) -> bool {
            true
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
    fn a_stream_that_does_not_fit_keeps_its_rank() {
        let mut scene = Scene::new(1000);
        scene.push(1, 10, 2, 0);
        scene.push(2, 20, 2, 0);
        scene.push(3, 30, 2, 0);
        let even = |job: &Small| job.1 != 10;
        assert_eq!(scene.line.next(scene.now, even).map(|job| job.1), Some(20));
        assert_eq!(scene.drain(), [10, 30]);
    }
}
