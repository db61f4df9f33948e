// Graphs: what a capture records and refuses, and what launches do to memory that is shared.
#include "check.h"
#include "fake_device.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/_index_put_impl.h>
#include <ATen/ops/add.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/max_pool2d_with_indices.h>
#include <ATen/ops/max_pool2d_with_indices_backward.h>
#include <ATen/ops/nonzero.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <thread>

namespace check {
namespace {

const at::TensorOptions ON_DEVICE = at::TensorOptions(FAKE);
constexpr int64_t FLOATS = 5000;

at::Tensor host(double value) { return at::full({FLOATS}, value, at::TensorOptions(at::kFloat)); }

// A tensor of the stream, written and waited for.
at::Tensor filled(const Stream& stream, double value) {
  const at::Tensor result = stream.within([&] { return at::full({FLOATS}, value, ON_DEVICE); });
  stream.synchronize();
  return result;
}

void is_on_host(const Stream& stream, const at::Tensor& tensor, double value) {
  stream.synchronize();
  is_equal(stream.within([&] { return tensor.cpu(); }), host(value), "the tensor");
}

// Throws what it throws.
void in_another_thread(const std::function<void()>& body) {
  std::exception_ptr thrown;
  std::thread([&] {
    try {
      body();
    } catch (...) {
      thrown = std::current_exception();
    }
  }).join();
  if (thrown) std::rethrow_exception(thrown);
}

void a_launch_computes_from_what_memory_holds_then() {
  const Stream stream;
  const Pool pool;
  const at::Tensor x = filled(stream, -1);
  const camlens_cuda_counts before = counts();
  const Graph graph(pool, stream);
  const at::Tensor y = stream.within([&] { return at::relu(x * 2) + x.sum() / FLOATS; });
  graph.end();
  that(counts().kernels == before.kernels, "the capture has run kernels");
  const void* const place = y.const_data_ptr();
  graph.launch(stream);
  that(counts().kernels == before.kernels + 5, "the launch has run other kernels");
  that(counts().graph_launches == before.graph_launches + 1, "the launch is not counted");
  is_on_host(stream, y, -1);
  stream.within([&] { return x.fill_(3); });
  graph.launch(stream);
  is_on_host(stream, y, 9);
  that(y.const_data_ptr() == place, "the result has moved");
}

void a_launch_has_the_numbers_of_the_capture() {
  const Stream stream;
  const Pool pool;
  const at::Tensor x = filled(stream, 1), number = at::full({}, 2, at::TensorOptions(at::kFloat));
  const Graph graph(pool, stream);
  const at::Tensor y = stream.within([&] { return x + number; });
  graph.end();
  number.fill_(5);
  graph.launch(stream);
  is_on_host(stream, y, 3);
}

void results_are_nothing_before_a_launch() {
  const Stream stream;
  const Pool pool;
  const at::Tensor x = filled(stream, 1);
  const Graph graph(pool, stream);
  const at::Tensor y = stream.within([&] { return x + 1; });
  graph.end();
  violates("its graph has not been launched", [&] { stream.within([&] { return y.cpu(); }); });
  violates("its graph has not been launched", [&] { stream.within([&] { return at::relu(y); }); });
}

void a_capture_changes_nothing() {
  const Stream stream;
  const Pool pool;
  const at::Tensor x = filled(stream, 1), out = stream.within([] { return at::empty({FLOATS}, ON_DEVICE); });
  const Graph graph(pool, stream);
  stream.within([&] {
    x.add_(1);
    return at::add_out(const_cast<at::Tensor&>(out), x, x);
  });
  graph.end();
  is_on_host(stream, x, 1);
  violates("which nothing has written", [&] { stream.within([&] { return out.cpu(); }); });
  graph.launch(stream);
  is_on_host(stream, x, 2);
  is_on_host(stream, out, 4);
}

void waiting_is_refused(const std::string& what, const std::function<void(const Stream&, const at::Tensor&)>& wait) {
  const Stream stream;
  const Pool pool;
  const at::Tensor x = filled(stream, 1);
  {
    const Graph graph(pool, stream);
    stream.within([&] {
      fails("operation not permitted when stream is capturing: " + what, [&] { wait(stream, x); });
      // The capture is over, whatever follows.
      fails("due to a previous error during capture", [&] { at::relu(x); });
      return 0;
    });
    fails("due to a previous error during capture: " + what, [&] { graph.end(); });
    fails("was not captured", [&] { graph.launch(stream); });
  }
  is_on_host(stream, x, 1);
}

void whatever_waits_is_refused() {
  const Stream other;
  const Event event, outside;
  outside.record(other);
  waiting_is_refused("to wait for a stream", [](const Stream& stream, const at::Tensor&) { stream.synchronize(); });
  waiting_is_refused("to wait for a stream", [&](const Stream&, const at::Tensor&) { other.synchronize(); });
  waiting_is_refused("to wait for a device",
                     [](const Stream&, const at::Tensor&) { call(table().device_synchronize, 0); });
  waiting_is_refused("to wait for an event on the host", [&](const Stream& stream, const at::Tensor&) {
    event.record(stream);
    event.synchronize();
  });
  waiting_is_refused("the query of an event",
                     [&](const Stream&, const at::Tensor&) { static_cast<void>(outside.is_over()); });
  waiting_is_refused("to wait for an event that was recorded outside",
                     [&](const Stream& stream, const at::Tensor&) { outside.block(stream); });
  waiting_is_refused("aten::_local_scalar_dense",
                     [](const Stream&, const at::Tensor& x) { static_cast<void>(x[0].item<float>()); });
  waiting_is_refused("aten::_index_put_impl_", [](const Stream&, const at::Tensor& x) {
    at::_index_put_impl_(const_cast<at::Tensor&>(x), {at::ones({2}, at::TensorOptions(at::kLong))}, x[0]);
  });
  waiting_is_refused("aten::nonzero", [](const Stream&, const at::Tensor& x) { at::nonzero(x); });
  waiting_is_refused("a copy to the host that blocks", [](const Stream&, const at::Tensor& x) { x.cpu(); });
  waiting_is_refused("a copy to the device that blocks", [](const Stream&, const at::Tensor& x) { x.copy_(host(2)); });
  waiting_is_refused("to give memory back", [](const Stream&, const at::Tensor&) { call(table().memory_release, 0); });
  waiting_is_refused("to wait for a device", [](const Stream&, const at::Tensor&) {
    in_another_thread([] { call(table().device_synchronize, 0); });
  });
}

void what_cannot_be_captured_says_so() {
  const Stream stream, other;
  const Pool pool;
  {
    const Graph graph(pool, stream);
    fails("captures already", [&] { Graph(pool, other); });
    in_another_thread([&] { fails("captured already", [&] { Graph(pool, stream); }); });
    in_another_thread([&] { fails("by another thread", [&] { graph.end(); }); });
  }
  const Graph graph(pool, stream);
  graph.end();
  fails("has ended already", [&] { graph.end(); });
}

void other_streams_join_a_capture() {
  const Stream stream, other, launching;
  const Pool pool;
  const at::Tensor x = filled(stream, 1);
  at::Tensor y, z;
  const Event fork, join;
  const Graph graph(pool, stream);
  stream.within([&] { return y = x + 1; });
  fork.record(stream);
  fork.block(other);
  other.within([&] { return z = y * 10; });
  join.record(other);
  join.block(stream);
  stream.within([&] { return y.add_(z); });
  graph.end();
  graph.launch(launching);
  is_on_host(launching, y, 22);
  fails("recorded in a capture", [&] { join.synchronize(); });
}

void branches_of_a_capture_are_ordered_or_found() {
  const Stream stream, other;
  const Pool pool;
  const at::Tensor x = filled(stream, 1);
  const Event fork, join;
  {
    const Graph graph(pool, stream);
    fork.record(stream);
    fork.block(other);
    other.within([&] { return at::relu(x); });
    fails("not joined", [&] { graph.end(); });
  }
  const Graph graph(pool, stream);
  fork.record(stream);
  fork.block(other);
  other.within([&] { return x.mul_(2); });
  const at::Tensor y = stream.within([&] { return x + 1; });
  join.record(other);
  join.block(stream);
  graph.end();
  violates("(read-after-write)", [&] { graph.launch(stream); });
}

void copies_of_page_locked_memory_are_recorded() {
  const Stream stream;
  const Pool pool;
  const at::Tensor source = pinned(FLOATS), result = pinned(FLOATS), x = filled(stream, 0);
  source.fill_(1);
  result.fill_(0);
  const Graph graph(pool, stream);
  stream.within([&] {
    x.copy_(source, true);
    return result.copy_(x + 1, true);
  });
  graph.end();
  is_equal(result, host(0), "the memory of the host before a launch");
  is_on_host(stream, x, 0);
  for (const double value : {2.0, 3.0}) {
    source.fill_(value);
    graph.launch(stream);
    dies("page-locked memory before it has waited", [&] { *result.mutable_data_ptr<float>() = 1; });
    stream.synchronize();
    is_equal(result, host(value + 1), "the memory of the host after a launch");
  }
}

void indices_that_a_capture_computes_are_valid_in_it() {
  const Stream stream;
  const Pool pool;
  const at::Tensor x = at::randn({1, 2, 8, 8}).to(FAKE), ones = at::ones({1, 2, 4, 4}, ON_DEVICE);
  call(table().device_synchronize, 0);
  at::Tensor indices, gradient;
  const Graph forward(pool, stream);
  stream.within([&] { return indices = std::get<1>(at::max_pool2d_with_indices(x, 2)); });
  forward.end();
  const Graph reverse(pool, stream);
  stream.within([&] {
    return gradient = at::max_pool2d_with_indices_backward(ones, x, {2, 2}, {2, 2}, {0, 0}, {1, 1}, false, indices);
  });
  reverse.end();
  violates("its graph has not been launched", [&] { reverse.launch(stream); });
  forward.launch(stream);
  reverse.launch(stream);
  that(stream.within([&] { return gradient.sum().item<float>(); }) == 32, "the sum of the gradient");
}

void gradients_are_recorded_whichever_thread_computes_them() {
  const Stream stream;
  const Pool pool;
  const at::Tensor x = filled(stream, 2);
  const Graph graph(pool, stream);
  const at::Tensor gradient = stream.within([&] {
    const at::AutoGradMode with_gradient(true);
    const at::Tensor leaf = x.detach().requires_grad_(true);
    return torch::autograd::grad({leaf * leaf}, {leaf}, {at::ones_like(leaf)})[0];
  });
  graph.end();
  violates("its graph has not been launched", [&] { stream.within([&] { return gradient.cpu(); }); });
  graph.launch(stream);
  is_on_host(stream, gradient, 4);
}

void camlens_own_kernels_are_recorded() {
  const Stream stream;
  const Pool pool;
  const at::Tensor value = stream.within([] { return at::full({1, 4, 8, 8}, 5.0, ON_DEVICE); });
  const at::Tensor other = stream.within([] { return at::full({1, 4, 8, 8}, 2.0, ON_DEVICE); });
  stream.synchronize();
  at::Tensor* map = nullptr;
  const Graph graph(pool, stream);
  stream.within([&] {
    const at::Tensor* const none = nullptr;
    call(table().epilogue, &value, none, &other, 0.0, 6.0);
    call(table().grad_cam, &value, &other, &map);
    return 0;
  });
  graph.end();
  const at::Tensor taken = *map;
  delete map;
  that(stream.within([&] { return value.sum().item<float>(); }) == 5 * 256, "the capture has changed memory");
  graph.launch(stream);
  // Four channels of 6, weighted by 2.
  that(stream.within([&] { return taken.sum().item<float>(); }) == 48 * 64, "the map");
}

void a_graph_must_not_outlive_its_arguments() {
  const Stream stream;
  const Pool pool;
  at::Tensor x = filled(stream, 1);
  const Graph graph(pool, stream);
  const at::Tensor y = stream.within([&] { return x + 1; });
  graph.end();
  graph.launch(stream);
  is_on_host(stream, y, 2);
  x.reset();
  violates("has been freed since the capture", [&] { graph.launch(stream); });
  const at::Tensor next = filled(stream, 5);
  violates("has been freed since the capture", [&] { graph.launch(stream); });
}

// `first` keeps a result and uses more memory in between; `second` has its result there.
struct Two {
  explicit Two(const Pool& pool, const Stream& stream)
      : x(filled(stream, 1)),
        first(pool, stream),
        first_result(stream.within([&] {
          const at::Tensor between = x + 1;
          return between * 10;
        })),
        first_is_over(end(first)),
        second(pool, stream),
        second_result(stream.within([&] { return x + first_result; })),
        second_is_over(end(second)) {}

  static bool end(const Graph& graph) {
    graph.end();
    return true;
  }

  at::Tensor x;
  Graph first;
  at::Tensor first_result;
  bool first_is_over;
  Graph second;
  at::Tensor second_result;
  bool second_is_over;
};

void graphs_of_a_pool_share_what_is_dropped() {
  const Stream stream;
  const Pool pool;
  const Two graphs(pool, stream);
  graphs.first.launch(stream);
  graphs.second.launch(stream);
  is_on_host(stream, graphs.first_result, 20);
  is_on_host(stream, graphs.second_result, 21);
  graphs.first.launch(stream);
  is_on_host(stream, graphs.first_result, 20);
  violates("the launch of another graph of the pool has overwritten",
           [&] { stream.within([&] { return graphs.second_result.cpu(); }); });
  graphs.second.launch(stream);
  is_on_host(stream, graphs.second_result, 21);
}

void graphs_of_two_pools_share_nothing() {
  const Stream stream;
  const Pool one, other;
  const at::Tensor x = filled(stream, 1);
  const Graph first(one, stream);
  const at::Tensor y = stream.within([&] { return (x + 1) * 10; });
  first.end();
  const Graph second(other, stream);
  const at::Tensor z = stream.within([&] { return x + 5; });
  second.end();
  second.launch(stream);
  first.launch(stream);
  is_on_host(stream, z, 6);
  is_on_host(stream, y, 20);
}

void graphs_of_a_pool_do_not_run_beside_each_other() {
  const Stream stream, other;
  const Pool pool;
  const Two graphs(pool, stream);
  graphs.first.launch(stream);
  violates("while another graph of its pool may still run", [&] { graphs.second.launch(other); });
  order(stream, other);
  graphs.second.launch(other);
  // A graph waits for itself.
  graphs.second.launch(stream);
  is_on_host(stream, graphs.second_result, 21);
}

void the_order_of_launches_and_other_work_is_watched() {
  const Stream stream, other;
  const Pool pool;
  const Two graphs(pool, stream);
  graphs.first.launch(stream);
  violates("(read-after-write)", [&] { other.within([&] { return at::relu(graphs.first_result); }); });
  order(stream, other);
  other.within([&] { return at::relu(graphs.first_result); });
  violates("(write-after-read)", [&] { graphs.first.launch(stream); });
}

void the_memory_of_a_pool_comes_back() {
  const uint64_t before = memory().allocated_bytes;
  {
    const Stream stream;
    const Pool pool;
    const Two graphs(pool, stream);
    that(memory().allocated_bytes > before, "the graphs have no memory");
  }
  that(memory().allocated_bytes == before, "the tensors' bytes have not come back");
  call(table().memory_release, 0);
  that(memory().reserved_bytes < before + FLOATS * 4, "the pool's memory has not come back");
}

}  // namespace

void graphs() {
  run("a launch computes from what memory holds then", a_launch_computes_from_what_memory_holds_then);
  run("a launch has the numbers of the capture", a_launch_has_the_numbers_of_the_capture);
  run("results are nothing before a launch", results_are_nothing_before_a_launch);
  run("a capture changes nothing", a_capture_changes_nothing);
  run("whatever waits is refused", whatever_waits_is_refused);
  run("what cannot be captured says so", what_cannot_be_captured_says_so);
  run("other streams join a capture", other_streams_join_a_capture);
  run("branches of a capture", branches_of_a_capture_are_ordered_or_found);
  run("copies of page-locked memory are recorded", copies_of_page_locked_memory_are_recorded);
  run("indices that a capture computes are valid", indices_that_a_capture_computes_are_valid_in_it);
  run("gradients are recorded", gradients_are_recorded_whichever_thread_computes_them);
  run("camlens's own kernels are recorded", camlens_own_kernels_are_recorded);
  run("a graph must not outlive its arguments", a_graph_must_not_outlive_its_arguments);
  run("graphs of a pool share what is dropped", graphs_of_a_pool_share_what_is_dropped);
  run("graphs of two pools share nothing", graphs_of_two_pools_share_nothing);
  run("graphs of a pool do not run beside each other", graphs_of_a_pool_do_not_run_beside_each_other);
  run("launches and other work", the_order_of_launches_and_other_work_is_watched);
  run("the memory of a pool comes back", the_memory_of_a_pool_comes_back);
}

}  // namespace check
