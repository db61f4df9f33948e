// camlens's kernels on CUDA devices: compiled by NVRTC for the devices that are there.
#pragma once
#include <cuda_runtime_api.h>

#include <array>
#include <atomic>
#include <map>
#include <mutex>

#include "kernels/launcher.h"

namespace camlens {

class DeviceKernels final : public cuda::Launcher {
 public:
  // Compiles the kernels for a device, or reads them from `folder`, which may be null, and keeps them there.
  void prepare(c10::DeviceIndex device, const char* folder);

  c10::DeviceType device_type() const override { return c10::DeviceType::CUDA; }
  void launch(cuda::Kernel kernel, cuda::Element element, const cuda::Geometry& geometry,
              const std::vector<cuda::Argument>& arguments) override;

  uint64_t launched() const { return launched_; }

 private:
  using Functions = std::array<std::array<cudaKernel_t, cuda::ELEMENT_COUNT>, cuda::KERNEL_COUNT>;

  std::mutex lock_;
  // By compute capability, 90 for 9.0. An entry stays as it is.
  std::map<int, Functions> functions_;
  std::array<std::atomic<const Functions*>, 64> of_device_{};
  std::atomic<uint64_t> launched_{0};
};

DeviceKernels& device_kernels();

}  // namespace camlens
