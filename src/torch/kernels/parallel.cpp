#include "parallel.h"

#include <ATen/Parallel.h>
#include <ATen/TensorIterator.h>
#include <ATen/ops/empty.h>

namespace camlens {

int64_t thread_count() { return at::get_num_threads(); }

// `at::parallel_for` is inline and serial in a program that is compiled without OpenMP; TensorIterator's loop is
// compiled in libtorch.
void parallel_for(int64_t jobs, void (*work)(const void* context, int64_t begin, int64_t end), const void* context) {
  const at::Tensor places = at::empty({jobs}, at::kByte);
  const char* const first = static_cast<const char*>(places.const_data_ptr());
  at::TensorIterator iterator =
      at::TensorIteratorConfig().check_all_same_dtype(false).resize_outputs(false).add_output(places).build();
  const auto part = [&](char** data, const int64_t*, int64_t inner, int64_t outer) {
    const int64_t begin = data[0] - first;
    work(context, begin, begin + inner * outer);
  };
  iterator.for_each(part, /*grain_size=*/1);
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
