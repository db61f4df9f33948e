#include "work.h"

#include "graphs.h"
#include "host.h"
#include "pinned.h"
#include "report.h"

#include <c10/util/Exception.h>

#include <sstream>

namespace fake {
namespace {

const char* kind_of_race(bool was_write, bool is_write) {
  if (!was_write) return "write-after-read";
  return is_write ? "write-after-write" : "read-after-write";
}

std::string place(const Use& use) {
  std::ostringstream text;
  text << (use.block->device < 0 ? "page-locked memory " : "memory ") << "at 0x" << std::hex << use.begin << std::dec
       << " (" << use.end - use.begin << " bytes)";
  return text.str();
}

}  // namespace

Use use_of(const void* begin, const void* end, bool is_write) {
  const std::lock_guard<std::mutex> hold(state_lock());
  const BlockPointer block = block_at(begin);
  TORCH_CHECK(block != nullptr, "CUDA error: invalid argument: not memory of the fake device");
  return {block, block->generation, reinterpret_cast<uintptr_t>(begin), reinterpret_cast<uintptr_t>(end), is_write};
}

Running::Running(Stream& stream, const std::string* what, Kind kind, std::vector<Use> uses)
    : stream_(stream),
      hold_(stream.running),
      what_(what),
      kind_(kind),
      uses_(std::move(uses)),
      queued_(std::chrono::steady_clock::now()) {
  check_devices();
  const std::lock_guard<std::mutex> hold(state_lock());
  if (stream_.is_freed) violation(*what_ + " is queued on " + stream_.name() + ", which has been freed");
  capture_ = stream_.capture;
  if (capture_ != nullptr) {
    capture_->begin_work(uses_);
  } else {
    for (const Use& use : uses_) check(use, stream_.step + 1);
    step_ = ++stream_.step;
    stream_.clock.raise(stream_.index, step_);
    queued_clock().raise(stream_.index, step_);
    if (kind_ == Kind::KERNEL) count_kernel();
    if (kind_ == Kind::COPY_TO_DEVICE) ++counters().copies_to_device;
    if (kind_ == Kind::COPY_TO_HOST) ++counters().copies_to_host;
  }
  for (const Use& use : uses_) take(use);
}

Running::~Running() {
  const std::lock_guard<std::mutex> hold(state_lock());
  for (size_t at = 0; at < opened_; ++at) close(*uses_[at].block);
  if (capture_ == nullptr) pass_time(stream_, queued_);
}

void Running::check(const Use& use, uint64_t step) const {
  const Block& block = *use.block;
  const auto what_happens = [&] { return *what_ + (use.is_write ? " writes " : " reads ") + place(use); };
  if (block.pool == 0 && (!block.is_allocated || block.generation != use.generation))
    violation(what_happens() + " from a graph, and that has been freed since the capture");
  Clock known = host_clock();
  known.join(stream_.clock);
  const Access access{stream_.index, step, use.is_write, use.begin, use.end, what_};
  const Access* const other = block.history.race(access, known);
  if (other != nullptr)
    violation(what_happens() + " on " + stream_.name() + " while " + *other->what + " on " +
              stream_name(other->stream) + " may still " + (other->is_write ? "write" : "read") +
              " it: no event and no synchronization orders them (" + kind_of_race(other->is_write, use.is_write) + ")");
  if (use.is_write || block.contents == use.generation) return;
  if (block.contents != 0)
    violation(what_happens() + ", which the launch of another graph of the pool has overwritten");
  violation(what_happens() + ", which nothing has written" +
            (block.pool == 0 ? "" : ": its graph has not been launched"));
}

void Running::take(const Use& use) {
  Block& block = *use.block;
  if (block.device < 0) arrive(block);
  open(block);
  ++opened_;
  if (capture_ != nullptr) return;
  block.history.add({stream_.index, step_, use.is_write, use.begin, use.end, what_}, host_clock());
  if (use.is_write) block.contents = use.generation;
}

void Running::add_result(const Use& use) {
  const std::lock_guard<std::mutex> hold(state_lock());
  if (capture_ == nullptr) check(use, step_);
  uses_.push_back(use);
  take(use);
}

void Running::keep(Body body) {
  const std::lock_guard<std::mutex> hold(state_lock());
  capture_->add(stream_, {what_, kind_, uses_, std::move(body)});
}

}  // namespace fake
