//! Which backend runs the plans of a device.

use tch::{Device, Kind};

use super::KernelChoice;
use super::backend::{AtenBackend, Backend};
use super::cpu::CpuBackend;
use super::cuda::CudaBackend;
use crate::torch;

/// Whether a model of this dtype runs in it on the device. If not, it runs in float32.
pub fn computes_in(device: Device, kind: Kind) -> bool {
    match device {
        Device::Cpu => torch::computes_in(kind),
        _ => true,
    }
}

/// A new backend for `device`, without packed weights. A device with kernels of its own gets a line here.
pub fn backend_of(device: Device, choice: KernelChoice) -> Box<dyn Backend> {
    match device {
        Device::Cpu => Box::new(CpuBackend::new(choice)),
        Device::Cuda(_) => Box::new(CudaBackend::new(device, choice)),
        _ => Box::new(AtenBackend),
    }
}
