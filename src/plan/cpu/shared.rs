//! Packed weights that several rules share.

use std::sync::{Arc, Mutex, PoisonError};

/// The packed weights of one model, of one kind of layer.
pub struct Shared<T>(Vec<Arc<Mutex<T>>>);

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Shared(Vec::new())
    }
}

impl<T> Shared<T> {
    /// The one that `is_same` accepts, or a new one from `make`.
    pub fn find_or(&mut self, is_same: impl Fn(&T) -> bool, make: impl FnOnce() -> T) -> Arc<Mutex<T>> {
        if let Some(found) = self.0.iter().find(|one| is_same(&one.lock().unwrap_or_else(PoisonError::into_inner))) {
            return Arc::clone(found);
        }
        let new = Arc::new(Mutex::new(make()));
        self.0.push(Arc::clone(&new));
        new
    }

    /// Drops those that no rule holds.
    pub fn drop_unused(&mut self) {
        self.0.retain(|one| Arc::strong_count(one) > 1);
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}
