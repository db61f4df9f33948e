//! Stopping a run between two steps.

/// Asked between steps whether the run is still wanted.
pub trait Interrupt {
    fn stop(&self) -> bool;
}

/// Never stops.
pub struct Never;

impl Interrupt for Never {
    fn stop(&self) -> bool {
        false
    }
}

impl<F: Fn() -> bool> Interrupt for F {
    fn stop(&self) -> bool {
        self()
    }
}
