#include "parallel.h"

#include <ATen/Tensor.h>
#include <ATen/TensorIterator.h>

#include <algorithm>
#include <exception>
#include <mutex>

#include "../threads/pool.h"

namespace camlens {
namespace {

// Parts for each thread. With more parts than threads, a thread that is taken away holds up less.
constexpr int64_t PARTS_PER_THREAD = 2;

struct Jobs {
  int64_t count;
  void (*work)(const void* context, int64_t begin, int64_t end);
  const void* context;
  std::mutex mutex;
  std::exception_ptr error;
};

void run_part(void* data) {
  Jobs& jobs = *static_cast<Jobs*>(data);
  const int64_t part = position().part, parts = position().region->parts();
  try {
    jobs.work(jobs.context, jobs.count * part / parts, jobs.count * (part + 1) / parts);
  } catch (...) {
    const std::lock_guard lock(jobs.mutex);
    if (!jobs.error) jobs.error = std::current_exception();
  }
}

}  // namespace

int64_t thread_count() { return team_width(); }

void parallel_for(int64_t count, void (*work)(const void* context, int64_t begin, int64_t end), const void* context) {
  if (count <= 0) return;
  Jobs jobs{count, work, context, {}, nullptr};
  const int64_t parts = team_width() == 1 ? 1 : PARTS_PER_THREAD * team_width();
  run_region(static_cast<int>(std::min(parts, count)), run_part, &jobs);
  if (jobs.error) std::rethrow_exception(jobs.error);
}

void for_each_element(const at::Tensor* const* tensors, size_t count, ElementLoop loop, const void* context) {
  at::TensorIteratorConfig config;
  config.add_output(*tensors[0]);
  for (size_t i = 1; i < count; ++i) config.add_const_input(*tensors[i]);
  at::TensorIterator iterator = config.build();
  iterator.for_each([&](char** data, const int64_t* strides, int64_t inner, int64_t outer) {
    loop(context, data, strides, inner, outer);
  });
}

}  // namespace camlens
