// How the checks of the fake device are run, and the devices' table as they use it.
#pragma once
#include "../../src/torch/cuda/interface.h"

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <vector>

extern "C" const struct camlens_cuda_bridge* camlens_cuda_bridge(uint32_t version);

namespace check {

const c10::Device FAKE(c10::DeviceType::CUDA, 0);

// Throws if it is false.
void that(bool is_true, const std::string& what);
void is_equal(const at::Tensor& got, const at::Tensor& wanted, const std::string& what);

// Runs a check, which fails if it throws or leaves violations.
void run(const std::string& name, const std::function<void()>& body);
int failures();

// `body` fails, with a message that contains the text.
void fails(const std::string& text, const std::function<void()>& body);
// The same, and the fake device records it: that violation is forgotten.
void violates(const std::string& text, const std::function<void()>& body);
// Violations that were recorded, all of which contain the text; they are forgotten.
size_t violations(const std::string& text);

// Runs the host's part of a check in a child process, which dies of an access to closed memory and says so.
void dies(const std::string& text, const std::function<void()>& body);
void lives(const std::function<void()>& body);

// ---- the table ----

const struct camlens_cuda_bridge& table();

// Calls a function of the table; throws what it says.
template <typename... Parameters, typename... Given>
void call(int (*function)(Parameters...), Given... given) {
  char* error = nullptr;
  if (function(given..., &error) == CAMLENS_OK) return;
  const std::string message = error == nullptr ? "no message" : error;
  table().text_free(error);
  throw std::runtime_error(message);
}

struct Stream {
  explicit Stream(int device = 0) { call(table().stream_new, device, 0, &raw); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() { table().stream_free(raw); }

  // Runs with this as the current stream.
  template <typename Body>
  auto within(const Body& body) const {
    call(table().stream_enter, 0, raw);
    struct Leave {
      ~Leave() { call(table().stream_enter, 0, static_cast<camlens_cuda_stream*>(nullptr)); }
    } const leave;
    return body();
  }
  void synchronize() const { call(table().stream_synchronize, raw); }
  void uses(const at::Tensor& tensor) const { call(table().stream_uses, raw, &tensor); }

  camlens_cuda_stream* raw = nullptr;
};

struct Event {
  explicit Event(bool has_timing = false) { call(table().event_new, 0, has_timing, &raw); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() { table().event_free(raw); }

  void record(const Stream& stream) const { call(table().event_record, raw, stream.raw); }
  void block(const Stream& stream) const { call(table().event_block, raw, stream.raw); }
  void synchronize() const { call(table().event_synchronize, raw); }
  bool is_over() const {
    bool is_over = false;
    call(table().event_query, raw, &is_over);
    return is_over;
  }

  camlens_cuda_event* raw = nullptr;
};

// What is queued on `second` from now on runs after what is queued on `first`.
void order(const Stream& first, const Stream& second);

struct Pool {
  Pool() { call(table().pool_new, 0, &raw); }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;
  ~Pool() { table().pool_free(raw); }

  camlens_cuda_pool* raw = nullptr;
};

struct Graph {
  Graph(const Pool& pool, const Stream& stream) { call(table().graph_begin, pool.raw, stream.raw, &raw); }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph() { table().graph_free(raw); }

  void end() const { call(table().graph_end, raw); }
  void launch(const Stream& stream) const { call(table().graph_launch, raw, stream.raw); }

  camlens_cuda_graph* raw = nullptr;
};

at::Tensor pinned(int64_t floats);
camlens_cuda_counts counts();
camlens_cuda_memory memory();

// ---- the files of checks ----

void operators();
void memory_and_devices();
void ordering();
void lifetimes();
void graphs();

}  // namespace check
