// Work on the threads that run models.
#pragma once
#include <cstddef>
#include <cstdint>

namespace at {
class Tensor;
}

namespace camlens {

int64_t thread_count();

// Calls `work(context, begin, end)` for disjoint ranges that cover 0..jobs. An exception of `work` is thrown again
// here, when all threads are done.
void parallel_for(int64_t jobs, void (*work)(const void* context, int64_t begin, int64_t end), const void* context);

// The same for a function object: `work(begin, end)`.
template <typename Work>
void in_parallel(int64_t jobs, const Work& work) {
  const auto call = [](const void* context, int64_t begin, int64_t end) {
    (*static_cast<const Work*>(context))(begin, end);
  };
  parallel_for(jobs, call, &work);
}

// A loop over `outer` rows of `inner` elements of several operands. `data` points to each operand's first element.
// `strides`, in bytes, has each operand's stride within a row, then each operand's stride between rows.
using ElementLoop = void (*)(const void* context, char** data, const int64_t* strides, int64_t inner, int64_t outer);

// Calls `loop` for all elements of tensors that have one shape and type, in parallel. The first tensor is
// written.
void for_each_element(const at::Tensor* const* tensors, size_t count, ElementLoop loop, const void* context);

}  // namespace camlens
