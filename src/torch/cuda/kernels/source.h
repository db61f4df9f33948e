// The kernels' source, for NVRTC to compile for the card that is there. This header needs nothing of libtorch or CUDA.
#pragma once
#include <cstddef>

namespace camlens::cuda {

// A file of the source. `text` ends in a zero.
struct SourceFile {
  const char* name;
  const char* text;
};

// What `nvrtcCreateProgram` takes: the program, and the headers that it includes, by name.
extern const SourceFile PROGRAM;
constexpr size_t HEADER_COUNT = 7;
extern const SourceFile HEADERS[HEADER_COUNT];

// Options for `nvrtcCompileProgram`, beside `--gpu-architecture`. Products and sums are not contracted, so the results
// are those of the twin. Lambdas are functions of the device.
constexpr size_t OPTION_COUNT = 3;
extern const char* const OPTIONS[OPTION_COUNT];

}  // namespace camlens::cuda
