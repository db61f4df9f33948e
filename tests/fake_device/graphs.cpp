#include "graphs.h"

#include "host.h"
#include "report.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <cstring>

namespace fake {
namespace {

// With the lock of host.h held.
std::vector<Capture*>& captures() {
  static std::vector<Capture*>& all = *new std::vector<Capture*>;
  return all;
}

// The capture that the thread has begun last.
thread_local uint64_t own_number = 0;

uint64_t next_number() {
  static std::atomic<uint64_t> last{0};
  return ++last;
}

}  // namespace

Pool::Pool(int of_device) : device(of_device), number(next_number()) {}

Pool::~Pool() {
  const std::lock_guard<std::mutex> hold(state_lock());
  close_pool(number);
}

Graph::Graph(std::shared_ptr<Pool> pool) : pool_(std::move(pool)), number_(next_number()) {}

void Graph::begin(Stream& stream) {
  check_devices();
  const std::lock_guard<std::mutex> hold(state_lock());
  if (stream.capture != nullptr) stream.capture->refuse("the launch of a graph");
  TORCH_CHECK(stream.device == pool_->device, "CUDA error: the graph belongs to another device");
  if (pool_->last_graph == number_) {
    // A graph never runs beside itself.
    stream.clock.join(pool_->last_end);
    return;
  }
  Clock known = host_clock();
  known.join(stream.clock);
  if (!known.covers(pool_->last_end))
    violation("a graph is launched on " + stream.name() + " while another graph of its pool may still run");
}

void Graph::launch(Stream& stream) {
  const std::lock_guard<std::mutex> hold_graph(launching_);
  const std::lock_guard<std::recursive_mutex> hold_stream(stream.running);
  begin(stream);
  ++counters().graph_launches;
  std::map<size_t, Event> events;
  for (const Node& node : nodes_) {
    Stream& branch = node.branch == 0 ? stream : *branches_[node.branch - 1];
    switch (node.step) {
      case Step::WORK: {
        const Running running(branch, node.work.what, node.work.kind, node.work.uses);
        node.work.body(branch, running.step());
        break;
      }
      case Step::RECORD:
        record(events[node.slot], branch);
        break;
      case Step::BLOCK:
        block(events[node.slot], branch);
        break;
    }
  }
  const std::lock_guard<std::mutex> hold(state_lock());
  pool_->last_graph = number_;
  pool_->last_end = stream.clock;
}

Capture::Capture(std::shared_ptr<Pool> pool, Stream& stream)
    : pool_(std::move(pool)),
      graph_(std::make_shared<Graph>(pool_)),
      owner_(std::this_thread::get_id()),
      number_(next_number()) {
  check_devices();
  TORCH_CHECK(stream.device == pool_->device, "CUDA error: the pool belongs to another device");
  TORCH_CHECK(stream.id != 0, "CUDA error: operation not permitted: the default stream cannot be captured");
  const std::lock_guard<std::mutex> hold(state_lock());
  TORCH_CHECK(own_capture() == nullptr, "CUDA error: the thread captures already");
  TORCH_CHECK(stream.capture == nullptr, "CUDA error: the stream is captured already");
  first_generation_ = next_generation();
  join(stream);
  captures().push_back(this);
  own_number = number_;
}

Capture::~Capture() { leave(); }

std::shared_ptr<Graph> Capture::end() {
  TORCH_CHECK(owner_ == std::this_thread::get_id(), "CUDA error: a capture is ended by another thread than began it");
  leave();
  TORCH_CHECK(problem_.empty(), "CUDA error: operation failed due to a previous error during capture: ", problem_);
  for (size_t branch = 1; branch < streams_.size(); ++branch)
    TORCH_CHECK(clocks_[0].covers(branch, clocks_[branch].of(branch)),
                "CUDA error: the capture was not joined with all of its streams");
  for (size_t branch = 1; branch < streams_.size(); ++branch) graph_->branches_.push_back(&new_stream(pool_->device));
  return graph_;
}

void Capture::join(Stream& stream) {
  stream.capture = this;
  stream.branch = streams_.size();
  streams_.push_back(&stream);
  clocks_.emplace_back();
}

void Capture::leave() {
  const std::lock_guard<std::mutex> hold(state_lock());
  if (is_over_) return;
  is_over_ = true;
  for (Stream* stream : streams_) stream->capture = nullptr;
  captures().erase(std::find(captures().begin(), captures().end(), this));
  for (const auto& [block, bytes] : undo_) {
    if (!block->is_allocated || block->generation >= first_generation_) continue;
    open(*block);
    std::memcpy(block->data, bytes.data(), bytes.size());
    close(*block);
  }
  undo_.clear();
}

void Capture::begin_work(const std::vector<Use>& uses) {
  TORCH_CHECK(problem_.empty(), "CUDA error: operation failed due to a previous error during capture: ", problem_);
  for (const Use& use : uses) {
    Block& block = *use.block;
    // A copy to the host does not run during a capture.
    const bool is_kept = block.generation >= first_generation_ || block.device < 0 || undo_.count(use.block) > 0;
    if (!use.is_write || is_kept) continue;
    open(block);
    undo_[use.block].assign(block.data, block.data + block.bytes);
    close(block);
  }
}

void Capture::add(const Stream& stream, Work work) {
  clocks_[stream.branch].raise(stream.branch, clocks_[stream.branch].of(stream.branch) + 1);
  graph_->nodes_.push_back({Graph::Step::WORK, stream.branch, 0, std::move(work)});
}

void Capture::record(Event& event, const Stream& stream) {
  event.is_recorded = true;
  event.capture = number_;
  event.slot = events_.size();
  events_.push_back(clocks_[stream.branch]);
  graph_->nodes_.push_back({Graph::Step::RECORD, stream.branch, event.slot, {}});
}

void Capture::block(const Event& event, Stream& stream) {
  if (stream.capture == nullptr) join(stream);
  clocks_[stream.branch].join(events_[event.slot]);
  graph_->nodes_.push_back({Graph::Step::BLOCK, stream.branch, event.slot, {}});
}

void Capture::refuse(const std::string& what) {
  if (problem_.empty()) problem_ = what;
  TORCH_CHECK(false, "CUDA error: operation not permitted when stream is capturing: ", what);
}

void refuse_in_capture(const std::string& what, const Stream* stream) {
  const std::lock_guard<std::mutex> hold(state_lock());
  if (stream != nullptr && stream->capture != nullptr) stream->capture->refuse(what);
  Capture* const own = own_capture();
  if (own != nullptr) own->refuse(what);
}

void refuse_in_captures_of(int device, const std::string& what) {
  refuse_in_capture(what);
  const std::lock_guard<std::mutex> hold(state_lock());
  for (Capture* capture : captures())
    if (capture->device() == device) capture->refuse(what);
}

Capture* capture_of(uint64_t number) {
  for (Capture* capture : captures())
    if (capture->number() == number) return capture;
  return nullptr;
}

Capture* own_capture() { return capture_of(own_number); }

}  // namespace fake
