//! The devices and their memory.

use std::ffi::{CStr, c_char};
use std::fmt;
use std::mem::MaybeUninit;

use super::error::{CudaError, checked};
use super::ffi::{Counts, DeviceMemory, RawDevice};
use super::library::Cuda;
use crate::torch::OperatorError;
use crate::torch::error::checked as checked_call;
use crate::torch::ffi::camlens_cuda_options;

/// A CUDA device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CudaDevice {
    pub index: u32,
    pub name: String,
    pub uuid: String,
    pub total_bytes: u64,
    pub capability: Capability,
    pub multiprocessors: u32,
    /// Whether it is a slice of a card (Multi-Instance GPU).
    pub is_mig: bool,
    /// Whether the process talks to a server of the Multi-Process Service.
    pub uses_mps: bool,
}

/// A compute capability, such as 9.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Capability {
    pub major: u32,
    pub minor: u32,
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Cuda {
    /// The number of devices and the version of CUDA that the driver has, such as 13000 for 13.0; 0 without a driver.
    ///
    /// # Errors
    /// What the driver says.
    pub fn count(self) -> Result<(u32, u32), CudaError> {
        let (mut count, mut driver) = (0i32, 0i32);
        let bridge = self.bridge();
        // SAFETY: both pointers are valid for writes.
        checked(bridge, "device_count", |error| unsafe {
            (bridge.device_count)(&raw mut count, &raw mut driver, error)
        })?;
        Ok((count.max(0) as u32, driver.max(0) as u32))
    }

    /// The devices that this process may use, at least one.
    ///
    /// # Errors
    /// [`CudaError::NoDriver`], [`CudaError::NoDevice`], and what the driver says.
    pub fn devices(self) -> Result<Vec<CudaDevice>, CudaError> {
        match self.count()? {
            (0, 0) => Err(CudaError::NoDriver),
            (0, driver) => Err(CudaError::NoDevice { driver }),
            (count, _) => (0..count).map(|index| self.describe(index)).collect(),
        }
    }

    fn describe(self, index: u32) -> Result<CudaDevice, CudaError> {
        let bridge = self.bridge();
        // SAFETY: all fields are numbers and booleans, for which zeros are valid.
        let mut raw = unsafe { MaybeUninit::<RawDevice>::zeroed().assume_init() };
        // SAFETY: the pointer is valid for writes.
        checked(bridge, "device_describe", |error| unsafe {
            (bridge.device_describe)(index as i32, &raw mut raw, error)
        })?;
        let RawDevice { name, uuid, total_bytes, major, minor, multiprocessors, is_mig, uses_mps } = raw;
        Ok(CudaDevice {
            index,
            name: text(&name),
            uuid: text(&uuid),
            total_bytes,
            capability: Capability { major: major.max(0) as u32, minor: minor.max(0) as u32 },
            multiprocessors: multiprocessors.max(0) as u32,
            is_mig,
            uses_mps,
        })
    }

    /// Says whether cuDNN and cuBLAS may round float32 operands to TF32, and whether cuDNN times its algorithms for
    /// each new shape and keeps the fastest, which makes the last bits of results differ between starts.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn configure(self, allow_tf32: bool, time_algorithms: bool) -> Result<(), OperatorError> {
        checked_call("cuda::configure", |error| {
            // SAFETY: the pointer of the error is valid for writes.
            unsafe { camlens_cuda_options(allow_tf32, time_algorithms, error) }
        })
    }

    /// Whether the device still works.
    ///
    /// # Errors
    /// [`CudaError::Lost`] after an error that lasts until the process ends.
    pub fn check(self, device: u32) -> Result<(), CudaError> {
        let bridge = self.bridge();
        // SAFETY: no pointers are passed except that of the error.
        checked(bridge, "device_check", |error| unsafe { (bridge.device_check)(device as i32, error) })
    }

    /// Waits for all work that is queued on the device.
    ///
    /// # Errors
    /// What the queued work failed with.
    pub fn synchronize(self, device: u32) -> Result<(), CudaError> {
        let bridge = self.bridge();
        // SAFETY: as above.
        checked(bridge, "device_synchronize", |error| unsafe { (bridge.device_synchronize)(device as i32, error) })
    }

    /// Limits the memory that libtorch takes from the device in this process.
    ///
    /// # Errors
    /// What the driver says.
    pub fn limit_memory(self, device: u32, bytes: u64) -> Result<(), CudaError> {
        let bridge = self.bridge();
        // SAFETY: as above.
        checked(bridge, "memory_limit", |error| unsafe { (bridge.memory_limit)(device as i32, bytes, error) })
    }

    /// The memory of the device, and what this process has of it.
    ///
    /// # Errors
    /// What the driver says.
    pub fn memory(self, device: u32) -> Result<DeviceMemory, CudaError> {
        let bridge = self.bridge();
        let mut memory = DeviceMemory::default();
        // SAFETY: the pointer is valid for writes.
        checked(bridge, "memory_read", |error| unsafe { (bridge.memory_read)(device as i32, &raw mut memory, error) })?;
        Ok(memory)
    }

    /// Gives memory that libtorch keeps and no tensor uses back to the device.
    ///
    /// # Errors
    /// What the driver says.
    pub fn release_memory(self, device: u32) -> Result<(), CudaError> {
        let bridge = self.bridge();
        // SAFETY: as above.
        checked(bridge, "memory_release", |error| unsafe { (bridge.memory_release)(device as i32, error) })
    }

    /// What has crossed between host and devices, and what has run, as far as it is counted.
    pub fn counts(self) -> Counts {
        let mut counts = Counts::default();
        // SAFETY: the pointer is valid for writes.
        unsafe { (self.bridge().counts)(&raw mut counts) };
        counts
    }
}

/// A text in an array, which ends at the first zero.
fn text(array: &[c_char]) -> String {
    let bytes: Vec<u8> = array.iter().map(|&byte| byte as u8).collect();
    CStr::from_bytes_until_nul(&bytes).map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_ends_at_its_first_zero_or_is_empty() {
        assert_eq!(text(&[b'a' as c_char, b'b' as c_char, 0, b'c' as c_char]), "ab");
        assert_eq!(text(&[b'a' as c_char]), "");
    }

    #[test]
    fn capabilities_are_ordered_by_major_then_minor() {
        let capability = |major, minor| Capability { major, minor };
        assert!(capability(7, 5) < capability(8, 0) && capability(8, 9) < capability(9, 0));
        assert_eq!(capability(12, 0).to_string(), "12.0");
    }
}
