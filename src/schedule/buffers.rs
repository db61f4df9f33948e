//! Reusable memory for models' inputs. An input is so large that the system would map and clear fresh pages for each
//! allocation.

use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

/// The most memory that a model keeps in unused buffers, in bytes.
const KEPT_BYTES: usize = 32 << 20;

/// The unused buffers of one model, of elements `T`. Cheap to clone.
#[derive(Debug)]
pub(super) struct Buffers<T>(Arc<Mutex<Idle<T>>>);

impl<T> Clone for Buffers<T> {
    fn clone(&self) -> Self {
        Buffers(Arc::clone(&self.0))
    }
}

impl<T> Default for Buffers<T> {
    fn default() -> Self {
        Buffers(Arc::new(Mutex::new(Idle { buffers: Vec::new(), bytes: 0 })))
    }
}

#[derive(Debug)]
struct Idle<T> {
    buffers: Vec<Vec<T>>,
    bytes: usize,
}

/// The input of a row. Dropping it returns the memory.
#[derive(Debug)]
pub(super) struct Buffer<T> {
    pub(super) values: Vec<T>,
    home: Buffers<T>,
}

impl<T> Buffers<T> {
    /// A buffer with arbitrary content.
    pub(super) fn take(&self) -> Buffer<T> {
        let values = self.change(|idle| {
            let values = idle.buffers.pop().unwrap_or_default();
            idle.bytes -= bytes(&values);
            values
        });
        Buffer { values, home: self.clone() }
    }

    fn put(&self, values: Vec<T>) {
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

    fn change<R>(&self, change: impl FnOnce(&mut Idle<T>) -> R) -> R {
        // A panic under the lock loses at most one buffer.
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<T> Buffer<T> {
    /// A buffer that no other row reuses.
    pub(super) fn of(values: Vec<T>) -> Self {
        Buffer { values, home: Buffers::default() }
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        self.home.put(mem::take(&mut self.values));
    }
}

fn bytes<T>(values: &Vec<T>) -> usize {
    values.capacity() * size_of::<T>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_reused() {
        let buffers = Buffers::<f32>::default();
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
        let buffers = Buffers::<f32>::default();
        let rows: Vec<Buffer<f32>> = (0..5)
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
        let buffers = Buffers::<f32>::default();
        let mut row = buffers.take();
        row.values.resize(10, 0.0);
        assert_eq!(mem::take(&mut row.values).len(), 10);
        drop(row);
        assert!(buffers.0.lock().unwrap().buffers.is_empty());
    }
}
