// Compiles the kernels with NVRTC as camlens does at run time, for cards of several generations, which needs neither a
// card nor a driver. Prints the registers of each kernel; warnings, spilled registers, missing kernels, and
// elementwise kernels that do not load and store whole packs are failures.
//
//   nvrtc_test LIBNVRTC
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <future>
#include <map>
#include <regex>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../src/torch/cuda/kernels/kernel.h"
#include "../../src/torch/cuda/kernels/source.h"

namespace cuda = camlens::cuda;

namespace {

const std::vector<std::string> ARCHITECTURES = {"sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"};

void require(bool holds, const std::string& sentence) {
  if (!holds) throw std::runtime_error(sentence);
}

// The functions of libnvrtc that are used; 0 is success.
struct Nvrtc {
  typedef struct Program_* Program;
  int (*create)(Program* program, const char* text, const char* name, int headers, const char* const* texts,
                const char* const* names);
  int (*compile)(Program program, int count, const char* const* options);
  int (*log_size)(Program program, size_t* bytes);
  int (*log)(Program program, char* text);
  int (*ptx_size)(Program program, size_t* bytes);
  int (*ptx)(Program program, char* text);
  int (*cubin_size)(Program program, size_t* bytes);
  int (*destroy)(Program* program);

  explicit Nvrtc(const char* path) {
    void* const library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    require(library != nullptr, library == nullptr ? dlerror() : "");
    find(library, "nvrtcCreateProgram", create);
    find(library, "nvrtcCompileProgram", compile);
    find(library, "nvrtcGetProgramLogSize", log_size);
    find(library, "nvrtcGetProgramLog", log);
    find(library, "nvrtcGetPTXSize", ptx_size);
    find(library, "nvrtcGetPTX", ptx);
    find(library, "nvrtcGetCUBINSize", cubin_size);
    find(library, "nvrtcDestroyProgram", destroy);
  }

 private:
  template <typename Function>
  static void find(void* library, const char* name, Function*& function) {
    function = reinterpret_cast<Function*>(dlsym(library, name));
    require(function != nullptr, std::string(name) + " is missing");
  }
};

struct Compiled {
  bool has_succeeded;
  std::string log, ptx;
  size_t cubin_bytes;
};

// Compiles the kernels, followed by `more`.
Compiled compile(const Nvrtc& nvrtc, const std::string& architecture, const std::string& more) {
  const std::string text = cuda::PROGRAM.text + more;
  std::vector<const char*> texts, names, options;
  for (const cuda::SourceFile& header : cuda::HEADERS) {
    texts.push_back(header.text);
    names.push_back(header.name);
  }
  const std::string target = "--gpu-architecture=" + architecture;
  options.assign(std::begin(cuda::OPTIONS), std::end(cuda::OPTIONS));
  options.insert(options.end(), {target.c_str(), "--ptxas-options=--verbose"});
  Nvrtc::Program program;
  require(nvrtc.create(&program, text.c_str(), cuda::PROGRAM.name, static_cast<int>(texts.size()), texts.data(),
                       names.data()) == 0,
          "NVRTC takes no program");
  Compiled compiled = {};
  compiled.has_succeeded = nvrtc.compile(program, static_cast<int>(options.size()), options.data()) == 0;
  size_t bytes = 0;
  require(nvrtc.log_size(program, &bytes) == 0, "NVRTC has no log");
  compiled.log.resize(bytes);
  require(nvrtc.log(program, compiled.log.data()) == 0, "NVRTC has no log");
  if (compiled.has_succeeded) {
    require(nvrtc.ptx_size(program, &bytes) == 0, "NVRTC has no PTX");
    compiled.ptx.resize(bytes);
    require(nvrtc.ptx(program, compiled.ptx.data()) == 0, "NVRTC has no PTX");
    require(nvrtc.cubin_size(program, &compiled.cubin_bytes) == 0, "NVRTC has no cubin");
  }
  nvrtc.destroy(&program);
  return compiled;
}

// What the assembler says about a function.
struct Usage {
  int registers, stack_bytes, spilled_bytes;
};

// By the functions' names.
std::map<std::string, Usage> usages(const std::string& log) {
  const std::regex entry("entry function '(\\w+)'"),
      stack("(\\d+) bytes stack frame, (\\d+) bytes spill stores, (\\d+) bytes spill loads"),
      registers("Used (\\d+) registers");
  std::map<std::string, Usage> found;
  Usage* usage = nullptr;
  size_t begin = 0;
  while (begin < log.size()) {
    const size_t end = std::min(log.find('\n', begin), log.size());
    const std::string line = log.substr(begin, end - begin);
    begin = end + 1;
    std::smatch match;
    if (std::regex_search(line, match, entry)) usage = &(found[match[1]] = Usage{-1, -1, -1});
    if (usage == nullptr) continue;
    if (std::regex_search(line, match, stack)) {
      usage->stack_bytes = std::stoi(match[1]);
      usage->spilled_bytes = std::stoi(match[2]) + std::stoi(match[3]);
    }
    if (std::regex_search(line, match, registers)) usage->registers = std::stoi(match[1]);
  }
  return found;
}

// The text of a function in PTX.
std::string body(const std::string& ptx, const std::string& function) {
  const size_t begin = ptx.find(".entry " + function + "(");
  require(begin != std::string::npos, function + " is not in the PTX");
  return ptx.substr(begin, ptx.find("\n}", begin) - begin);
}

bool has(const std::string& text, const char* pattern) { return std::regex_search(text, std::regex(pattern)); }

// The registers of each function for one architecture.
std::map<std::string, int> check(const Nvrtc& nvrtc, const std::string& architecture) {
  const Compiled compiled = compile(nvrtc, architecture, "");
  require(compiled.has_succeeded && compiled.cubin_bytes != 0, architecture + " fails:\n" + compiled.log);
  require(compiled.log.find("warning") == std::string::npos, architecture + " has warnings:\n" + compiled.log);
  const std::map<std::string, Usage> found = usages(compiled.log);
  std::map<std::string, int> registers;
  for (int32_t kernel = 0; kernel < cuda::KERNEL_COUNT; ++kernel) {
    for (int32_t element = 0; element < cuda::ELEMENT_COUNT; ++element) {
      const cuda::Kernel id = static_cast<cuda::Kernel>(kernel);
      const std::string name = cuda::function_name(id, static_cast<cuda::Element>(element));
      const auto usage = found.find(name);
      require(usage != found.end(), architecture + ": nothing is said about " + name + ":\n" + compiled.log);
      require(usage->second.stack_bytes == 0 && usage->second.spilled_bytes == 0 && usage->second.registers > 0,
              architecture + ": " + name + " spills registers:\n" + compiled.log);
      registers[name] = usage->second.registers;
      if (id != cuda::Kernel::GATE && id != cuda::Kernel::SUM && id != cuda::Kernel::EPILOGUE) continue;
      const std::string text = body(compiled.ptx, name);
      require(has(text, R"(ld\.global(\.nc)?\.(v4\.[buf]32|v2\.[bu]64|b128))") &&
                  has(text, R"(st\.global\.(v4\.[buf]32|v2\.[bu]64|b128))"),
              architecture + ": " + name + " does not load and store whole packs:\n" + text);
    }
  }
  return registers;
}

void run(const char* library) {
  const Nvrtc nvrtc(library);
  std::map<std::string, std::vector<int>> table;
  std::vector<std::future<std::map<std::string, int>>> checks;
  for (const std::string& architecture : ARCHITECTURES) {
    checks.push_back(std::async(std::launch::async, check, std::cref(nvrtc), architecture));
  }
  for (auto& result : checks) {
    for (const auto& [name, registers] : result.get()) table[name].push_back(registers);
  }
  std::printf("%-32s", "registers");
  for (const std::string& architecture : ARCHITECTURES) std::printf("%8s", architecture.c_str());
  std::printf("\n");
  for (const auto& [name, counts] : table) {
    std::printf("%-32s", name.c_str());
    for (const int count : counts) std::printf("%8d", count);
    std::printf("\n");
  }

  // Planted: what is wrong with these is seen.
  const Compiled planted = compile(nvrtc, "sm_90", R"(
    extern "C" __global__ void planted(int* numbers, int index) {
      int unused;
      int local[64];
      for (int i = 0; i < index; ++i) local[numbers[i]] = i;
      numbers[0] = local[index];
    })");
  require(planted.has_succeeded && usages(planted.log)["planted"].stack_bytes > 0, "local arrays are not seen");
  require(planted.log.find("warning") != std::string::npos, "warnings are not seen");
  require(!compile(nvrtc, "sm_90", "extern int x").has_succeeded, "errors are not seen");
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) {
    std::printf("usage: nvrtc_test LIBNVRTC\n");
    return 2;
  }
  try {
    run(arguments[1]);
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
  return 0;
}
