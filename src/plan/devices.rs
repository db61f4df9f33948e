//! Which backend runs the plans of a device.

use tch::Device;

use super::KernelChoice;
use super::backend::{AtenBackend, Backend};
use super::cpu::CpuBackend;

/// A new backend for `device`, without packed weights. A device with kernels of its own gets a line here.
pub fn backend_of(device: Device, choice: KernelChoice) -> Box<dyn Backend> {
    match device {
        Device::Cpu => Box::new(CpuBackend::new(choice)),
        _ => Box::new(AtenBackend),
    }
}
