//! Which backend runs the plans of a device.

use tch::Device;

use super::backend::{AtenBackend, Backend};
use super::cpu::CpuBackend;

/// A new backend for `device`, without packed weights. A device with kernels of its own gets a line here.
pub fn backend_of(device: Device) -> Box<dyn Backend> {
    match device {
        Device::Cpu => Box::new(CpuBackend::default()),
        _ => Box::new(AtenBackend),
    }
}
