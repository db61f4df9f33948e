// Work on libtorch's threads.
#pragma once
#include <ATen/ATen.h>
#include <ATen/TensorIterator.h>

#include <cstdint>

// Runs `work(begin, end)` over parts of `0..jobs` on libtorch's threads. (Its own `parallel_for` is serial without OpenMP's flags.)
template <typename Work>
void in_parallel(int64_t jobs, const Work& work) {
  const at::Tensor places = at::empty({jobs}, at::kByte);
  const char* const first = static_cast<const char*>(places.const_data_ptr());
  at::TensorIterator iterator =
      at::TensorIteratorConfig().check_all_same_dtype(false).resize_outputs(false).add_output(places).build();
  const auto part = [&](char** data, const int64_t*, int64_t inner, int64_t outer) {
    const int64_t begin = data[0] - first;
    work(begin, begin + inner * outer);
  };
  iterator.for_each(part, 1);
}
