// Controls of the fake CUDA device, for tests in the same process. For a process that is only started, the same ones
// are environment variables, which are read once:
//
//   FAKE_CUDA_DEVICES=N           number of devices; 1
//   FAKE_CUDA_MEMORY=BYTES        memory of each device; 8 GiB
//   FAKE_CUDA_FAIL_ALLOCATION=N   the N-th allocation from the beginning fails
//   FAKE_CUDA_BREAK_AFTER=N       the devices fail every call once N kernels have run
//   FAKE_CUDA_SLOW_NS=N           each kernel and copy takes at least N nanoseconds of the device's time
//   FAKE_CUDA_POLLS=N             work that nobody waits for is over at the N-th query; 3
//   FAKE_CUDA_POISON=0            memory that is freed keeps its bytes
//   FAKE_CUDA_ALLOW_TF32=1        TF32 is no violation
//   FAKE_CUDA_STRICT=1            the first violation ends the process
//   FAKE_CUDA_REPORT=PATH         when the process ends, counters and violations are written there, as JSON
#pragma once
#include <cstddef>
#include <cstdint>

extern "C" {

// The memory of each device, in bytes.
void fake_cuda_memory(uint64_t bytes);
// The `nth` allocation of device memory from now fails; 1 is the next one, 0: none.
void fake_cuda_fail_allocation(uint64_t nth);
// With true, everything that is asked of a device fails, until false.
void fake_cuda_break(bool is_broken);
// The devices fail every call once `kernels` more kernels have run; 0: never.
void fake_cuda_break_after(uint64_t kernels);
// At least so much of the device's time passes in each kernel and copy.
void fake_cuda_slow(uint64_t ns);
// Work that nobody waits for is over at this query.
void fake_cuda_polls(uint64_t queries);
void fake_cuda_allow_tf32(bool is_allowed);

// What the program has done wrong: returns the number of violations. The text, one violation a line, is cut at `size`
// bytes, which include the zero at its end.
size_t fake_cuda_violations(char* text, size_t size);
void fake_cuda_forget_violations();
}
