// Work of a stream: an operator, a kernel or a copy.
#pragma once
#include "memory.h"
#include "streams.h"

#include <functional>
#include <mutex>
#include <string>
#include <vector>

namespace fake {

enum class Kind { KERNEL, COPY_TO_DEVICE, COPY_TO_HOST };

// Bytes that work reads or writes.
struct Use {
  BlockPointer block;
  // The tenant of the block for whom the work is.
  uint64_t generation;
  uintptr_t begin, end;
  bool is_write;
};

// The bytes from `begin` to `end` of the block that is there now. Throws if there is none.
Use use_of(const void* begin, const void* end, bool is_write);

// Computes, with the memory open, as that step of that stream.
using Body = std::function<void(const Stream& stream, uint64_t step)>;

struct Work {
  const std::string* what;
  Kind kind;
  std::vector<Use> uses;
  Body body;
};

// Work while it runs: its memory is open.
class Running {
 public:
  // Takes the memory, except that of results that do not exist yet. Throws if other work may touch it now, or if
  // nothing has written what is read.
  Running(Stream& stream, const std::string* what, Kind kind, std::vector<Use> uses);
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;
  ~Running();

  // A result, in memory that is new.
  void add_result(const Use& use);

  const Stream& stream() const { return stream_; }
  uint64_t step() const { return step_; }

  // Whether the work belongs to a capture; then it must be kept, with what a launch computes.
  bool is_captured() const { return capture_ != nullptr; }
  void keep(Body body);

 private:
  void check(const Use& use, uint64_t step) const;
  void take(const Use& use);

  Stream& stream_;
  std::unique_lock<std::recursive_mutex> hold_;
  const std::string* what_;
  Kind kind_;
  std::vector<Use> uses_;
  Capture* capture_ = nullptr;
  uint64_t step_ = 0;
  size_t opened_ = 0;
  Time queued_;
};

}  // namespace fake
