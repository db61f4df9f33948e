// Operators give the same on the fake device as on the CPU, bit for bit, and so do their gradients, to rounding.
#include "check.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/variable.h>

namespace check {
namespace {

using at::Tensor;
using V = std::vector<Tensor>;
using Function = std::function<V(const V&)>;
using Ints = std::vector<int64_t>;

enum class Gradient { COMPARED, NONE };
enum class Results { IDENTICAL, CLOSE };

void are_same(const V& got, const V& wanted, Results results, bool with_strides) {
  that(got.size() == wanted.size(), "another number of tensors");
  for (size_t at = 0; at < got.size(); ++at) {
    that(got[at].defined() == wanted[at].defined(), "another tensor is undefined");
    if (!got[at].defined()) continue;
    that(got[at].device() == FAKE, "a tensor is on " + got[at].device().str());
    that(!with_strides || got[at].strides() == wanted[at].strides(), "other strides");
    const Tensor on_host = got[at].cpu();
    if (results == Results::CLOSE ? !at::allclose(on_host, wanted[at], 1e-5, 1e-6) : !at::equal(on_host, wanted[at]))
      that(false, "differs by " + std::to_string((on_host - wanted[at]).abs().max().item<double>()));
  }
}

V gradients_of(const Function& function, const V& arguments, c10::Device device) {
  const at::AutoGradMode with_gradient(true);
  V leaves, inputs;
  for (const Tensor& argument : arguments) {
    Tensor input = argument.to(device).detach();
    if (input.is_floating_point()) {
      input.requires_grad_(true);
      leaves.push_back(input);
    }
    inputs.push_back(input);
  }
  V outputs, seeds;
  for (const Tensor& output : function(inputs)) {
    if (!output.defined() || !output.requires_grad()) continue;
    outputs.push_back(output);
    seeds.push_back(at::ones_like(output) * 0.5);
  }
  return torch::autograd::grad(outputs, leaves, seeds, true, false, true);
}

void same(const std::string& name, const V& arguments, const Function& function, Gradient gradient = Gradient::COMPARED,
          Results results = Results::IDENTICAL) {
  run(name, [&] {
    V moved;
    for (const Tensor& argument : arguments) moved.push_back(argument.to(FAKE));
    are_same(function(moved), function(arguments), results, true);
  });
  if (gradient == Gradient::NONE) return;
  run(name + ", its gradient", [&] {
    are_same(gradients_of(function, arguments, FAKE), gradients_of(function, arguments, at::kCPU), Results::CLOSE,
             false);
  });
}

V by_name(const char* name, std::vector<c10::IValue> stack) {
  c10::Dispatcher::singleton().findSchemaOrThrow(name, "").callBoxed(&stack);
  V results;
  for (const c10::IValue& value : stack) results.push_back(value.isTensor() ? value.toTensor() : Tensor());
  return results;
}

Tensor random(at::IntArrayRef sizes) { return at::randn(sizes); }

void convolutions(const Tensor& x, const Tensor& w, const Tensor& b) {
  const Tensor mean = random({8}), variance = random({8}).abs() + 0.5;
  // Which have no gradient.
  const auto statistics = [&](const Tensor& x) { return V{mean.to(x.device()), variance.to(x.device())}; };
  same("convolution, batch_norm, relu, pooling, linear",
       {x, w, b, random({8}), random({8}), random({10, 8}), random({10})}, [&](const V& t) {
         const V s = statistics(t[0]);
         const Tensor convolved = at::conv2d(t[0], t[1], t[2], 2, 1);
         const Tensor y = at::relu(at::batch_norm(convolved, t[3], t[4], s[0], s[1], false, 0.1, 1e-5, true));
         return V{at::linear(at::adaptive_avg_pool2d(y, {1, 1}).flatten(1), t[5], t[6])};
       });
  same("native_batch_norm", {random({2, 8, 4, 4}), random({8}), random({8})}, [&](const V& t) {
    const V s = statistics(t[0]);
    return V{std::get<0>(at::native_batch_norm(t[0], t[1], t[2], s[0], s[1], false, 0.1, 1e-5))};
  });
  same("convolution, channels-last", {x, w, b}, [](const V& t) {
    const auto format = at::MemoryFormat::ChannelsLast;
    return V{at::conv2d(t[0].contiguous(format), t[1].contiguous(format), t[2], 1, 1)};
  });
  same("depthwise convolution", {x, random({3, 1, 3, 3})},
       [](const V& t) { return V{at::conv2d(t[0], t[1], {}, 1, 1, 1, 3)}; });
  same("conv_transpose2d", {random({1, 8, 8, 8}), w},
       [](const V& t) { return V{at::conv_transpose2d(t[0], t[1], {}, 2, 1)}; });
  same(
      "convolution of bfloat16", {x.to(at::kBFloat16), w.to(at::kBFloat16)},
      [](const V& t) { return V{at::conv2d(t[0], t[1], {}, 1, 1)}; }, Gradient::NONE);
  same("convolution by name", {x, w, b}, [](const V& t) {
    return by_name("aten::convolution",
                   {t[0], t[1], t[2], Ints{1, 1}, Ints{1, 1}, Ints{1, 1}, false, Ints{0, 0}, int64_t{1}});
  });
  same(
      "convolution_backward by name, of the input alone", {random({2, 8, 16, 16}), x, w},
      [](const V& t) {
        return by_name("aten::convolution_backward",
                       {t[0], t[1], t[2], Ints{8}, Ints{1, 1}, Ints{1, 1}, Ints{1, 1}, false, Ints{0, 0}, int64_t{1},
                        c10::List<bool>({true, false, false})});
      },
      Gradient::NONE);
  same(
      "a convolution for many threads", {random({4, 64, 56, 56}), random({64, 64, 3, 3})},
      [](const V& t) { return V{at::conv2d(t[0], t[1], {}, 1, 1).relu_()}; }, Gradient::NONE);
  run("cuDNN's operators by name", [&] {
    const std::vector<c10::IValue> tail = {b.to(FAKE), Ints{1, 1}, Ints{1, 1}, Ints{1, 1}, int64_t{1}};
    std::vector<c10::IValue> stack = {x.to(FAKE), w.to(FAKE)};
    stack.insert(stack.end(), tail.begin(), tail.end());
    const camlens_cuda_counts before = counts();
    const Tensor rectified = by_name("aten::cudnn_convolution_relu", stack)[0];
    that(counts().kernels == before.kernels + 1, "it is not one kernel");
    stack.insert(stack.begin() + 2, {rectified, 1.0});
    const Tensor sum = by_name("aten::cudnn_convolution_add_relu", stack)[0];
    const Tensor convolved = at::conv2d(x, w, b, 1, 1);
    are_same({rectified, sum}, {convolved.relu(), (convolved + convolved.relu()).relu()}, Results::CLOSE, true);
  });
}

void activations(const Tensor& x) {
  same("relu", {x}, [](const V& t) { return V{at::relu(t[0])}; });
  same("relu_", {x}, [](const V& t) {
    Tensor y = t[0] * 1;
    return V{at::relu_(y)};
  });
  same("threshold_backward", {x, random({2, 3, 16, 16})},
       [](const V& t) { return V{at::threshold_backward(t[0], t[1], 0)}; });
  same("hardtanh", {x}, [](const V& t) { return V{at::hardtanh(t[0], 0, 6)}; });
  same("leaky_relu", {x}, [](const V& t) { return V{at::leaky_relu(t[0], 0.1)}; });
  same("hardswish", {x}, [](const V& t) { return V{at::hardswish(t[0])}; });
  same("gelu", {x}, [](const V& t) { return V{at::gelu(t[0])}; });
  same("silu", {x}, [](const V& t) { return V{at::silu(t[0])}; });
  same("softmax", {x}, [](const V& t) { return V{at::softmax(t[0], -1)}; });
  same("where, clamp, comparison", {x, x * 3},
       [](const V& t) { return V{at::where(t[0] > 0, t[0], t[1]), at::clamp(t[0], -1, 1)}; });
}

void normalisation_and_pooling(const Tensor& x) {
  same("layer_norm", {x, random({16}), random({16})},
       [](const V& t) { return V{at::layer_norm(t[0], {16}, t[1], t[2])}; });
  same("group_norm", {x}, [](const V& t) { return V{at::group_norm(t[0], 3)}; });
  same("max_pool2d", {x}, [](const V& t) { return V{at::max_pool2d(t[0], 3, 2, 1)}; });
  same("max_pool2d_with_indices", {x}, [](const V& t) {
    const auto both = at::max_pool2d_with_indices(t[0], 2);
    return V{std::get<0>(both), std::get<1>(both)};
  });
  same("avg_pool2d", {x}, [](const V& t) { return V{at::avg_pool2d(t[0], 2)}; });
  same("adaptive_avg_pool2d", {x}, [](const V& t) { return V{at::adaptive_avg_pool2d(t[0], {3, 5})}; });
  same("upsample_bilinear2d", {x}, [](const V& t) { return V{at::upsample_bilinear2d(t[0], {33, 20}, false)}; });
  same("padding", {x}, [](const V& t) {
    return V{at::constant_pad_nd(t[0], {1, 2, 3, 4}, 0.5), at::reflection_pad2d(t[0], {1, 1, 1, 1})};
  });
  same("reductions", {x}, [](const V& t) {
    return V{t[0].sum({2, 3}),         t[0].mean({2, 3}, true), t[0].amax({1}),
             std::get<0>(t[0].max(1)), t[0].var({2}, false),    t[0].norm()};
  });
}

void products(const Tensor& x) {
  // The math kernel, not the CPU's flash attention.
  same(
      "scaled_dot_product_attention", {random({2, 4, 9, 8}), random({2, 4, 9, 8}), random({2, 4, 9, 8})},
      [](const V& t) { return V{at::scaled_dot_product_attention(t[0], t[1], t[2]).contiguous()}; }, Gradient::COMPARED,
      Results::CLOSE);
  same("matmul, bmm, addmm", {random({5, 6}), random({6, 7}), random({2, 4, 4}), random({7})},
       [](const V& t) { return V{at::matmul(t[0], t[1]), at::bmm(t[2], t[2]), at::addmm(t[3], t[0], t[1])}; });
  same("einsum", {random({2, 3, 4}), random({4, 5})},
       [](const V& t) { return V{at::einsum("ijk,kl->ijl", {t[0], t[1]})}; });
  same("arithmetic", {x, random({1, 3, 1, 1})}, [](const V& t) { return V{t[0] + t[1] * 2 - 1 / (t[1].abs() + 1)}; });
  same(
      "add_out, add_", {x, x},
      [](const V& t) {
        Tensor y = at::empty({0}, t[0].options());
        at::add_out(y, t[0], t[1]);
        return V{y.add_(1)};
      },
      Gradient::NONE);
  same("cumsum", {x}, [](const V& t) { return V{at::cumsum(t[0], 1)}; });
  same("im2col", {x}, [](const V& t) { return V{at::im2col(t[0], {3, 3}, {1, 1}, {1, 1}, {1, 1})}; });
}

void places(const Tensor& x) {
  const Tensor rows = at::randint(0, 5, {4}, at::kLong);
  same("views", {x}, [](const V& t) {
    const Tensor& y = t[0];
    return V{y.transpose(1, 3), y.permute({0, 2, 3, 1}), y.select(1, 2),      y.slice(2, 1, 12, 3),     y.unsqueeze(0),
             y.squeeze(),       y.reshape({2, -1}),      y.view({6, 256}),    y.expand({2, 3, 16, 16}), y.flatten(2),
             y.narrow(3, 2, 5), y.unfold(2, 4, 2),       y.diagonal(0, 2, 3), y.movedim(1, 3)};
  });
  same(
      "writing through views", {x},
      [](const V& t) {
        const Tensor y = t[0].clone();
        y.select(1, 1).mul_(3);
        y.transpose(2, 3).slice(2, 0, 4).zero_();
        y.view({-1}).slice(0, 3, 7).fill_(9);
        return V{y};
      },
      Gradient::NONE);
  same("split, chunk, unbind", {x},
       [](const V& t) { return V{t[0].split(2, 2)[1], t[0].chunk(3, 1)[2], t[0].unbind(0)[1]}; });
  same("contiguous, clone", {x},
       [](const V& t) { return V{t[0].transpose(1, 2).contiguous(), t[0].clone(at::MemoryFormat::ChannelsLast)}; });
  same("cat, stack", {x, x * 2}, [](const V& t) { return V{at::cat({t[0], t[1]}, 1), at::stack({t[0], t[1]})}; });
  same("index, gather, index_select", {random({5, 6}), rows}, [](const V& t) {
    return V{t[0].index({t[1]}), at::gather(t[0], 0, t[1].unsqueeze(1).expand({4, 6}).contiguous()),
             t[0].index_select(0, t[1])};
  });
  same("embedding", {random({5, 6}), rows}, [](const V& t) { return V{at::embedding(t[0], t[1])}; });
  same(
      "topk, argmax", {random({4, 9})},
      [](const V& t) {
        const auto both = at::topk(t[0], 3);
        return V{std::get<0>(both), std::get<1>(both), t[0].argmax(1)};
      },
      Gradient::NONE);
  same("roll, flip", {x}, [](const V& t) { return V{at::roll(t[0], {1}, {2}), at::flip(t[0], {3})}; });
  same("pixel_shuffle", {random({1, 8, 4, 4})}, [](const V& t) { return V{at::pixel_shuffle(t[0], 2)}; });
  same(
      "dtypes", {x},
      [](const V& t) {
        return V{t[0].to(at::kHalf), t[0].to(at::kBFloat16), t[0].to(at::kDouble), t[0].to(at::kInt),
                 t[0].view(at::kInt)};
      },
      Gradient::NONE);
  same(
      "factories", {x},
      [](const V& t) {
        const auto options = t[0].options();
        return V{at::zeros({3, 2}, options), at::ones({2}, options),         at::full({2}, 7, options),
                 at::arange(5, options),     at::linspace(0, 1, 5, options), at::zeros_like(t[0]),
                 at::eye(3, options),        at::scalar_tensor(3, options)};
      },
      Gradient::NONE);
}

}  // namespace

void operators() {
  at::manual_seed(1);
  const Tensor x = random({2, 3, 16, 16}), w = random({8, 3, 3, 3}), b = random({8});
  convolutions(x, w, b);
  activations(x);
  normalisation_and_pooling(x);
  products(x);
  places(x);
}

}  // namespace check
