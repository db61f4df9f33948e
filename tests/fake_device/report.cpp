#include "report.h"

#include "fake_device.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <mutex>
#include <vector>

#define EXPORTED __attribute__((visibility("default")))

namespace fake {
namespace {

constexpr size_t MOST_VIOLATIONS = 1000;
// As CUDA numbers it: cudaErrorIllegalAddress.
constexpr int32_t ILLEGAL_ADDRESS = 700;

struct Violations {
  std::mutex lock;
  std::vector<std::string> texts;
};

// Objects that are needed until the process ends are never destroyed.
Violations& violations() {
  static Violations& all = *new Violations;
  return all;
}

std::atomic<bool> are_broken{false};

const bool is_report_registered = std::atexit(write_report) == 0;

uint64_t number(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr || *text == '\0' ? otherwise : std::strtoull(text, nullptr, 10);
}

std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') result += '\\';
    result += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
  }
  return result + '"';
}

}  // namespace

void write_report() {
  if (settings().report.empty()) return;
  const Counters& counts = counters();
  std::ofstream file(settings().report);
  file << "{\"copies_to_device\": " << counts.copies_to_device << ", \"copies_to_host\": " << counts.copies_to_host
       << ", \"kernels\": " << counts.kernels << ", \"graph_launches\": " << counts.graph_launches
       << ", \"synchronizations\": " << counts.synchronizations << ", \"allocations\": " << counts.allocations
       << ", \"allocated_bytes\": " << counts.allocated_bytes << ", \"peak_bytes\": " << counts.peak_bytes
       << ", \"peak_reserved_bytes\": " << counts.peak_reserved_bytes
       << ", \"is_broken\": " << (are_broken ? "true" : "false") << ", \"violations\": [";
  const std::lock_guard<std::mutex> hold(violations().lock);
  for (size_t at = 0; at < violations().texts.size(); ++at)
    file << (at == 0 ? "" : ", ") << quoted(violations().texts[at]);
  file << "]}\n";
}

Settings& settings() {
  static Settings& all = *[] {
    auto* const read = new Settings;
    read->devices = static_cast<int>(number("FAKE_CUDA_DEVICES", 1));
    read->is_poisoning = number("FAKE_CUDA_POISON", 1) != 0;
    read->is_strict = number("FAKE_CUDA_STRICT", 0) != 0;
    const char* report = std::getenv("FAKE_CUDA_REPORT");
    read->report = report == nullptr ? "" : report;
    read->memory = number("FAKE_CUDA_MEMORY", uint64_t{8} << 30);
    read->fail_allocation = number("FAKE_CUDA_FAIL_ALLOCATION", 0);
    read->break_after = number("FAKE_CUDA_BREAK_AFTER", 0);
    read->slow_ns = number("FAKE_CUDA_SLOW_NS", 0);
    read->polls = number("FAKE_CUDA_POLLS", 3);
    read->allows_tf32 = number("FAKE_CUDA_ALLOW_TF32", 0) != 0;
    return read;
  }();
  return all;
}

Counters& counters() {
  static Counters& all = *new Counters;
  return all;
}

void count_kernel() {
  const uint64_t kernels = ++counters().kernels;
  const uint64_t last = settings().break_after;
  if (last != 0 && kernels >= last) are_broken = true;
}

void check_devices() {
  if (!are_broken) return;
  throw c10::AcceleratorError({__func__, __FILE__, static_cast<uint32_t>(__LINE__)}, ILLEGAL_ADDRESS,
                              "CUDA error: an illegal memory access was encountered");
}

void record_violation(const std::string& what) {
  {
    const std::lock_guard<std::mutex> hold(violations().lock);
    if (violations().texts.size() < MOST_VIOLATIONS) violations().texts.push_back(what);
  }
  if (!settings().is_strict) return;
  std::fprintf(stderr, "fake CUDA device: %s\n", what.c_str());
  write_report();
  std::abort();
}

void violation(const std::string& what) {
  record_violation(what);
  TORCH_CHECK(false, "fake CUDA device: ", what);
}

}  // namespace fake

extern "C" {

EXPORTED void fake_cuda_memory(uint64_t bytes) { fake::settings().memory = bytes; }
EXPORTED void fake_cuda_fail_allocation(uint64_t nth) {
  fake::settings().fail_allocation = nth == 0 ? 0 : fake::counters().allocations + nth;
}
EXPORTED void fake_cuda_break(bool is_broken) { fake::are_broken = is_broken; }
EXPORTED void fake_cuda_break_after(uint64_t kernels) {
  fake::settings().break_after = kernels == 0 ? 0 : fake::counters().kernels + kernels;
}
EXPORTED void fake_cuda_slow(uint64_t ns) { fake::settings().slow_ns = ns; }
EXPORTED void fake_cuda_polls(uint64_t queries) { fake::settings().polls = queries; }
EXPORTED void fake_cuda_allow_tf32(bool is_allowed) { fake::settings().allows_tf32 = is_allowed; }

EXPORTED size_t fake_cuda_violations(char* text, size_t size) {
  const std::lock_guard<std::mutex> hold(fake::violations().lock);
  std::string all;
  for (const std::string& one : fake::violations().texts) all += one + "\n";
  if (size > 0) {
    const size_t length = std::min(size - 1, all.size());
    std::memcpy(text, all.data(), length);
    text[length] = '\0';
  }
  return fake::violations().texts.size();
}

EXPORTED void fake_cuda_forget_violations() {
  const std::lock_guard<std::mutex> hold(fake::violations().lock);
  fake::violations().texts.clear();
}
}
