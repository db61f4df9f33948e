// The table of interface.h over libtorch_cuda.so.
#include "device_kernels.h"

#include <ATen/ATen.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <optional>

#include "interface.h"
#include "kernels/kernels.h"

struct camlens_cuda_stream {
  c10::cuda::CUDAStream stream;
};

struct camlens_cuda_event {
  cudaEvent_t event;
  c10::DeviceIndex device;
};

struct camlens_cuda_pool {
  at::cuda::MempoolId_t id;
  c10::DeviceIndex device;
};

struct camlens_cuda_graph {
  camlens_cuda_graph(at::cuda::MempoolId_t of, c10::cuda::CUDAStream on) : pool(of), stream(on) {}

  at::cuda::CUDAGraph graph;
  at::cuda::MempoolId_t pool;
  c10::cuda::CUDAStream stream;
  // While it is recorded: the stream that was current before.
  std::optional<c10::cuda::CUDAStream> before;
};

namespace {

using namespace camlens;

std::atomic<uint64_t> graph_launches{0}, synchronizations{0};

// Errors after which every call fails until the process ends.
bool lasts(cudaError_t error) {
  switch (error) {
    case cudaErrorECCUncorrectable:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorContextIsDestroyed:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorTensorMemoryLeak:
    case cudaErrorMpsConnectionFailed:
    case cudaErrorMpsClientTerminated:
    case cudaErrorExternalDevice:
    case cudaErrorUnknown:
      return true;
    default:
      return false;
  }
}

// As camlens::guarded, with the states of a device.
template <typename Body>
int on_device(char** error, Body body) {
  try {
    body();
    return CAMLENS_OK;
  } catch (const c10::OutOfMemoryError& exception) {
    *error = copy_text(exception.what_without_backtrace());
    return CAMLENS_OUT_OF_MEMORY;
  } catch (const std::exception& exception) {
    // Neither clears an error that lasts.
    const bool is_lost = lasts(cudaPeekAtLastError()) || lasts(cudaFree(nullptr));
    const int status = failed(error, exception.what());
    return is_lost ? static_cast<int>(CAMLENS_DEVICE_LOST) : status;
  }
}

c10::DeviceIndex index(int32_t device) {
  const int32_t count = c10::cuda::device_count();
  TORCH_CHECK(device >= 0 && device < count, "there is no device cuda:", device, ", there are ", count);
  return static_cast<c10::DeviceIndex>(device);
}

// Makes a device the current one while it lives.
class OnDevice {
 public:
  explicit OnDevice(c10::DeviceIndex device) : before_(c10::cuda::ExchangeDevice(device)) {}
  ~OnDevice() { c10::cuda::MaybeExchangeDevice(before_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  c10::DeviceIndex before_;
};

void text_free(char* text) { std::free(text); }

int device_count(int32_t* count, int32_t* driver, char** error) {
  return on_device(error, [&] {
    int version = 0;
    // Without a driver the version is 0, and that is no error.
    if (cudaDriverGetVersion(&version) != cudaSuccess) version = 0;
    *driver = version;
    *count = version == 0 ? 0 : c10::cuda::device_count();
    // What was found is said by the numbers, not by the next call.
    cudaGetLastError();
  });
}

int device_describe(int32_t device, camlens_cuda_device* description, char** error) {
  return on_device(error, [&] {
    *description = {};
    cudaDeviceProp properties;
    C10_CUDA_CHECK(cudaGetDeviceProperties(&properties, index(device)));
    std::strncpy(description->name, properties.name, sizeof(description->name) - 1);
    char* at = description->uuid;
    for (int byte = 0; byte < 16; ++byte) {
      const bool is_group = byte == 4 || byte == 6 || byte == 8 || byte == 10;
      at += std::snprintf(at, 4, is_group ? "-%02x" : "%02x", static_cast<unsigned char>(properties.uuid.bytes[byte]));
    }
    description->total_bytes = properties.totalGlobalMem;
    description->major = properties.major;
    description->minor = properties.minor;
    description->multiprocessors = properties.multiProcessorCount;
    description->is_mig = std::strstr(properties.name, "MIG ") != nullptr;
    int uses_mps = 0;
    C10_CUDA_CHECK(cudaDeviceGetAttribute(&uses_mps, cudaDevAttrMpsEnabled, device));
    description->uses_mps = uses_mps != 0;
  });
}

int device_check(int32_t device, char** error) {
  return on_device(error, [&] {
    const OnDevice guard(index(device));
    C10_CUDA_CHECK(cudaFree(nullptr));
  });
}

int device_synchronize(int32_t device, char** error) {
  return on_device(error, [&] {
    const OnDevice guard(index(device));
    ++synchronizations;
    C10_CUDA_CHECK(cudaDeviceSynchronize());
  });
}

int memory_limit(int32_t device, uint64_t bytes, char** error) {
  return on_device(error, [&] {
    const OnDevice guard(index(device));
    size_t free_bytes = 0, total = 0;
    C10_CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total));
    const double fraction = static_cast<double>(bytes) / static_cast<double>(total);
    c10::cuda::CUDACachingAllocator::setMemoryFraction(std::min(fraction, 1.0), index(device));
  });
}

int memory_read(int32_t device, camlens_cuda_memory* memory, char** error) {
  return on_device(error, [&] {
    *memory = {};
    const OnDevice guard(index(device));
    size_t free_bytes = 0, total = 0;
    C10_CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total));
    memory->free_bytes = free_bytes;
    memory->total_bytes = total;
    const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(index(device));
    // The first element is the sum over all pools.
    memory->allocated_bytes = static_cast<uint64_t>(stats.allocated_bytes[0].current);
    memory->reserved_bytes = static_cast<uint64_t>(stats.reserved_bytes[0].current);
    memory->peak_allocated_bytes = static_cast<uint64_t>(stats.allocated_bytes[0].peak);
  });
}

int memory_release(int32_t device, char** error) {
  return on_device(error, [&] {
    const OnDevice guard(index(device));
    c10::cuda::CUDACachingAllocator::emptyCache();
  });
}

void counts(camlens_cuda_counts* counted) {
  *counted = {};
  counted->kernels = device_kernels().launched();
  counted->graph_launches = graph_launches;
  counted->synchronizations = synchronizations;
}

int stream_new(int32_t device, int32_t priority, camlens_cuda_stream** stream, char** error) {
  return on_device(error, [&] {
    const auto made = c10::cuda::getStreamFromPool(priority, index(device));
    *stream = new camlens_cuda_stream{made};
  });
}

// libtorch keeps its streams for the life of the process and hands them out in turn.
void stream_free(camlens_cuda_stream* stream) { delete stream; }

int stream_enter(int32_t device, camlens_cuda_stream* stream, char** error) {
  return on_device(error, [&] {
    c10::cuda::set_device(index(device));
    c10::cuda::setCurrentCUDAStream(stream != nullptr ? stream->stream
                                                      : c10::cuda::getDefaultCUDAStream(index(device)));
  });
}

int stream_synchronize(camlens_cuda_stream* stream, char** error) {
  return on_device(error, [&] {
    ++synchronizations;
    stream->stream.synchronize();
  });
}

int stream_uses(camlens_cuda_stream* stream, const at::Tensor* tensor, char** error) {
  return on_device(error, [&] {
    TORCH_CHECK(tensor->is_cuda(), "a stream uses tensors of its device alone, not of ", tensor->device());
    c10::cuda::CUDACachingAllocator::recordStream(tensor->storage().data_ptr(), stream->stream);
  });
}

int event_new(int32_t device, bool timing, camlens_cuda_event** event, char** error) {
  return on_device(error, [&] {
    const OnDevice guard(index(device));
    cudaEvent_t made = nullptr;
    C10_CUDA_CHECK(cudaEventCreateWithFlags(&made, timing ? cudaEventDefault : cudaEventDisableTiming));
    *event = new camlens_cuda_event{made, index(device)};
  });
}

void event_free(camlens_cuda_event* event) {
  C10_CUDA_CHECK_WARN(cudaEventDestroy(event->event));
  delete event;
}

int event_record(camlens_cuda_event* event, camlens_cuda_stream* stream, char** error) {
  return on_device(error, [&] {
    const OnDevice guard(event->device);
    C10_CUDA_CHECK(cudaEventRecord(event->event, stream->stream.stream()));
  });
}

int event_block(camlens_cuda_event* event, camlens_cuda_stream* stream, char** error) {
  return on_device(error, [&] {
    const OnDevice guard(event->device);
    C10_CUDA_CHECK(cudaStreamWaitEvent(stream->stream.stream(), event->event, 0));
  });
}

int event_query(camlens_cuda_event* event, bool* is_over, char** error) {
  return on_device(error, [&] {
    const cudaError_t state = cudaEventQuery(event->event);
    if (state != cudaErrorNotReady) C10_CUDA_CHECK(state);
    *is_over = state == cudaSuccess;
  });
}

int event_synchronize(camlens_cuda_event* event, char** error) {
  return on_device(error, [&] {
    ++synchronizations;
    C10_CUDA_CHECK(cudaEventSynchronize(event->event));
  });
}

int event_elapsed(camlens_cuda_event* begin, camlens_cuda_event* end, float* ms, char** error) {
  return on_device(error, [&] { C10_CUDA_CHECK(cudaEventElapsedTime(ms, begin->event, end->event)); });
}

int pinned_new(int64_t bytes, at::Tensor** tensor, char** error) {
  return on_device(error, [&] {
    *tensor = new at::Tensor(at::empty({bytes}, at::TensorOptions().dtype(at::kByte).pinned_memory(true)));
  });
}

int pool_new(int32_t device, camlens_cuda_pool** pool, char** error) {
  return on_device(error, [&] { *pool = new camlens_cuda_pool{at::cuda::graph_pool_handle(), index(device)}; });
}

// Its memory goes with the last of its graphs.
void pool_free(camlens_cuda_pool* pool) { delete pool; }

int graph_begin(camlens_cuda_pool* pool, camlens_cuda_stream* stream, camlens_cuda_graph** graph, char** error) {
  return on_device(error, [&] {
    const OnDevice guard(pool->device);
    auto made = std::make_unique<camlens_cuda_graph>(pool->id, stream->stream);
    made->before = c10::cuda::getCurrentCUDAStream(pool->device);
    c10::cuda::setCurrentCUDAStream(stream->stream);
    // Other threads, which load models or copy frames, may go on meanwhile.
    made->graph.capture_begin(pool->id, cudaStreamCaptureModeThreadLocal);
    *graph = made.release();
  });
}

// A capture that has failed leaves the allocator in its pool, which would defer every release of memory.
void end_allocations(const camlens_cuda_graph* graph) {
  try {
    c10::cuda::CUDACachingAllocator::endAllocateToPool(graph->stream.device_index(), graph->pool);
  } catch (const c10::Error&) {
    // It had left the pool before the capture failed.
  }
}

int graph_end(camlens_cuda_graph* graph, char** error) {
  return on_device(error, [&] {
    const OnDevice guard(graph->stream.device_index());
    c10::cuda::setCurrentCUDAStream(graph->stream);
    try {
      graph->graph.capture_end();
    } catch (...) {
      end_allocations(graph);
      c10::cuda::setCurrentCUDAStream(*graph->before);
      throw;
    }
    c10::cuda::setCurrentCUDAStream(*graph->before);
  });
}

int graph_launch(camlens_cuda_graph* graph, camlens_cuda_stream* stream, char** error) {
  return on_device(error, [&] {
    const OnDevice guard(stream->stream.device_index());
    const auto before = c10::cuda::getCurrentCUDAStream();
    c10::cuda::setCurrentCUDAStream(stream->stream);
    ++graph_launches;
    // It runs on the current stream.
    graph->graph.replay();
    c10::cuda::setCurrentCUDAStream(before);
  });
}

void graph_free(camlens_cuda_graph* graph) { delete graph; }

int kernels_prepare(int32_t device, const char* folder, char** error) {
  return on_device(error, [&] { device_kernels().prepare(index(device), folder); });
}

int gate(const at::Tensor* const* gradients, size_t count, const at::Tensor* source, double low, double high,
         bool guided, at::Tensor** result, char** error) {
  return on_device(error, [&] {
    *result = new at::Tensor(cuda::gate(device_kernels(), gradients, count, *source, low, high, guided));
  });
}

int epilogue(const at::Tensor* value, const at::Tensor* bias, const at::Tensor* other, double low, double high,
             char** error) {
  return on_device(error, [&] { cuda::epilogue(device_kernels(), *value, bias, other, low, high); });
}

int grad_cam(const at::Tensor* activations, const at::Tensor* gradients, at::Tensor** result, char** error) {
  return on_device(error,
                   [&] { *result = new at::Tensor(cuda::grad_cam(device_kernels(), *activations, *gradients)); });
}

int fuse(const at::Tensor* guided, const at::Tensor* map, at::Tensor** fused, at::Tensor** upsampled, char** error) {
  return on_device(error, [&] {
    const cuda::Fused made = cuda::fuse(device_kernels(), *guided, *map, upsampled != nullptr);
    *fused = new at::Tensor(made.fused);
    if (upsampled != nullptr) *upsampled = new at::Tensor(made.upsampled);
  });
}

int normalize(const at::Tensor* bytes, const float* mean, const float* deviation, int32_t kind, bool channels_last,
              at::Tensor** result, char** error) {
  return on_device(error, [&] {
    const auto type = static_cast<c10::ScalarType>(kind);
    *result = new at::Tensor(cuda::normalize(device_kernels(), *bytes, mean, deviation, type, channels_last));
  });
}

// The driver gives everything back.
void closing() {}

constexpr struct camlens_cuda_bridge TABLE = {
    CAMLENS_CUDA_VERSION,
    sizeof(struct camlens_cuda_bridge),
    "cuda",
    text_free,
    device_count,
    device_describe,
    device_check,
    device_synchronize,
    memory_limit,
    memory_read,
    memory_release,
    counts,
    stream_new,
    stream_free,
    stream_enter,
    stream_synchronize,
    stream_uses,
    event_new,
    event_free,
    event_record,
    event_block,
    event_query,
    event_synchronize,
    event_elapsed,
    pinned_new,
    pool_new,
    pool_free,
    graph_begin,
    graph_end,
    graph_launch,
    graph_free,
    gate,
    epilogue,
    grad_cam,
    fuse,
    normalize,
    kernels_prepare,
    closing,
};

}  // namespace

extern "C" __attribute__((visibility("default"))) const struct camlens_cuda_bridge* camlens_cuda_bridge(
    uint32_t version) {
  return version == CAMLENS_CUDA_VERSION ? &TABLE : nullptr;
}
