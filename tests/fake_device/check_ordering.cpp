// Streams, events, and page-locked memory: a program that orders its work passes, one that forgets it is found.
#include "check.h"
#include "fake_device.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/zeros.h>

#include <chrono>

namespace check {
namespace {

const at::TensorOptions ON_DEVICE = at::TensorOptions(FAKE);

at::Tensor host(double value, int64_t floats) { return at::full({floats}, value, at::TensorOptions(at::kFloat)); }

void events_order_a_copy_its_use_and_the_copy_to_the_host() {
  const Stream copies, work;
  const at::Tensor source = pinned(5000), result = pinned(5000);
  source.fill_(-2);
  const at::Tensor x = copies.within([] { return at::empty({5000}, ON_DEVICE); });
  copies.within([&] { return x.copy_(source, true); });
  order(copies, work);
  const at::Tensor y = work.within([&] { return x * 3; });
  order(work, copies);
  copies.within([&] { return result.copy_(y, true); });
  const Event end;
  end.record(copies);
  end.synchronize();
  is_equal(result, host(-6, 5000), "the result");
}

void a_missing_event_between_a_copy_and_its_use_is_found() {
  const Stream copies, work;
  const at::Tensor source = pinned(5000);
  source.fill_(1);
  const at::Tensor x = copies.within([] { return at::empty({5000}, ON_DEVICE); });
  copies.within([&] { return x.copy_(source, true); });
  violates("(read-after-write)", [&] { work.within([&] { return at::relu(x); }); });
  copies.synchronize();
}

void a_missing_event_between_a_use_and_the_next_copy_is_found() {
  const Stream copies, work;
  const at::Tensor x = at::ones({5000}, ON_DEVICE);
  call(table().device_synchronize, 0);
  const at::Tensor y = work.within([&] { return at::relu(x); });
  violates("aten::zero_ writes", [&] { copies.within([&] { return x.zero_(); }); });
  violates("(write-after-read)", [&] { copies.within([&] { return x.zero_(); }); });
}

void two_writes_without_order_are_found() {
  const Stream one, other;
  const at::Tensor x = one.within([] { return at::zeros({5000}, ON_DEVICE); });
  violates("(write-after-write)", [&] { other.within([&] { return x.fill_(1); }); });
}

void the_message_names_both_streams_and_the_default_one() {
  const Stream one;
  const at::Tensor x = at::zeros({5000}, ON_DEVICE);
  violates("while aten::zero_ on the default stream of cuda:0 may still write it",
           [&] { one.within([&] { return x.add_(1); }); });
}

void parts_of_a_tensor_are_apart() {
  const Stream one, other;
  const at::Tensor x = at::zeros({2, 5000}, ON_DEVICE);
  call(table().device_synchronize, 0);
  one.within([&] { return x[0].fill_(1); });
  other.within([&] { return x[1].fill_(2); });
  violates("(read-after-write)", [&] { other.within([&] { return x[0].sum(); }); });
  violates("(read-after-write)", [&] { other.within([&] { return x.sum(); }); });
}

void order_goes_through_a_third_stream() {
  const Stream one, two, three;
  const at::Tensor x = one.within([] { return at::ones({5000}, ON_DEVICE); });
  order(one, two);
  order(two, three);
  three.within([&] { return at::relu(x); });
}

void an_event_orders_only_what_came_before_it() {
  const Stream one, two;
  const at::Tensor x = one.within([] { return at::zeros({5000}, ON_DEVICE); });
  const Event event;
  event.record(one);
  one.within([&] { return x.fill_(1); });
  event.block(two);
  violates("(read-after-write)", [&] { two.within([&] { return at::relu(x); }); });
}

void whatever_the_host_has_waited_for_is_ordered() {
  const Stream one, two;
  const at::Tensor x = one.within([] { return at::ones({5000}, ON_DEVICE); });
  one.synchronize();
  two.within([&] { return x.add_(1); });
  const Event event;
  event.record(two);
  int queries = 1;
  while (!event.is_over()) ++queries;
  that(queries == 3, "the event was over at query " + std::to_string(queries));
  one.within([&] { return x.add_(1); });
  that(one.within([&] { return x.sum().item<float>(); }) == 15000, "the sum");
}

void camlens_own_kernels_are_ordered_too() {
  const Stream one, two;
  const at::Tensor source = at::ones({1, 4, 8, 8}, ON_DEVICE);
  call(table().device_synchronize, 0);
  const at::Tensor gradient = one.within([] { return at::full({1, 4, 8, 8}, 2.0, ON_DEVICE); });
  const at::Tensor* const gradients[] = {&gradient};
  at::Tensor* result = nullptr;
  const auto gate = [&](double low) {
    two.within([&] {
      call(table().gate, gradients, size_t{1}, &source, low, 6.0, true, &result);
      return 0;
    });
  };
  violates("camlens_gate_float32 reads", [&] { gate(0); });
  order(one, two);
  for (const double low : {0.0, 1.0}) {
    gate(low);
    const at::Tensor taken = *result;
    delete result;
    two.synchronize();
    is_equal(taken, at::full({1, 4, 8, 8}, low == 0 ? 2.0 : 0.0, at::TensorOptions(at::kFloat)), "the gate");
  }
}

// ---- page-locked memory ----

void the_host_may_not_read_what_is_still_being_copied() {
  const Stream stream;
  const at::Tensor result = pinned(5000);
  const at::Tensor x = stream.within([] { return at::ones({5000}, ON_DEVICE); });
  stream.within([&] { return result.copy_(x, true); });
  volatile const float* const first = result.const_data_ptr<float>();
  dies("page-locked memory before it has waited", [&] { static_cast<void>(*first); });
  dies("page-locked memory before it has waited", [&] { *const_cast<float*>(const_cast<const float*>(first)) = 1; });
  stream.synchronize();
  lives([&] { static_cast<void>(*first); });
  is_equal(result, host(1, 5000), "the copy");
}

void the_host_may_not_write_what_is_still_being_copied() {
  const Stream stream;
  const at::Tensor source = pinned(5000);
  source.fill_(1);
  const at::Tensor x = stream.within([] { return at::empty({5000}, ON_DEVICE); });
  stream.within([&] { return x.copy_(source, true); });
  float* const first = source.mutable_data_ptr<float>();
  dies("page-locked memory before it has waited", [&] { *first = 2; });
  lives([&] { static_cast<void>(*static_cast<volatile float*>(first)); });
  const Event event;
  event.record(stream);
  event.synchronize();
  lives([&] { *first = 2; });
}

void small_parts_of_page_locked_memory_are_watched_without_pages() {
  const Stream stream;
  const at::Tensor both = pinned(100), x = at::ones({50}, ON_DEVICE);
  const at::Tensor source = both.slice(0, 0, 50), result = both.slice(0, 50);
  source.fill_(3);
  call(table().device_synchronize, 0);
  stream.within([&] { return result.copy_(x, true); });
  that(result.isnan().all().item<bool>(), "the copy shows before it has arrived");
  stream.within([&] { return x.copy_(source, true); });
  source.fill_(4);
  violates("the host has written to page-locked memory", [&] { stream.synchronize(); });
  is_equal(result, host(1, 50), "the copy");
}

void a_copy_to_the_host_has_what_was_there_when_it_was_queued() {
  const Stream stream;
  const at::Tensor result = pinned(5000);
  const at::Tensor x = stream.within([] { return at::ones({5000}, ON_DEVICE); });
  stream.within([&] {
    result.copy_(x, true);
    return x.fill_(7);
  });
  stream.synchronize();
  is_equal(result, host(1, 5000), "the copy");
}

void streams_order_their_copies_of_page_locked_memory() {
  const Stream one, two;
  const at::Tensor between = pinned(5000);
  const at::Tensor x = one.within([] { return at::ones({5000}, ON_DEVICE); });
  const at::Tensor y = two.within([] { return at::zeros({5000}, ON_DEVICE); });
  one.within([&] { return between.copy_(x, true); });
  violates("page-locked memory", [&] { two.within([&] { return y.copy_(between, true); }); });
  order(one, two);
  two.within([&] { return y.copy_(between, true); });
  two.synchronize();
  is_equal(y, host(1, 5000), "the copy");
}

void page_locked_memory_may_be_dropped_before_its_copy_has_arrived() {
  const Stream stream;
  const at::Tensor x = stream.within([] { return at::ones({5000}, ON_DEVICE); });
  stream.within([&] { return pinned(5000).copy_(x, true); });
  stream.synchronize();
}

// ---- time ----

void time_goes_on_and_events_measure_it() {
  const Stream stream;
  const Event begin(true), end(true), without;
  begin.record(stream);
  stream.within([] { return at::ones({5000}, ON_DEVICE); });
  end.record(stream);
  without.record(stream);
  float ms = 0;
  fails("not over", [&] { call(table().event_elapsed, begin.raw, end.raw, &ms); });
  without.synchronize();
  call(table().event_elapsed, begin.raw, end.raw, &ms);
  that(ms > 0 && ms < 10000, "the time is " + std::to_string(ms) + " ms");
  fails("without timing", [&] { call(table().event_elapsed, begin.raw, without.raw, &ms); });
}

void a_slow_device_is_waited_for() {
  const Stream stream, other;
  const Event begin(true), end(true), after;
  fake_cuda_slow(20'000'000);
  begin.record(stream);
  const auto queued = std::chrono::steady_clock::now();
  stream.within([] { return at::ones({10}, ON_DEVICE) + 1; });
  end.record(stream);
  fake_cuda_slow(0);
  end.block(other);
  after.record(other);
  for (int query = 0; query < 5; ++query) {
    that(!end.is_over(), "the event is over too early");
    that(!after.is_over(), "the event of the stream that waits is over too early");
  }
  end.synchronize();
  const std::chrono::duration<double, std::milli> waited = std::chrono::steady_clock::now() - queued;
  float ms = 0;
  call(table().event_elapsed, begin.raw, end.raw, &ms);
  that(waited.count() >= 40 && ms >= 40, std::to_string(waited.count()) + " ms, " + std::to_string(ms) + " ms");
}

}  // namespace

void ordering() {
  run("events order a copy, its use and the copy to the host", events_order_a_copy_its_use_and_the_copy_to_the_host);
  run("a missing event: copy, use", a_missing_event_between_a_copy_and_its_use_is_found);
  run("a missing event: use, next copy", a_missing_event_between_a_use_and_the_next_copy_is_found);
  run("a missing event: two writes", two_writes_without_order_are_found);
  run("the message names both streams", the_message_names_both_streams_and_the_default_one);
  run("parts of a tensor are apart", parts_of_a_tensor_are_apart);
  run("order goes through a third stream", order_goes_through_a_third_stream);
  run("an event orders only what came before it", an_event_orders_only_what_came_before_it);
  run("whatever the host has waited for is ordered", whatever_the_host_has_waited_for_is_ordered);
  run("camlens's own kernels are ordered too", camlens_own_kernels_are_ordered_too);
  run("page-locked memory: early reads die", the_host_may_not_read_what_is_still_being_copied);
  run("page-locked memory: early writes die", the_host_may_not_write_what_is_still_being_copied);
  run("page-locked memory: small parts", small_parts_of_page_locked_memory_are_watched_without_pages);
  run("a copy has what was there when it was queued", a_copy_to_the_host_has_what_was_there_when_it_was_queued);
  run("page-locked memory between two streams", streams_order_their_copies_of_page_locked_memory);
  run("page-locked memory dropped early", page_locked_memory_may_be_dropped_before_its_copy_has_arrived);
  run("events measure time", time_goes_on_and_events_measure_it);
  run("a slow device is waited for", a_slow_device_is_waited_for);
}

}  // namespace check
