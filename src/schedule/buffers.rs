//! Reusable memory for models' inputs. An input is so large that the system would map and clear fresh pages for each
//! allocation.

use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

/// The most memory that a model keeps in unused buffers, in bytes.
const KEPT_BYTES: usize = 32 << 20;

/// The unused buffers of one model. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Buffers(Arc<Mutex<Idle>>);

#[derive(Debug, Default)]
struct Idle {
    buffers: Vec<Vec<f32>>,
    bytes: usize,
}

/// The input of a row. Dropping it returns the memory.
#[derive(Debug)]
pub(super) struct Buffer {
    pub(super) values: Vec<f32>,
    home: Buffers,
}

impl Buffers {
    /// A buffer with arbitrary content.
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
        // Freed after the lock is released.
        drop(surplus);
    }

    fn change<T>(&self, change: impl FnOnce(&mut Idle) -> T) -> T {
        // A panic under the lock loses at most one buffer.
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
    fn memory_is_reused() {
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
    fn the_unused_memory_is_bounded() {
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
    fn a_buffer_whose_values_were_taken_is_not_kept() {
        let buffers = Buffers::default();
        let mut row = buffers.take();
        row.values.resize(10, 0.0);
        assert_eq!(mem::take(&mut row.values).len(), 10);
        drop(row);
        assert!(buffers.0.lock().unwrap().buffers.is_empty());
    }
}
