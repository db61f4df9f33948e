//! How many streams a device serves, and how many devices a load needs: a model of the queue, from measured times.
//!
//! The scheduler is taken as one queue in order of arrival before a device that runs all waiting rows together, up to
//! its largest batch, and batches of `b` rows as taking time linear in `b`. Cameras are periodic, with equal rates and
//! phases that have nothing to do with each other. `schedule/simulation/capacity.rs` drives the scheduler's own code in
//! simulated time and holds the model against it; `deploy/capacity.md` is the page for operators.

mod binomial;
mod bulk;
pub(super) mod dice;
mod fleet;
mod periodic;

use super::batching::WORTH;
pub use fleet::{Placement, answered_share, devices};

/// The share of frames that must keep a latency goal.
pub const QUANTILE: f64 = 0.99;

/// A device and a model, as measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DeviceTimes {
    /// Seconds of a batch of one row on the device.
    frame_s: f64,
    /// Rows of the largest batch.
    rows: u32,
    /// Seconds of a batch of `rows` rows on the device.
    batch_s: f64,
}

/// Times that no device has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CapacityError {
    #[error("a frame takes more than 0 ms")]
    NoTime,
    #[error("a batch has at least one row")]
    NoRows,
    #[error("a batch takes no less than one frame")]
    ShortBatch,
}

/// What the streams of a device ask for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Frames per second of each stream.
    pub rate_hz: f64,
    /// Seconds within which [`QUANTILE`] of the frames leave the device, from their submission on.
    pub latency_s: f64,
    /// The largest share of [`DeviceTimes::max_hz`] that is planned for.
    pub utilisation: f64,
    /// `limits.max_streams` of a server.
    pub max_streams: u32,
}

impl DeviceTimes {
    /// # Errors
    /// For times that are not positive, a batch without rows, or one that is faster than a frame.
    pub fn new(frame_s: f64, rows: u32, batch_s: f64) -> Result<Self, CapacityError> {
        if !(frame_s > 0.0 && frame_s.is_finite() && batch_s.is_finite()) {
            return Err(CapacityError::NoTime);
        }
        if rows == 0 {
            return Err(CapacityError::NoRows);
        }
        if batch_s < frame_s {
            return Err(CapacityError::ShortBatch);
        }
        Ok(DeviceTimes { frame_s, rows, batch_s })
    }

    /// A device that gains nothing from larger batches.
    ///
    /// # Errors
    /// As [`DeviceTimes::new`].
    pub fn one_by_one(frame_s: f64) -> Result<Self, CapacityError> {
        DeviceTimes::new(frame_s, 1, frame_s)
    }

    /// Rows of the largest batch.
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// Seconds of a batch of `rows` rows.
    pub fn batch_s(&self, rows: u32) -> f64 {
        if self.rows == 1 {
            return self.frame_s * f64::from(rows);
        }
        let of_row = (self.batch_s - self.frame_s) / f64::from(self.rows - 1);
        self.frame_s + of_row * (f64::from(rows) - 1.0)
    }

    /// The most rows that run together: those of the largest batch, if it pays.
    pub fn max_rows(&self) -> u32 {
        if self.batch_s / f64::from(self.rows) < WORTH * self.frame_s { self.rows } else { 1 }
    }

    /// Frames per second of a device that is never idle.
    pub fn max_hz(&self) -> f64 {
        f64::from(self.max_rows()) / self.batch_s(self.max_rows())
    }

    /// The share of [`DeviceTimes::max_hz`] that `streams` streams take; above 1 not all frames are explained.
    pub fn utilisation(&self, streams: u32, rate_hz: f64) -> f64 {
        f64::from(streams) * rate_hz / self.max_hz()
    }

    /// Seconds within which [`QUANTILE`] of the frames of `streams` streams leave the device, over all phases that
    /// cameras may have. Infinite for a device that cannot explain them all.
    pub fn latency_s(&self, streams: u32, rate_hz: f64) -> f64 {
        let period_s = 1.0 / rate_hz;
        if streams == 0 {
            0.0
        } else if self.utilisation(streams, rate_hz) >= 1.0 {
            f64::INFINITY
        } else if self.max_rows() == 1 {
            self.frame_s + periodic::wait_s(streams, period_s, self.frame_s, QUANTILE)
        } else {
            bulk::latency_s(self, streams, period_s, QUANTILE)
        }
    }

    /// The most streams that keep the load's goals; 0 if one stream does not.
    pub fn streams(&self, load: &Load) -> u32 {
        let most = (load.utilisation.min(1.0) * self.max_hz() / load.rate_hz).min(f64::from(load.max_streams));
        // 1e-9: a quotient that is a whole number but for its rounding.
        let most = (most + 1e-9).floor() as u32;
        let keeps = |streams| self.latency_s(streams, load.rate_hz) <= load.latency_s;
        if keeps(most) {
            return most;
        }
        let (mut kept, mut missed) = (0, most);
        while missed - kept > 1 {
            let middle = kept + (missed - kept) / 2;
            if keeps(middle) { kept = middle } else { missed = middle }
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(rate_hz: f64, latency_s: f64) -> Load {
        Load { rate_hz, latency_s, utilisation: 0.8, max_streams: 1024 }
    }

    #[test]
    fn a_device_alone_is_limited_by_utilisation_latency_and_the_servers_limit() {
        let device = DeviceTimes::one_by_one(0.020).expect("a device");
        assert_eq!(device.max_hz(), 50.0);
        assert_eq!(device.streams(&load(5.0, 0.2)), 8, "0.8 of 50 frames a second");
        assert_eq!(device.streams(&load(5.0, 0.019)), 0, "the device's time alone is longer");
        assert_eq!(device.streams(&load(5.0, 0.0201)), 1, "two cameras may wait for each other");
        assert_eq!(device.streams(&load(60.0, 1.0)), 0, "one camera sends more than the device explains");
        assert_eq!(device.streams(&Load { max_streams: 3, ..load(5.0, 0.2) }), 3);
    }

    #[test]
    fn a_batch_that_does_not_pay_is_not_used() {
        let device = DeviceTimes::new(0.010, 8, 0.0795).expect("a device");
        assert_eq!((device.max_rows(), device.max_hz()), (1, 100.0));
        let device = DeviceTimes::new(0.0025, 8, 0.006).expect("a device");
        assert_eq!(device.max_rows(), 8);
        assert!((device.max_hz() - 8.0 / 0.006).abs() < 1e-6);
        assert!((device.batch_s(4) - 0.004).abs() < 1e-12);
    }

    #[test]
    fn times_that_no_device_has_are_refused() {
        assert_eq!(DeviceTimes::one_by_one(0.0), Err(CapacityError::NoTime));
        assert_eq!(DeviceTimes::one_by_one(f64::NAN), Err(CapacityError::NoTime));
        assert_eq!(DeviceTimes::new(0.01, 0, 0.01), Err(CapacityError::NoRows));
        assert_eq!(DeviceTimes::new(0.01, 8, 0.009), Err(CapacityError::ShortBatch));
    }
}
