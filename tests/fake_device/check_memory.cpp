// Memory and devices: what the host may not touch, lifetimes across streams, limits, failures.
#include "check.h"
#include "fake_device.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>

#include <atomic>
#include <thread>

namespace check {
namespace {

const at::TensorOptions ON_DEVICE = at::TensorOptions(FAKE);
constexpr int64_t FLOATS = 5000;
constexpr uint64_t BYTES = FLOATS * 4;

at::Tensor ones() { return at::ones({FLOATS}, ON_DEVICE); }

void libtorch_sees_two_devices() {
  that(at::hasCUDA() && at::globalContext().hasCUDA(), "libtorch sees no CUDA");
  that(at::detail::getCUDAHooks().getNumGPUs() == 2, "there are not two devices");
  int32_t count = 0, driver = 0;
  call(table().device_count, &count, &driver);
  camlens_cuda_device device;
  call(table().device_describe, 1, &device);
  that(count == 2 && driver == 13000 && device.major == 9 && device.total_bytes == uint64_t{8} << 30, "the table");
  fails("invalid device ordinal", [&] { call(table().device_describe, 2, &device); });
  that(camlens_cuda_bridge(CAMLENS_CUDA_VERSION + 1) == nullptr, "the table has every version");
  that(table().kind == std::string("fake"), "the kind");
}

void tensors_move_between_devices() {
  const at::Tensor x = at::randn({FLOATS});
  const camlens_cuda_counts before = counts();
  const at::Tensor y = x.to(FAKE).to(c10::Device(c10::kCUDA, 1));
  that(y.get_device() == 1, "the device is " + y.device().str());
  is_equal(y, x, "the tensor");
  const camlens_cuda_counts after = counts();
  that(after.copies_to_device == before.copies_to_device + 1, "copies to the device");
  that(after.copies_to_host == before.copies_to_host + 1, "copies to the host");
  that(after.kernels == before.kernels + 1, "kernels");
  // Both copies between host and device block.
  that(after.synchronizations == before.synchronizations + 2, "synchronizations");
  that(ones().sum().item<float>() == FLOATS, "the sum");
}

void the_host_may_not_touch_a_device() {
  const at::Tensor x = ones();
  const auto* const first = static_cast<volatile const float*>(x.const_data_ptr<float>());
  dies("the host touches a device's memory", [&] { static_cast<void>(*first); });
  dies("the host touches a device's memory", [&] { *const_cast<volatile float*>(first) = 1; });
  dies("past the end", [&] { static_cast<void>(first[FLOATS + 16]); });
  const at::Tensor lie = at::from_blob(const_cast<float*>(const_cast<const float*>(first)), {4}, at::kFloat);
  dies("the host touches a device's memory", [&] { static_cast<void>(lie.sum()); });
}

void devices_do_not_mix() {
  const at::Tensor x = at::randn({2, 3, 8, 8}), w = at::randn({4, 3, 3, 3}), on_device = x.to(FAKE);
  for (const auto& body : std::vector<std::function<void()>>{
           [&] { at::conv2d(on_device, w); }, [&] { static_cast<void>(on_device + x); },
           [&] { at::cat({on_device, x}); }, [&] { at::matmul(on_device, x.transpose(2, 3)); }})
    fails("same device", body);
}

void views_and_sizes_work() {
  const at::Tensor x = ones(), view = x.view({-1, 10});
  view.zero_();
  that(view.storage().is_alias_of(x.storage()) && x.abs().sum().item<float>() == 0, "the view has other memory");
  const at::Tensor y = at::arange(6, ON_DEVICE.dtype(at::kFloat));
  y.resize_({3, 4});
  is_equal(y.flatten().slice(0, 0, 6), at::arange(6, at::TensorOptions(at::kFloat)), "the larger tensor");
}

void threads_share_a_device() {
  const at::Tensor x = at::randn({2, 3, 8, 8}), w = at::randn({4, 3, 3, 3}), b = at::randn({4});
  const at::Tensor on_device = x.to(FAKE), wanted = at::relu(at::conv2d(x, w, b));
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread)
    threads.emplace_back([&] {
      const at::NoGradGuard no_gradient;
      for (int round = 0; round < 50; ++round)
        if (!at::equal(at::relu(at::conv2d(on_device, w.to(FAKE), b.to(FAKE))).cpu(), wanted)) ++wrong;
    });
  for (std::thread& thread : threads) thread.join();
  that(wrong == 0, std::to_string(wrong) + " results differ");
}

void libtorch_s_own_streams_are_these() {
  const c10::impl::VirtualGuardImpl guard(c10::kCUDA);
  const c10::Stream stream = guard.getStreamFromGlobalPool(FAKE);
  const at::Tensor x = ones();
  {
    const c10::StreamGuard hold(stream);
    that(guard.getStream(FAKE) == stream, "the stream is not current");
    violates("(read-after-write)", [&] { at::relu(x); });
    that(stream.query(), "a stream without work is not over");
    for (int round = 0; round < 2; ++round) {
      ones();
      that(!stream.query() && !stream.query() && stream.query(), "the stream is not over at the third query");
    }
  }
  that(guard.getStream(FAKE) == guard.getDefaultStream(FAKE), "the default stream is not current");
}

// ---- what is nothing yet ----

void memory_that_nothing_has_written_is_not_read() {
  violates("which nothing has written", [] { at::relu(at::empty({FLOATS}, ON_DEVICE)); });
  violates("which nothing has written", [] { at::empty({FLOATS}, ON_DEVICE).cpu(); });
  // Fresh memory, and memory that was used.
  call(table().memory_release, 0);
  for (int time = 0; time < 2; ++time) {
    const at::Tensor half = at::empty({2, FLOATS}, ON_DEVICE);
    half[0].zero_();
    that(half.isnan().sum().item<int64_t>() == FLOATS, "the rest is not poisoned");
    half.zero_();
  }
}

// ---- lifetimes ----

void a_stream_uses_its_own_memory_again_at_once() {
  const Stream stream;
  stream.within([] {
    const void* const first = ones().const_data_ptr();
    that(ones().const_data_ptr() == first, "other memory");
    return 0;
  });
  const void* const other = ones().const_data_ptr();
  that(stream.within([] { return ones().const_data_ptr(); }) != other, "memory of another stream");
}

// A tensor of `first` is used on `second`, and dropped: the address of the memory that `first` takes next, which it
// writes.
const void* next_memory(const Stream& first, const Stream& second, bool is_recorded, const void** dropped) {
  at::Tensor x = first.within(ones);
  order(first, second);
  second.within([&] { return at::relu(x); });
  if (is_recorded) second.uses(x);
  *dropped = x.const_data_ptr();
  x.reset();
  return first.within(ones).const_data_ptr();
}

void memory_that_another_stream_uses_waits_for_it() {
  const Stream first, second;
  const void* dropped = nullptr;
  that(next_memory(first, second, true, &dropped) != dropped, "the memory is used again too early");
  second.synchronize();
  const at::Tensor x = first.within(ones), y = first.within(ones);
  that(x.const_data_ptr() == dropped || y.const_data_ptr() == dropped, "the memory is not used again");
}

void a_stream_that_is_not_recorded_is_found() {
  const Stream first, second;
  const void* dropped = nullptr;
  violates("aten::fill_ writes", [&] { next_memory(first, second, false, &dropped); });
  second.synchronize();
  // The same if the next tenant is an operator's result.
  const at::Tensor x = first.within(ones);
  at::Tensor y = first.within([&] { return x + 1; });
  order(first, second);
  second.within([&] { return at::relu(y); });
  y.reset();
  violates("aten::relu writes", [&] { first.within([&] { return at::relu(x); }); });
}

void memory_that_other_streams_are_busy_with_is_waited_for_if_there_is_no_other() {
  const Stream first, second;
  call(table().memory_release, 0);
  at::Tensor x = first.within(ones);
  order(first, second);
  const at::Tensor y = second.within([&] { return at::relu(x); });
  second.uses(x);
  call(table().memory_limit, 0, memory().reserved_bytes);
  x.reset();
  first.within(ones);
  call(table().memory_limit, 0, uint64_t{0});
}

void libtorch_s_record_stream_counts() {
  const Stream first, second;
  at::Tensor x = first.within(ones);
  order(first, second);
  const c10::impl::VirtualGuardImpl guard(c10::kCUDA);
  second.within([&] {
    at::relu(x);
    x.record_stream(guard.getStream(FAKE));
    return 0;
  });
  const void* const dropped = x.const_data_ptr();
  x.reset();
  that(first.within(ones).const_data_ptr() != dropped, "the memory is used again too early");
  second.synchronize();
}

void a_stream_outlives_its_being_current() {
  const at::Tensor x = ones();
  {
    const Stream stream;
    call(table().stream_enter, 0, stream.raw);
  }
  that(violations("is freed while it is a thread's current stream") == 1, "it is not found");
  violates("which has been freed", [&] { at::relu(x); });
  call(table().stream_enter, 0, static_cast<camlens_cuda_stream*>(nullptr));
}

// ---- bytes ----

void memory_is_counted_and_comes_back() {
  call(table().memory_release, 0);
  const camlens_cuda_memory before = memory();
  const uint64_t rounded = (BYTES + 511) / 512 * 512;
  {
    const at::Tensor x = ones(), y = ones();
    const camlens_cuda_memory during = memory();
    that(during.allocated_bytes == before.allocated_bytes + 2 * rounded, "the bytes of two tensors");
    that(during.reserved_bytes >= before.reserved_bytes + 2 * BYTES, "the reserved bytes");
    that(during.peak_allocated_bytes >= during.allocated_bytes, "the peak");
    that(during.free_bytes == during.total_bytes - during.reserved_bytes, "the free bytes");
  }
  const camlens_cuda_memory after = memory();
  that(after.allocated_bytes == before.allocated_bytes, "the tensors' bytes have not come back");
  that(after.reserved_bytes > before.reserved_bytes, "the memory is not kept");
  call(table().memory_release, 0);
  that(memory().reserved_bytes == before.reserved_bytes, "the memory is not given back");
}

void out_of_memory_is_an_error_of_its_own() {
  call(table().memory_release, 0);
  {
    const at::Tensor kept = at::ones({100 * FLOATS}, ON_DEVICE);
  }
  call(table().memory_limit, 0, memory().reserved_bytes);
  // What is kept makes room.
  {
    const at::Tensor other = at::ones({90, FLOATS}, ON_DEVICE);
  }
  bool is_exhausted = false;
  try {
    at::ones({110 * FLOATS}, ON_DEVICE);
  } catch (const c10::OutOfMemoryError& error) {
    is_exhausted = std::string(error.what()).find("CUDA out of memory. Tried to allocate 2200000 bytes") == 0;
  }
  that(is_exhausted, "the limit does not hold");
  call(table().memory_limit, 0, uint64_t{0});
  ones();
  fake_cuda_memory(memory().reserved_bytes);
  fails("CUDA out of memory", [] { at::ones({200 * FLOATS}, ON_DEVICE); });
  fake_cuda_memory(uint64_t{8} << 30);
}

void the_allocation_that_is_to_fail_fails() {
  fake_cuda_fail_allocation(2);
  const at::Tensor x = ones();
  fails("CUDA out of memory", [] { ones(); });
  ones();
}

// ---- failures ----

void a_broken_device_fails_whatever_is_asked() {
  const Stream stream;
  const at::Tensor x = ones();
  char* error = nullptr;
  that(table().device_check(0, &error) == CAMLENS_OK, "the device is broken");
  fake_cuda_break_after(2);
  const at::Tensor y = x + 1;
  const at::Tensor z = y + 1;
  for (int again = 0; again < 2; ++again) {
    fails("CUDA error: an illegal memory access was encountered", [&] { static_cast<void>(z + 1); });
    fails("CUDA error: an illegal memory access", [&] { z.cpu(); });
    fails("CUDA error: an illegal memory access", [&] { stream.synchronize(); });
    that(table().device_check(0, &error) == CAMLENS_DEVICE_LOST, "the device is not lost");
    table().text_free(error);
  }
  fake_cuda_break_after(0);
  fake_cuda_break(false);
  that((z + 1).sum().item<float>() == 4 * FLOATS, "the sum");
}

void tf32_is_found_where_float32_is_multiplied() {
  const at::Tensor x = at::ones({1, 3, 8, 8}, ON_DEVICE), w = at::ones({4, 3, 3, 3}, ON_DEVICE);
  const auto multiply = [&] {
    at::conv2d(x, w);
    at::conv2d(x.to(at::kBFloat16), w.to(at::kBFloat16));
    at::matmul(x[0][0], x[0][1]);
  };
  multiply();
  that(violations("") == 0, "TF32 is found where it is off");
  at::globalContext().setAllowTF32CuDNN(true);
  multiply();
  that(violations("aten::convolution: TF32 is allowed for float32") == 1, "TF32 of cuDNN is not found");
  at::globalContext().setAllowTF32CuDNN(false);
  at::globalContext().setAllowTF32CuBLAS(true);
  multiply();
  that(violations("aten::mm: TF32 is allowed for float32") == 1, "TF32 of cuBLAS is not found");
  fake_cuda_allow_tf32(true);
  multiply();
  fake_cuda_allow_tf32(false);
  at::globalContext().setAllowTF32CuBLAS(false);
}

void own_kernels_want_to_be_prepared() {
  const at::Tensor bytes = at::full({1, 2, 2, 3}, 51, ON_DEVICE.dtype(at::kByte));
  const float mean[] = {0.2f, 0.2f, 0.2f}, deviation[] = {0.5f, 0.5f, 0.5f};
  at::Tensor* result = nullptr;
  const auto normalize = [&] {
    call(table().normalize, &bytes, mean, deviation, static_cast<int32_t>(at::kFloat), true, &result);
  };
  violates("before the kernels are prepared", normalize);
  call(table().kernels_prepare, 0, static_cast<const char*>(nullptr));
  const camlens_cuda_counts before = counts();
  normalize();
  that(counts().kernels == before.kernels + 1, "the kernel is not counted");
  const at::Tensor taken = *result;
  delete result;
  that(taken.sizes() == at::IntArrayRef({1, 3, 2, 2}) && taken.abs().max().item<float>() < 1e-6, "the result");
}

}  // namespace

void memory_and_devices() {
  run("libtorch sees two devices", libtorch_sees_two_devices);
  run("tensors move between devices", tensors_move_between_devices);
  run("the host may not touch a device", the_host_may_not_touch_a_device);
  run("devices do not mix", devices_do_not_mix);
  run("views and sizes", views_and_sizes_work);
  run("threads share a device", threads_share_a_device);
  run("libtorch's own streams", libtorch_s_own_streams_are_these);
  run("memory that nothing has written", memory_that_nothing_has_written_is_not_read);
  run("memory is counted and comes back", memory_is_counted_and_comes_back);
  run("out of memory", out_of_memory_is_an_error_of_its_own);
  run("the allocation that is to fail fails", the_allocation_that_is_to_fail_fails);
  run("a broken device", a_broken_device_fails_whatever_is_asked);
  run("TF32", tf32_is_found_where_float32_is_multiplied);
  run("own kernels want to be prepared", own_kernels_want_to_be_prepared);
}

void lifetimes() {
  run("a stream uses its own memory again at once", a_stream_uses_its_own_memory_again_at_once);
  run("memory that another stream uses waits for it", memory_that_another_stream_uses_waits_for_it);
  run("a stream that is not recorded is found", a_stream_that_is_not_recorded_is_found);
  run("busy memory is waited for", memory_that_other_streams_are_busy_with_is_waited_for_if_there_is_no_other);
  run("libtorch's record_stream counts", libtorch_s_record_stream_counts);
  run("a stream outlives its being current", a_stream_outlives_its_being_current);
}

}  // namespace check
