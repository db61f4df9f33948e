//! Memory for models' inputs, used by one frame after the other: an input is large enough that the system would hand
//! out fresh, empty pages for each.

use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

/// What one model keeps while no frame uses it, in bytes.
const KEPT_BYTES: usize = 32 << 20;

/// The buffers of one model that nobody uses. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Buffers(Arc<Mutex<Idle>>);

#[derive(Debug, Default)]
struct Idle {
    buffers: Vec<Vec<f32>>,
    bytes: usize,
}

/// Numbers of a row. The memory goes back when the row has gone.
#[derive(Debug)]
pub(super) struct Buffer {
    pub(super) values: Vec<f32>,
    home: Buffers,
}

impl Buffers {
    /// One with whatever was in it before.
    pub(super) fn take(&self) -> Buffer {
        let values = self.change(|idle| {
            let values = idle.buffers.pop().unwrap_or_default();
            idle.bytes -= bytes(&values);
            values
        });
        Buffer { values, home: self.clone() }
    }

    fn put(&self, values: Vec<f32>) {
        let surplus = self.change(|idle| {
            if bytes(&values) == 0 || idle.bytes + bytes(&values) > KEPT_BYTES {
                return Some(values);
            }
            idle.bytes += bytes(&values);
            idle.buffers.push(values);
            None
        });
        // Freed without the lock.
        drop(surplus);
    }

    fn change<T>(&self, change: impl FnOnce(&mut Idle) -> T) -> T {
        // A panic under the lock loses a buffer at worst.
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.home.put(mem::take(&mut self.values));
    }
}

fn bytes(values: &Vec<f32>) -> usize {
    values.capacity() * size_of::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again() {
        let buffers = Buffers::default();
        let mut first = buffers.take();
        first.values.resize(1_000, 1.0);
        let address = first.values.as_ptr();
        drop(first);
        let second = buffers.take();
        assert_eq!(second.values.as_ptr(), address);
        assert_ne!(buffers.take().values.as_ptr(), address, "it is in use");
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let buffers = Buffers::default();
        let rows: Vec<Buffer> = (0..5)
            .map(|_| {
                let mut row = buffers.take();
                row.values.reserve_exact((10 << 20) / size_of::<f32>());
                row
            })
            .collect();
        drop(rows);
        let idle = buffers.0.lock().unwrap();
        assert_eq!((idle.buffers.len(), idle.bytes), (3, 30 << 20));
    }

    #[test]
    fn values_that_are_taken_out_leave_nothing_behind() {
        let buffers = Buffers::default();
        let mut row = buffers.take();
        row.values.resize(10, 0.0);
        assert_eq!(mem::take(&mut row.values).len(), 10);
        drop(row);
        assert!(buffers.0.lock().unwrap().buffers.is_empty());
    }
}
