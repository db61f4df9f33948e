#include "device_kernels.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>
#include <dlfcn.h>
#include <nvrtc.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>

#include "kernels/source.h"

namespace camlens {
namespace {

// NVRTC, loaded when a kernel is to be compiled: from where the dynamic linker looks, or from beside PyTorch, whose
// wheels keep it in a folder of its own.
class Nvrtc {
 public:
  Nvrtc() {
    const char* const name = "libnvrtc.so.13";
    library_ = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    Dl_info torch = {};
    if (library_ == nullptr && dladdr(reinterpret_cast<const void*>(&c10::cuda::getCurrentCUDAStream), &torch) != 0) {
      const std::filesystem::path folder = std::filesystem::path(torch.dli_fname).parent_path();
      for (const char* beside : {"", "../../nvidia/cu13/lib", "../../nvidia/cuda_nvrtc/lib"}) {
        library_ = dlopen((folder / beside / name).c_str(), RTLD_NOW | RTLD_LOCAL);
        if (library_ != nullptr) break;
      }
    }
    TORCH_CHECK(library_ != nullptr, name, " is missing: it belongs to the CUDA libraries of PyTorch");
    find(create, "nvrtcCreateProgram");
    find(compile, "nvrtcCompileProgram");
    find(destroy, "nvrtcDestroyProgram");
    find(cubin_size, "nvrtcGetCUBINSize");
    find(cubin, "nvrtcGetCUBIN");
    find(log_size, "nvrtcGetProgramLogSize");
    find(log, "nvrtcGetProgramLog");
    find(error_text, "nvrtcGetErrorString");
  }

  decltype(&nvrtcCreateProgram) create = nullptr;
  decltype(&nvrtcCompileProgram) compile = nullptr;
  decltype(&nvrtcDestroyProgram) destroy = nullptr;
  decltype(&nvrtcGetCUBINSize) cubin_size = nullptr;
  decltype(&nvrtcGetCUBIN) cubin = nullptr;
  decltype(&nvrtcGetProgramLogSize) log_size = nullptr;
  decltype(&nvrtcGetProgramLog) log = nullptr;
  decltype(&nvrtcGetErrorString) error_text = nullptr;

  void check(nvrtcResult result) const { TORCH_CHECK(result == NVRTC_SUCCESS, "NVRTC: ", error_text(result)); }

 private:
  template <typename Function>
  void find(Function& function, const char* name) {
    function = reinterpret_cast<Function>(dlsym(library_, name));
    TORCH_CHECK(function != nullptr, "NVRTC has no ", name);
  }

  void* library_;
};

std::string compiled(int capability) {
  static const Nvrtc nvrtc;
  const char *texts[cuda::HEADER_COUNT], *names[cuda::HEADER_COUNT];
  for (size_t at = 0; at < cuda::HEADER_COUNT; ++at) {
    texts[at] = cuda::HEADERS[at].text;
    names[at] = cuda::HEADERS[at].name;
  }
  nvrtcProgram program = nullptr;
  nvrtc.check(nvrtc.create(&program, cuda::PROGRAM.text, cuda::PROGRAM.name, cuda::HEADER_COUNT, texts, names));
  const std::string architecture = "--gpu-architecture=sm_" + std::to_string(capability);
  const char* options[cuda::OPTION_COUNT + 1] = {architecture.c_str()};
  for (size_t at = 0; at < cuda::OPTION_COUNT; ++at) options[at + 1] = cuda::OPTIONS[at];
  const nvrtcResult result = nvrtc.compile(program, cuda::OPTION_COUNT + 1, options);
  std::string cubin;
  size_t size = 0;
  if (result == NVRTC_SUCCESS && nvrtc.cubin_size(program, &size) == NVRTC_SUCCESS) {
    cubin.resize(size);
    nvrtc.check(nvrtc.cubin(program, cubin.data()));
  } else if (nvrtc.log_size(program, &size) == NVRTC_SUCCESS) {
    std::string log(size, '\0');
    nvrtc.log(program, log.data());
    TORCH_CHECK(false, "the kernels cannot be compiled for sm_", capability, ": ", log);
  }
  nvrtc.destroy(&program);
  nvrtc.check(result);
  return cubin;
}

// Changes with the source, so that a file of another version is not taken.
uint64_t source_hash() {
  uint64_t hash = 14695981039346656037u;
  const auto add = [&](const char* text) {
    for (; *text != '\0'; ++text) hash = (hash ^ static_cast<unsigned char>(*text)) * 1099511628211u;
  };
  add(cuda::PROGRAM.text);
  for (const auto& header : cuda::HEADERS) add(header.text);
  for (const char* option : cuda::OPTIONS) add(option);
  return hash;
}

std::filesystem::path cached_in(const char* folder, int capability) {
  std::ostringstream name;
  name << "kernels-sm_" << capability << '-' << std::hex << source_hash() << ".cubin";
  return std::filesystem::path(folder) / name.str();
}

// What a file has; empty if it cannot be read.
std::string read(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// Replaces a file as a whole. One that cannot be written costs the next start some time.
void write(const std::filesystem::path& path, const std::string& content) {
  const std::filesystem::path part = path.string() + "." + std::to_string(getpid());
  std::error_code ignored;
  std::ofstream file(part, std::ios::binary);
  file.write(content.data(), static_cast<std::streamsize>(content.size()));
  file.close();
  if (file) {
    std::filesystem::rename(part, path, ignored);
  } else {
    std::filesystem::remove(part, ignored);
  }
}

}  // namespace

void DeviceKernels::prepare(c10::DeviceIndex device, const char* folder) {
  int major = 0, minor = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  const int capability = 10 * major + minor;
  const std::lock_guard<std::mutex> hold(lock_);
  if (functions_.count(capability) == 0) {
    std::string cubin = folder != nullptr ? read(cached_in(folder, capability)) : std::string();
    cudaLibrary_t library = nullptr;
    const auto load = [&] {
      return cudaLibraryLoadData(&library, cubin.data(), nullptr, nullptr, 0, nullptr, nullptr, 0);
    };
    // A damaged file is compiled again.
    if (cubin.empty() || load() != cudaSuccess) {
      cudaGetLastError();
      cubin = compiled(capability);
      C10_CUDA_CHECK(load());
      if (folder != nullptr) write(cached_in(folder, capability), cubin);
    }
    Functions functions{};
    for (int32_t kernel = 0; kernel < cuda::KERNEL_COUNT; ++kernel) {
      for (int32_t element = 0; element < cuda::ELEMENT_COUNT; ++element) {
        const std::string name =
            cuda::function_name(static_cast<cuda::Kernel>(kernel), static_cast<cuda::Element>(element));
        C10_CUDA_CHECK(cudaLibraryGetKernel(&functions[kernel][element], library, name.c_str()));
      }
    }
    functions_[capability] = functions;
  }
  of_device_.at(static_cast<size_t>(device)) = &functions_[capability];
}

void DeviceKernels::launch(cuda::Kernel kernel, cuda::Element element, const cuda::Geometry& geometry,
                           const std::vector<cuda::Argument>& arguments) {
  at::Tensor any;
  for (const auto& argument : arguments) {
    if (argument.tensor.defined()) any = argument.tensor;
  }
  const c10::DeviceIndex device = any.device().index();
  const Functions* const functions = of_device_.at(static_cast<size_t>(device));
  TORCH_CHECK(functions != nullptr, "the kernels are not prepared for cuda:", static_cast<int>(device));
  cuda::PackedArguments packed(arguments);
  const cudaKernel_t function = (*functions)[static_cast<size_t>(kernel)][static_cast<size_t>(element)];
  ++launched_;
  C10_CUDA_CHECK(cudaLaunchKernel(reinterpret_cast<const void*>(function), dim3(geometry.grid), dim3(geometry.block),
                                  packed.data(), geometry.shared_bytes,
                                  c10::cuda::getCurrentCUDAStream(device).stream()));
}

DeviceKernels& device_kernels() {
  static DeviceKernels kernels;
  return kernels;
}

}  // namespace camlens
