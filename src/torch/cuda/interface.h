// What camlens asks of a CUDA device beyond libtorch's operators: a table of functions that a library exports and
// camlens loads at run time. `libcamlens_cuda.so` implements it over libtorch_cuda.so; the fake device of the tests
// implements it over host memory. camlens itself links neither.
//
// Conventions: those of bridge.h. No C++ exception leaves a function; `*error` is freed with `text_free`. Tensors are
// `at::Tensor*`. A device is an index, as in `cuda:0`. Functions may be called from any thread unless they say
// otherwise; "the current stream" is that of the calling thread.
#pragma once
#include "../status.h"

#include <cstddef>
#include <cstdint>

namespace at {
class Tensor;
}

extern "C" {

// Changes with the table.
#define CAMLENS_CUDA_VERSION 1
#define CAMLENS_CUDA_SYMBOL "camlens_cuda_bridge"

typedef struct camlens_cuda_stream camlens_cuda_stream;
typedef struct camlens_cuda_event camlens_cuda_event;
typedef struct camlens_cuda_pool camlens_cuda_pool;
typedef struct camlens_cuda_graph camlens_cuda_graph;

struct camlens_cuda_device {
  char name[256];
  char uuid[64];
  uint64_t total_bytes;
  // Compute capability, as in 9.0.
  int32_t major;
  int32_t minor;
  int32_t multiprocessors;
  // Whether it is a slice of a card (Multi-Instance GPU).
  bool is_mig;
  // Whether the process talks to an MPS server.
  bool uses_mps;
};

struct camlens_cuda_memory {
  // Of the whole device, as the driver sees it.
  uint64_t free_bytes;
  uint64_t total_bytes;
  // Of this process: in tensors, and in libtorch's caching allocator, those included.
  uint64_t allocated_bytes;
  uint64_t reserved_bytes;
  uint64_t peak_allocated_bytes;
};

// What crossed between host and device, and what ran, since the library was loaded. Zeros where it is not counted.
struct camlens_cuda_counts {
  uint64_t copies_to_device;
  uint64_t copies_to_host;
  uint64_t kernels;
  uint64_t graph_launches;
  uint64_t synchronizations;
};

enum camlens_cuda_status {
  // The device is in an error that lasts until the process ends, such as an illegal access.
  CAMLENS_DEVICE_LOST = 3,
};

struct camlens_cuda_bridge {
  uint32_t version;
  // The size of this table.
  uint32_t bytes;
  // "cuda", or "fake".
  const char* kind;
  void (*text_free)(char* text);

  // Devices. The driver's version is 13000 for 13.0, 0 without a driver.
  int (*device_count)(int32_t* count, int32_t* driver, char** error);
  int (*device_describe)(int32_t device, camlens_cuda_device* description, char** error);
  // Whether the device works: after an error that lasts, CAMLENS_DEVICE_LOST.
  int (*device_check)(int32_t device, char** error);
  int (*device_synchronize)(int32_t device, char** error);

  // Memory. The limit holds for what libtorch allocates in this process.
  int (*memory_limit)(int32_t device, uint64_t bytes, char** error);
  int (*memory_read)(int32_t device, camlens_cuda_memory* memory, char** error);
  // Gives what is cached and not used back to the device.
  int (*memory_release)(int32_t device, char** error);
  void (*counts)(camlens_cuda_counts* counts);

  // Streams. A higher priority is a lower number, as in CUDA; 0 is the lowest. A stream that is current must not be
  // freed.
  int (*stream_new)(int32_t device, int32_t priority, camlens_cuda_stream** stream, char** error);
  void (*stream_free)(camlens_cuda_stream* stream);
  // Makes it the current one; null makes the device's default stream current.
  int (*stream_enter)(int32_t device, camlens_cuda_stream* stream, char** error);
  int (*stream_synchronize)(camlens_cuda_stream* stream, char** error);
  // The tensor's memory is not reused before what is queued on the stream now has run.
  int (*stream_uses)(camlens_cuda_stream* stream, const at::Tensor* tensor, char** error);

  // Events.
  int (*event_new)(int32_t device, bool timing, camlens_cuda_event** event, char** error);
  void (*event_free)(camlens_cuda_event* event);
  int (*event_record)(camlens_cuda_event* event, camlens_cuda_stream* stream, char** error);
  // What is queued on the stream from now on waits for the event.
  int (*event_block)(camlens_cuda_event* event, camlens_cuda_stream* stream, char** error);
  int (*event_query)(camlens_cuda_event* event, bool* is_over, char** error);
  int (*event_synchronize)(camlens_cuda_event* event, char** error);
  // Milliseconds between two events with timing that are over.
  int (*event_elapsed)(camlens_cuda_event* begin, camlens_cuda_event* end, float* ms, char** error);

  // Page-locked host memory, for copies that run while the host goes on: a tensor of bytes on the CPU.
  int (*pinned_new)(int64_t bytes, at::Tensor** tensor, char** error);

  // Graphs. One pool of memory serves several graphs that never run at the same time. Between begin and end, on the
  // calling thread, what is queued on the stream is recorded and does not run. A graph is launched on the stream of its
  // capture's device that is given.
  int (*pool_new)(int32_t device, camlens_cuda_pool** pool, char** error);
  void (*pool_free)(camlens_cuda_pool* pool);
  int (*graph_begin)(camlens_cuda_pool* pool, camlens_cuda_stream* stream, camlens_cuda_graph** graph, char** error);
  int (*graph_end)(camlens_cuda_graph* graph, char** error);
  int (*graph_launch)(camlens_cuda_graph* graph, camlens_cuda_stream* stream, char** error);
  void (*graph_free)(camlens_cuda_graph* graph);

  // camlens's own kernels (kernels/kernels.h), on the current stream. `*result` is a new tensor.
  //
  // The sum of 1 to 4 gradients of one shape and dtype, of which an element passes where `low < source < high`; without
  // an upper bound if `high` is NaN. Guided: the sum's positive part passes.
  int (*gate)(const at::Tensor* const* gradients, size_t count, const at::Tensor* source, double low, double high,
              bool guided, at::Tensor** result, char** error);
  // `min(max(value + bias[c] + other, low), high)` in the memory of `value`, `[N, C, H, W]` or `[N, C]`; `bias`, `[C]`,
  // and `other`, of the shape of `value`, may be null.
  int (*epilogue)(const at::Tensor* value, const at::Tensor* bias, const at::Tensor* other, double low, double high,
                  char** error);
  // Grad-CAM: activations and gradients `[N, K, h, w]` to `relu(sum_k mean_ij(gradients)_k * activations_k)`,
  // `[N, h, w]` of float32.
  int (*grad_cam)(const at::Tensor* activations, const at::Tensor* gradients, at::Tensor** result, char** error);
  // Guided Grad-CAM: `guided`, `[N, C, H, W]`, times the map `[N, h, w]`, resized bilinearly with half-pixel centres.
  // `*upsampled`, unless null, becomes the resized map, `[N, H, W]`. Float32 results.
  int (*fuse)(const at::Tensor* guided, const at::Tensor* map, at::Tensor** fused, at::Tensor** upsampled,
              char** error);
  // Pictures of bytes `[N, H, W, C]` to `(bytes / 255 - mean[c]) / deviation[c]`, `[N, C, H, W]` of `kind`, contiguous
  // or channels-last.
  int (*normalize)(const at::Tensor* bytes, const float* mean, const float* deviation, int32_t kind, bool channels_last,
                   at::Tensor** result, char** error);
  // Compiles the kernels for the device, or reads what an earlier process has compiled from `folder` and keeps it
  // there; null: nothing is kept. The kernels are called only after it.
  int (*kernels_prepare)(int32_t device, const char* folder, char** error);

  // The process ends, without exit handlers.
  void (*closing)();
};

// The only exported symbol. Null if the library was built for another version.
typedef const camlens_cuda_bridge* (*camlens_cuda_bridge_function)(uint32_t version);
}
