#include "source.h"

// The assembler copies the files into the object file. CAMLENS_CUDA_KERNELS is their folder.
#define CAMLENS_EMBED(name)                       \
  asm(".pushsection .rodata\n"                    \
      ".hidden camlens_cuda_" #name               \
      "\n"                                        \
      ".global camlens_cuda_" #name               \
      "\n"                                        \
      "camlens_cuda_" #name                       \
      ":\n"                                       \
      ".incbin \"" CAMLENS_CUDA_KERNELS "/" #name \
      ".cuh\"\n"                                  \
      ".byte 0\n"                                 \
      ".popsection\n");                           \
  extern "C" __attribute__((visibility("hidden"))) const char camlens_cuda_##name[];

CAMLENS_EMBED(cam)
CAMLENS_EMBED(element)
CAMLENS_EMBED(elementwise)
CAMLENS_EMBED(fuse)
CAMLENS_EMBED(geometry)
CAMLENS_EMBED(kernels)
CAMLENS_EMBED(normalize)
CAMLENS_EMBED(portable)

namespace camlens::cuda {

const SourceFile PROGRAM = {"kernels.cuh", camlens_cuda_kernels};

const SourceFile HEADERS[HEADER_COUNT] = {
    {"cam.cuh", camlens_cuda_cam},
    {"element.cuh", camlens_cuda_element},
    {"elementwise.cuh", camlens_cuda_elementwise},
    {"fuse.cuh", camlens_cuda_fuse},
    {"geometry.cuh", camlens_cuda_geometry},
    {"normalize.cuh", camlens_cuda_normalize},
    {"portable.cuh", camlens_cuda_portable},
};

const char* const OPTIONS[OPTION_COUNT] = {"--std=c++17", "--fmad=false", "--device-as-default-execution-space"};

}  // namespace camlens::cuda
