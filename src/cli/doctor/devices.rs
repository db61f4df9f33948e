//! `camlens doctor --devices`: the devices that could run models, and why others cannot.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::cli::terminal::Ink;
use crate::resources::{Machine, Resources};
use crate::torch::cuda::{self, Cuda, CudaDevice, CudaError, DeviceMemory};
use crate::torch::{has_bfloat16, has_gemm_kernels};

/// What was found.
#[derive(Debug)]
pub struct DeviceReport {
    processor: Resources,
    cuda: Result<CudaReport, CudaError>,
}

#[derive(Debug)]
struct CudaReport {
    /// As 13000 for 13.0.
    driver: u32,
    devices: Vec<(CudaDevice, Result<DeviceMemory, CudaError>)>,
}

impl DeviceReport {
    /// Looks for devices; CUDA's libraries are loaded from `libraries`, or from where the dynamic linker finds them.
    pub fn find(libraries: &[PathBuf]) -> Self {
        let cuda = cuda::load(libraries).and_then(CudaReport::of);
        DeviceReport { processor: Machine::this().resources(), cuda }
    }

    /// For people, ending in a line break.
    pub fn text(&self, ink: Ink) -> String {
        let Resources { processors, quota, .. } = self.processor;
        let quota = quota.map_or(String::new(), |quota| format!(", of which a quota grants {quota}"));
        let memory = gibibytes(self.processor.memory());
        let bfloat16 = if has_bfloat16() { "bfloat16" } else { "no bfloat16" };
        let mut text = format!("{}  {processors} processors{quota}, {memory}, {bfloat16}\n", ink.bold("cpu"));
        match &self.cuda {
            Err(error) => {
                text += &format!("{}  cannot be used: {error}\n", ink.bold("cuda"));
                text += &advice(error).map_or(String::new(), |advice| format!("      {advice}\n"));
            }
            Ok(CudaReport { driver, devices }) => {
                let version = format!("{}.{}", driver / 1000, driver % 1000 / 10);
                text += &format!("{}  the driver has CUDA {version}\n", ink.bold("cuda"));
                for (device, memory) in devices {
                    text +=
                        &format!("{}  {}\n", ink.bold(&format!("cuda:{}", device.index)), described(device, memory));
                }
            }
        }
        text
    }

    pub fn json(&self) -> Value {
        let Resources { processors, quota, .. } = self.processor;
        let cuda = match &self.cuda {
            Err(error) => json!({ "problem": error.to_string(), "advice": advice(error), "devices": [] }),
            Ok(CudaReport { driver, devices }) => {
                json!({ "driver": driver, "devices": devices.iter().map(device_json).collect::<Vec<_>>() })
            }
        };
        json!({
            "cpu": {
                "processors": processors,
                "quota": quota,
                "memory_bytes": self.processor.memory(),
                "bfloat16": has_bfloat16(),
                "own_kernels": has_gemm_kernels(tch::Kind::Float),
            },
            "cuda": cuda,
        })
    }
}

impl CudaReport {
    fn of(cuda: Cuda) -> Result<Self, CudaError> {
        let devices = cuda.devices()?;
        let (_, driver) = cuda.count()?;
        let with_memory = |device: CudaDevice| {
            let memory = cuda.check(device.index).and_then(|()| cuda.memory(device.index));
            (device, memory)
        };
        Ok(CudaReport { driver, devices: devices.into_iter().map(with_memory).collect() })
    }
}

fn described(device: &CudaDevice, memory: &Result<DeviceMemory, CudaError>) -> String {
    let CudaDevice { name, capability, multiprocessors, is_mig, uses_mps, .. } = device;
    let memory = match memory {
        Ok(memory) => format!("{} of {} free", gibibytes(memory.free_bytes), gibibytes(memory.total_bytes)),
        Err(error) => format!("does not work: {error}"),
    };
    let mut text = format!("{name}, compute capability {capability}, {multiprocessors} multiprocessors, {memory}");
    if *is_mig {
        text += ", a slice of a card (MIG)";
    }
    if *uses_mps {
        text += ", shared through MPS";
    }
    text
}

fn device_json((device, memory): &(CudaDevice, Result<DeviceMemory, CudaError>)) -> Value {
    let CudaDevice { index, name, uuid, total_bytes, capability, multiprocessors, is_mig, uses_mps } = device;
    let (free_bytes, problem) = match memory {
        Ok(memory) => (Some(memory.free_bytes), None),
        Err(error) => (None, Some(error.to_string())),
    };
    json!({
        "name": format!("cuda:{index}"),
        "model": name,
        "uuid": uuid,
        "memory_bytes": total_bytes,
        "free_bytes": free_bytes,
        "compute_capability": capability.to_string(),
        "multiprocessors": multiprocessors,
        "mig": is_mig,
        "mps": uses_mps,
        "problem": problem,
    })
}

/// What to do about it, where the error does not say.
fn advice(error: &CudaError) -> Option<&'static str> {
    match error {
        CudaError::NoDriver => Some(
            "install the NVIDIA driver on the host; in a container, ask for the GPU (nvidia.com/gpu, --gpus all) so \
             that the NVIDIA container toolkit passes the driver in",
        ),
        CudaError::NoDevice { .. } => {
            Some("CUDA_VISIBLE_DEVICES may hide the devices, or the container was not given one (nvidia.com/gpu)")
        }
        CudaError::Unloadable { .. } => Some(
            "a library that it needs is missing or of another version: camlens needs those of PyTorch 2.11 for CUDA 13",
        ),
        CudaError::Missing { .. }
        | CudaError::OtherVersion { .. }
        | CudaError::NoSuchDevice { .. }
        | CudaError::Lost(_)
        | CudaError::Failed(_) => None,
    }
}

fn gibibytes(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(cuda: Result<CudaReport, CudaError>) -> DeviceReport {
        let processor = Resources { processors: 4, quota: Some(1.5), memory: 8 << 30, memory_limit: Some(2 << 30) };
        DeviceReport { processor, cuda }
    }

    #[test]
    fn a_machine_without_cuda_says_why_and_what_to_do() {
        let text = report(Err(CudaError::NoDriver)).text(Ink::plain());
        assert!(text.contains("4 processors, of which a quota grants 1.5, 2.0 GiB"), "{text}");
        assert!(text.contains("cannot be used: there is no NVIDIA driver"), "{text}");
        assert!(text.contains("nvidia.com/gpu"), "{text}");
        let json = report(Err(CudaError::NoDevice { driver: 12_080 })).json();
        assert!(json["cuda"]["problem"].as_str().is_some_and(|problem| problem.contains("CUDA 12.8")), "{json}");
        assert_eq!(json["cuda"]["devices"], json!([]));
    }

    #[test]
    fn devices_are_described_with_what_works() {
        let device = |index, is_mig| CudaDevice {
            index,
            name: "NVIDIA H200".into(),
            uuid: "GPU-1".into(),
            total_bytes: 141 << 30,
            capability: cuda::Capability { major: 9, minor: 0 },
            multiprocessors: 132,
            is_mig,
            uses_mps: !is_mig,
        };
        let memory = DeviceMemory { free_bytes: 100 << 30, total_bytes: 141 << 30, ..DeviceMemory::default() };
        let devices = vec![(device(0, false), Ok(memory)), (device(1, true), Err(CudaError::Lost("fell off".into())))];
        let report = report(Ok(CudaReport { driver: 13_000, devices }));
        let text = report.text(Ink::plain());
        let expected = "cuda:0  NVIDIA H200, compute capability 9.0, 132 multiprocessors, 100.0 GiB of 141.0 GiB free, \
                        shared through MPS";
        assert!(text.contains("the driver has CUDA 13.0") && text.contains(expected), "{text}");
        assert!(text.contains("does not work") && text.contains("a slice of a card (MIG)"), "{text}");
        let json = report.json();
        assert_eq!(json["cuda"]["devices"][0]["free_bytes"], json!(100u64 << 30));
        assert!(json["cuda"]["devices"][1]["problem"].is_string());
    }
}
