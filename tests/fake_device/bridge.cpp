// The table of src/torch/cuda/interface.h over the fake devices.
#include "../../src/torch/cuda/interface.h"

#include "../../src/torch/cuda/kernels/kernels.h"
#include "../../src/torch/cuda/kernels/twin.h"
#include "device.h"
#include "graphs.h"
#include "host.h"
#include "operators.h"
#include "report.h"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

struct camlens_cuda_stream {
  fake::Stream& stream;
};

struct camlens_cuda_event {
  fake::Event event;
};

struct camlens_cuda_pool {
  std::shared_ptr<fake::Pool> pool;
};

struct camlens_cuda_graph {
  // The one until the capture ends, then the other, unless it failed.
  std::unique_ptr<fake::Capture> capture;
  std::shared_ptr<fake::Graph> graph;
};

namespace {

using camlens::cuda::Access;
using camlens::cuda::Argument;

// What the bridge does on the host is all that it may do while an exception is a status.
template <typename Body>
int guarded(char** error, const Body& body) {
  return camlens::guarded(error, [&]() -> int {
    try {
      body();
      return CAMLENS_OK;
    } catch (const c10::OutOfMemoryError& exception) {
      *error = camlens::copy_text(exception.what_without_backtrace());
      return CAMLENS_OUT_OF_MEMORY;
    } catch (const c10::AcceleratorError& exception) {
      *error = camlens::copy_text(exception.what_without_backtrace());
      return CAMLENS_DEVICE_LOST;
    } catch (const c10::Error& exception) {
      return camlens::failed(error, exception.what_without_backtrace());
    }
  });
}

// ---- devices ----

int device_count(int32_t* count, int32_t* driver, char**) {
  *count = fake::settings().devices;
  *driver = 13000;
  return CAMLENS_OK;
}

int device_describe(int32_t device, camlens_cuda_device* description, char** error) {
  return guarded(error, [&] {
    fake::check_device(device);
    *description = {};
    std::snprintf(description->name, sizeof description->name, "Fake CUDA device");
    std::snprintf(description->uuid, sizeof description->uuid, "GPU-00000000-0000-0000-0000-%012d", device);
    description->total_bytes = fake::settings().memory;
    // As an H100 has them.
    description->major = 9;
    description->multiprocessors = 132;
  });
}

int device_check(int32_t device, char** error) {
  return guarded(error, [&] {
    fake::check_device(device);
    fake::check_devices();
  });
}

int device_synchronize(int32_t device, char** error) {
  return guarded(error, [&] { fake::synchronize_device(device); });
}

// ---- memory ----

int memory_limit(int32_t device, uint64_t bytes, char** error) {
  return guarded(error, [&] {
    fake::check_device(device);
    const std::lock_guard<std::mutex> hold(fake::state_lock());
    fake::usage(device).limit = bytes;
  });
}

int memory_read(int32_t device, camlens_cuda_memory* memory, char** error) {
  return guarded(error, [&] {
    fake::check_device(device);
    fake::check_devices();
    const std::lock_guard<std::mutex> hold(fake::state_lock());
    const fake::Usage& now = fake::usage(device);
    const uint64_t total = fake::settings().memory;
    *memory = {total - std::min(total, now.reserved), total, now.allocated, now.reserved, now.peak};
  });
}

int memory_release(int32_t device, char** error) {
  return guarded(error, [&] {
    fake::check_device(device);
    fake::check_devices();
    fake::refuse_in_captures_of(device, "to give memory back to the device");
    const std::lock_guard<std::mutex> hold(fake::state_lock());
    fake::trim(device);
  });
}

void counts(camlens_cuda_counts* counts) {
  const fake::Counters& now = fake::counters();
  *counts = {now.copies_to_device, now.copies_to_host, now.kernels, now.graph_launches, now.synchronizations};
}

// ---- streams ----

int stream_new(int32_t device, int32_t, camlens_cuda_stream** stream, char** error) {
  return guarded(error, [&] {
    fake::check_devices();
    *stream = new camlens_cuda_stream{fake::new_stream(device)};
  });
}

void stream_free(camlens_cuda_stream* stream) {
  fake::free_stream(stream->stream);
  delete stream;
}

int stream_enter(int32_t device, camlens_cuda_stream* stream, char** error) {
  return guarded(error, [&] {
    fake::Stream& entered = stream == nullptr ? fake::default_stream(device) : stream->stream;
    TORCH_CHECK(entered.device == device, "CUDA error: invalid resource handle: ", entered.name());
    fake::enter(entered);
  });
}

int stream_synchronize(camlens_cuda_stream* stream, char** error) {
  return guarded(error, [&] { fake::synchronize(stream->stream); });
}

int stream_uses(camlens_cuda_stream* stream, const at::Tensor* tensor, char** error) {
  return guarded(error, [&] {
    TORCH_CHECK(tensor->is_cuda(), "stream_uses: a tensor on ", tensor->device());
    if (tensor->storage().nbytes() > 0) fake::keep_for(tensor->storage().data(), stream->stream);
  });
}

// ---- events ----

int event_new(int32_t device, bool timing, camlens_cuda_event** event, char** error) {
  return guarded(error, [&] {
    fake::check_device(device);
    fake::check_devices();
    *event = new camlens_cuda_event{fake::Event(timing)};
  });
}

void event_free(camlens_cuda_event* event) { delete event; }

int event_record(camlens_cuda_event* event, camlens_cuda_stream* stream, char** error) {
  return guarded(error, [&] { fake::record(event->event, stream->stream); });
}

int event_block(camlens_cuda_event* event, camlens_cuda_stream* stream, char** error) {
  return guarded(error, [&] { fake::block(event->event, stream->stream); });
}

int event_query(camlens_cuda_event* event, bool* is_over, char** error) {
  return guarded(error, [&] { *is_over = fake::query(event->event); });
}

int event_synchronize(camlens_cuda_event* event, char** error) {
  return guarded(error, [&] { fake::synchronize(event->event); });
}

int event_elapsed(camlens_cuda_event* begin, camlens_cuda_event* end, float* ms, char** error) {
  return guarded(error, [&] { *ms = static_cast<float>(fake::elapsed(begin->event, end->event)); });
}

int pinned_new(int64_t bytes, at::Tensor** tensor, char** error) {
  return guarded(error, [&] {
    fake::check_devices();
    *tensor = new at::Tensor(at::empty({bytes}, at::TensorOptions(at::kByte).pinned_memory(true)));
  });
}

// ---- graphs ----

int pool_new(int32_t device, camlens_cuda_pool** pool, char** error) {
  return guarded(error, [&] {
    fake::check_device(device);
    *pool = new camlens_cuda_pool{std::make_shared<fake::Pool>(device)};
  });
}

void pool_free(camlens_cuda_pool* pool) { delete pool; }

int graph_begin(camlens_cuda_pool* pool, camlens_cuda_stream* stream, camlens_cuda_graph** graph, char** error) {
  return guarded(error, [&] {
    *graph = new camlens_cuda_graph{std::make_unique<fake::Capture>(pool->pool, stream->stream), nullptr};
  });
}

int graph_end(camlens_cuda_graph* graph, char** error) {
  return guarded(error, [&] {
    TORCH_CHECK(graph->capture != nullptr, "CUDA error: the capture has ended already");
    const std::unique_ptr<fake::Capture> capture = std::move(graph->capture);
    graph->graph = capture->end();
  });
}

int graph_launch(camlens_cuda_graph* graph, camlens_cuda_stream* stream, char** error) {
  return guarded(error, [&] {
    TORCH_CHECK(graph->graph != nullptr, "CUDA error: the graph was not captured");
    graph->graph->launch(stream->stream);
  });
}

void graph_free(camlens_cuda_graph* graph) { delete graph; }

// ---- camlens's kernels ----

// Runs the kernels' twin.
class TwinLauncher final : public camlens::cuda::Launcher {
 public:
  c10::DeviceType device_type() const override { return c10::kCUDA; }

  void prepare(int device) {
    const std::lock_guard<std::mutex> hold(lock_);
    prepared_.insert(device);
  }

  void launch(camlens::cuda::Kernel kernel, camlens::cuda::Element element, const camlens::cuda::Geometry& geometry,
              const std::vector<Argument>& arguments) override {
    std::vector<fake::Use> uses;
    std::vector<Argument> views = arguments;
    int device = fake::current_device();
    for (Argument& argument : views) {
      if (!argument.tensor.defined()) continue;
      device = argument.tensor.get_device();
      for (const bool is_write : {false, true}) {
        if (argument.access == (is_write ? Access::READ : Access::WRITE)) continue;
        if (const auto use = fake::use_of(argument.tensor, is_write)) uses.push_back(*use);
      }
      argument.tensor = fake::view_of(argument.tensor);
    }
    const std::string* const name = fake::interned(camlens::cuda::function_name(kernel, element));
    check_prepared(device, *name);
    const auto body = [=, views = std::move(views)](const fake::Stream&, uint64_t) {
      camlens::cuda::PackedArguments packed(views);
      if (!run_twin(kernel, element, geometry.grid, geometry.block, geometry.shared_bytes, packed.data()))
        fake::violation(*name + ": a barrier that not all threads of a block reach");
    };
    fake::Running running(fake::current_stream(device), name, fake::Kind::KERNEL, std::move(uses));
    body(running.stream(), running.step());
    if (running.is_captured()) running.keep(body);
  }

 private:
  void check_prepared(int device, const std::string& name) {
    const std::lock_guard<std::mutex> hold(lock_);
    if (prepared_.count(device) == 0) fake::violation(name + " is launched before the kernels are prepared");
  }

  std::mutex lock_;
  std::set<int> prepared_;
};

TwinLauncher& launcher() {
  static TwinLauncher& one = *new TwinLauncher;
  return one;
}

int gate(const at::Tensor* const* gradients, size_t count, const at::Tensor* source, double low, double high,
         bool guided, at::Tensor** result, char** error) {
  return guarded(error, [&] {
    *result = new at::Tensor(camlens::cuda::gate(launcher(), gradients, count, *source, low, high, guided));
  });
}

int epilogue(const at::Tensor* value, const at::Tensor* bias, const at::Tensor* other, double low, double high,
             char** error) {
  return guarded(error, [&] { camlens::cuda::epilogue(launcher(), *value, bias, other, low, high); });
}

int grad_cam(const at::Tensor* activations, const at::Tensor* gradients, at::Tensor** result, char** error) {
  return guarded(error,
                 [&] { *result = new at::Tensor(camlens::cuda::grad_cam(launcher(), *activations, *gradients)); });
}

int fuse(const at::Tensor* guided, const at::Tensor* map, at::Tensor** fused, at::Tensor** upsampled, char** error) {
  return guarded(error, [&] {
    const camlens::cuda::Fused both = camlens::cuda::fuse(launcher(), *guided, *map, upsampled != nullptr);
    *fused = new at::Tensor(both.fused);
    if (upsampled != nullptr) *upsampled = new at::Tensor(both.upsampled);
  });
}

int normalize(const at::Tensor* bytes, const float* mean, const float* deviation, int32_t kind, bool channels_last,
              at::Tensor** result, char** error) {
  return guarded(error, [&] {
    *result = new at::Tensor(camlens::cuda::normalize(launcher(), *bytes, mean, deviation,
                                                      static_cast<c10::ScalarType>(kind), channels_last));
  });
}

int kernels_prepare(int32_t device, const char*, char** error) {
  return guarded(error, [&] {
    fake::check_device(device);
    launcher().prepare(device);
  });
}

void text_free(char* text) { std::free(text); }

struct camlens_cuda_bridge table() {
  struct camlens_cuda_bridge table = {};
  table.version = CAMLENS_CUDA_VERSION;
  table.bytes = sizeof(table);
  table.kind = "fake";
  table.text_free = text_free;
  table.device_count = device_count;
  table.device_describe = device_describe;
  table.device_check = device_check;
  table.device_synchronize = device_synchronize;
  table.memory_limit = memory_limit;
  table.memory_read = memory_read;
  table.memory_release = memory_release;
  table.counts = counts;
  table.stream_new = stream_new;
  table.stream_free = stream_free;
  table.stream_enter = stream_enter;
  table.stream_synchronize = stream_synchronize;
  table.stream_uses = stream_uses;
  table.event_new = event_new;
  table.event_free = event_free;
  table.event_record = event_record;
  table.event_block = event_block;
  table.event_query = event_query;
  table.event_synchronize = event_synchronize;
  table.event_elapsed = event_elapsed;
  table.pinned_new = pinned_new;
  table.pool_new = pool_new;
  table.pool_free = pool_free;
  table.graph_begin = graph_begin;
  table.graph_end = graph_end;
  table.graph_launch = graph_launch;
  table.graph_free = graph_free;
  table.gate = gate;
  table.epilogue = epilogue;
  table.grad_cam = grad_cam;
  table.fuse = fuse;
  table.normalize = normalize;
  table.kernels_prepare = kernels_prepare;
  table.closing = fake::write_report;
  return table;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const struct camlens_cuda_bridge* camlens_cuda_bridge(
    uint32_t version) {
  static const struct camlens_cuda_bridge one = table();
  return version == CAMLENS_CUDA_VERSION ? &one : nullptr;
}
