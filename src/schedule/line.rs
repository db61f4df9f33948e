//! Where frames wait: a line for each stream, and the batch that is prepared ahead.

use std::collections::VecDeque;

use super::job::StreamKey;
use super::prepare::{Chosen, PreparedRow};
use super::ticket::Ticket;
use crate::explain::Method;

/// Frames that are not chosen yet. Streams take turns, frame by frame; within a stream, the order is the stream's.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// In the order of their turns; each with at least one frame.
    streams: VecDeque<(StreamKey, VecDeque<Chosen>)>,
}

impl Line {
    pub(super) fn push(&mut self, stream: StreamKey, job: Chosen) {
        match self.streams.iter_mut().find(|(key, _)| *key == stream) {
            Some((_, jobs)) => jobs.push_back(job),
            None => self.streams.push_back((stream, VecDeque::from([job]))),
        }
    }

    /// Forgets a stream's frames that were ended while they waited.
    pub(super) fn sweep(&mut self, stream: StreamKey) {
        if let Some(index) = self.streams.iter().position(|(key, _)| *key == stream) {
            self.streams[index].1.retain(|job| !job.ending.ticket.is_over());
            if self.streams[index].1.is_empty() {
                self.streams.remove(index);
            }
        }
    }

    /// The next frame that `fits`, of the stream whose turn it is: its first frame, so that a stream's order holds. The
    /// stream then goes to the end of the line.
    pub(super) fn next(&mut self, fits: impl Fn(&Chosen) -> bool) -> Option<Chosen> {
        for index in 0..self.streams.len() {
            let jobs = &mut self.streams[index].1;
            while jobs.front().is_some_and(|job| job.ending.ticket.is_over()) {
                jobs.pop_front();
            }
            if !jobs.front().is_some_and(&fits) {
                continue;
            }
            let job = jobs.pop_front();
            if let Some(stream) = self.streams.remove(index) {
                self.streams.push_back(stream);
            }
            self.streams.retain(|(_, jobs)| !jobs.is_empty());
            return job;
        }
        self.streams.retain(|(_, jobs)| !jobs.is_empty());
        None
    }
}

/// What rows of one batch have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BatchKey {
    pub(super) model: usize,
    pub(super) method: Method,
}

/// The batch that is prepared while the device works.
#[derive(Debug, Default)]
pub(super) struct NextBatch {
    key: Option<BatchKey>,
    /// Chosen and being decoded.
    preparing: usize,
    /// Theirs, since the last time that there were none.
    in_preparation: Vec<Ticket>,
    /// The device has nothing to do.
    device_waits: bool,
    rows: Vec<PreparedRow>,
}

impl NextBatch {
    /// Chooses another frame for the batch, when there is room and one that fits. Frames that were ended since make room.
    pub(super) fn choose(&mut self, line: &mut Line) -> Option<Chosen> {
        self.rows.retain(|row| !row.about.ending.ticket.is_over());
        if self.rows.is_empty() && self.preparing == 0 {
            self.key = None;
        }
        let job = match &self.key {
            None => line.next(|_| true)?,
            Some(key) => {
                let in_batch = self.rows.len() + self.preparing;
                line.next(|job| {
                    job.model_index == key.model
                        && job.method == key.method
                        && in_batch < job.model.limits.max_batch as usize
                })?
            }
        };
        self.key.get_or_insert_with(|| BatchKey { model: job.model_index, method: job.method.clone() });
        self.preparing += 1;
        if self.device_waits {
            job.ending.ticket.take();
        }
        self.in_preparation.push(job.ending.ticket.clone());
        Some(job)
    }

    /// The device has nothing to do: frames that are prepared now are its own from here on. Else a camera that is faster
    /// than its frames are decoded would replace each of them before the device sees any.
    pub(super) fn device_waits(&mut self) {
        self.device_waits = true;
        for ticket in &self.in_preparation {
            ticket.take();
        }
    }

    /// A chosen frame is prepared, or was refused. Gives it back when it comes too late: the engine has been closed.
    pub(super) fn prepared(&mut self, row: Option<PreparedRow>, open: bool) -> Option<PreparedRow> {
        if !open {
            return row;
        }
        self.preparing -= 1;
        if self.preparing == 0 {
            self.in_preparation.clear();
        }
        self.rows.extend(row);
        None
    }

    #[cfg(test)]
    pub(super) fn is_preparing(&self) -> bool {
        self.preparing > 0
    }

    /// Takes the rows that can run together now: those of the first one's input size. Each is the device's from here
    /// on; those that have ended are left out.
    pub(super) fn take(&mut self) -> Vec<PreparedRow> {
        self.rows.retain(|row| !row.about.ending.ticket.is_over());
        let Some(shape) = self.rows.first().map(|row| row.shape) else { return Vec::new() };
        let (mut now, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.rows).into_iter().partition(|row| row.shape == shape);
        self.rows = later;
        now.retain(|row| row.about.ending.ticket.take());
        self.device_waits = false;
        now
    }
}
