// How a kernel is launched: on a CUDA device by its driver, on the fake device of the tests by the twin (twin.h).
#pragma once
#include "kernel.h"

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace camlens::cuda {

// One-dimensional. None of the numbers is 0 but that of the bytes.
struct Geometry {
  // Blocks, and threads of a block.
  uint32_t grid, block;
  // Dynamic shared memory of a block.
  uint32_t shared_bytes;
};

// What a kernel does with a tensor's elements. It touches no memory of the tensor's storage outside the view.
enum class Access : int32_t { READ, WRITE, READ_WRITE };

// One argument of a kernel.
struct Argument {
  Parameter kind;
  // For a pointer: the tensor whose first element is pointed to; undefined for a null pointer.
  at::Tensor tensor;
  Access access;
  // For numbers.
  int64_t integer;
  float number;

  static Argument read(const at::Tensor& tensor) { return {Parameter::POINTER, tensor, Access::READ, 0, 0.0f}; }
  static Argument written(const at::Tensor& tensor) { return {Parameter::POINTER, tensor, Access::WRITE, 0, 0.0f}; }
  static Argument updated(const at::Tensor& tensor) {
    return {Parameter::POINTER, tensor, Access::READ_WRITE, 0, 0.0f};
  }
  static Argument none() { return read(at::Tensor()); }
  static Argument of(int64_t value) { return {Parameter::INT64, {}, Access::READ, value, 0.0f}; }
  static Argument of(float value) { return {Parameter::FLOAT32, {}, Access::READ, 0, value}; }
};

// Arguments as `cuLaunchKernel` and `run_twin` take them. The tensors must outlive it.
class PackedArguments {
 public:
  explicit PackedArguments(const std::vector<Argument>& arguments);
  PackedArguments(const PackedArguments&) = delete;
  PackedArguments& operator=(const PackedArguments&) = delete;

  // One pointer to each value. Valid as long as this.
  void** data() { return pointers_.data(); }

 private:
  union Value {
    const void* pointer;
    int64_t integer;
    float number;
  };
  std::vector<Value> values_;
  std::vector<void*> pointers_;
};

class Launcher {
 public:
  virtual ~Launcher() = default;

  // The type of the devices whose memory its kernels can address; tensors on another one are refused.
  virtual c10::DeviceType device_type() const = 0;

  // Queues a kernel on the current stream of the device on which the tensors are, all on one. Memory of the tensors is
  // not reused for work on another stream before the kernel has run, or the caller sees to that. Throws if the device
  // refuses.
  virtual void launch(Kernel kernel, Element element, const Geometry& geometry,
                      const std::vector<Argument>& arguments) = 0;
};

}  // namespace camlens::cuda
