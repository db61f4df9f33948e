// The twin of the device: the kernels' source compiled for the host. It proves geometry, bounds and arithmetic without
// a card. twin.cpp is compiled with -ffp-contract=off. This header needs nothing of libtorch.
#pragma once
#include "kernel.h"

#include <cstdint>
#include <vector>

namespace camlens::cuda {

// In which order the threads of a block run between two barriers.
enum class ThreadOrder : int32_t { ASCENDING, DESCENDING };

// Runs a kernel on the calling thread: all blocks, and all threads of a block from barrier to barrier. `arguments` has
// a pointer to each argument, as for `cuLaunchKernel`, of the types of `twin_parameters`. Dynamic shared memory is a
// heap block of that size, NaN when a block begins. False if some threads of a block reach a barrier and others do not,
// or if the kernel has a barrier of which the twin does not know.
bool run_twin(Kernel kernel, Element element, uint32_t grid, uint32_t block, uint32_t shared_bytes, void** arguments,
              ThreadOrder order = ThreadOrder::ASCENDING);

// The parameters of a kernel, which are the same for each element.
std::vector<Parameter> twin_parameters(Kernel kernel);

}  // namespace camlens::cuda
