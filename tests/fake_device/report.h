// What tests set and read: settings, counters, and what the program has done wrong.
#pragma once
#include <atomic>
#include <cstdint>
#include <string>

namespace fake {

struct Settings {
  int devices;
  bool is_poisoning, is_strict;
  std::string report;
  std::atomic<uint64_t> memory, fail_allocation, break_after, slow_ns, polls;
  std::atomic<bool> allows_tf32;
};

// From the environment, at the first call.
Settings& settings();

struct Counters {
  std::atomic<uint64_t> copies_to_device{0}, copies_to_host{0}, kernels{0}, graph_launches{0}, synchronizations{0};
  // Bytes: of all devices together now, and the most of one device.
  std::atomic<uint64_t> allocations{0}, allocated_bytes{0}, peak_bytes{0}, peak_reserved_bytes{0};
};

Counters& counters();

// Writes the counters and violations to FAKE_CUDA_REPORT.
void write_report();

// Counts a kernel; the one that FAKE_CUDA_BREAK_AFTER names breaks the devices.
void count_kernel();

// Throws if the devices are broken.
void check_devices();

// Keeps the violation; with FAKE_CUDA_STRICT it is the process's end.
void record_violation(const std::string& what);

// The same, and throws it.
[[noreturn]] void violation(const std::string& what);

}  // namespace fake
