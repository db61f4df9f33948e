// What happens when CUDA is loaded after a gradient has been computed: libtorch has counted the devices already.
//
//   late LIBRARY          loads the fake device, then computes a gradient on it
//   late LIBRARY after    computes a gradient on the CPU before; fails with libtorch's message
#include <ATen/TensorOperators.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/relu.h>
#include <torch/csrc/autograd/autograd.h>

#include <dlfcn.h>
#include <exception>
#include <iostream>

namespace {

float gradient(c10::Device device) {
  const at::Tensor x = at::ones({3}).to(device).requires_grad_(true);
  const at::Tensor y = at::relu(x * 2).sum();
  return torch::autograd::grad({y}, {x})[0].sum().item<float>();
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc > 2) gradient(at::kCPU);
  if (argc < 2 || dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    std::cerr << dlerror() << std::endl;
    return 2;
  }
  std::cout << gradient(c10::Device(at::kCUDA, 0)) << std::endl;
} catch (const std::exception& error) {
  std::cerr << error.what() << std::endl;
  return 1;
}
