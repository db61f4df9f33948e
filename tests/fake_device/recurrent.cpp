// The cells of recurrent layers, which CUDA has kernels of its own for and the CPU has not: written with the operators
// of both.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <tuple>

namespace fake {
namespace {

using Optional = std::optional<at::Tensor>;
using Tensors = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

at::Tensor with_bias(const at::Tensor& gates, const Optional& bias) {
  return bias && bias->defined() ? gates + *bias : gates;
}

// The hidden state, the cell's state, and the gates after their activations: input, forget, cell, output.
Tensors lstm_cell(const at::Tensor& input_gates, const at::Tensor& hidden_gates, const at::Tensor& before,
                  const Optional& input_bias, const Optional& hidden_bias) {
  const at::Tensor gates = with_bias(input_gates, input_bias) + with_bias(hidden_gates, hidden_bias);
  const auto parts = gates.chunk(4, 1);
  const at::Tensor in = parts[0].sigmoid(), forget = parts[1].sigmoid();
  const at::Tensor now = parts[2].tanh(), out = parts[3].sigmoid();
  const at::Tensor after = forget * before + in * now;
  return {out * after.tanh(), after, at::cat({in, forget, now, out}, 1)};
}

// The gradients of the gates before their activations, of the cell's state before, and of each bias.
Tensors lstm_cell_backward(const Optional& grad_hidden, const Optional& grad_state, const at::Tensor& before,
                           const at::Tensor& after, const at::Tensor& gates, bool has_bias) {
  const auto parts = gates.chunk(4, 1);
  const at::Tensor &in = parts[0], &forget = parts[1], &now = parts[2], &out = parts[3];
  const at::Tensor squashed = after.tanh();
  const auto or_zeros = [&](const Optional& gradient) {
    return gradient && gradient->defined() ? *gradient : at::zeros_like(after);
  };
  const at::Tensor of_hidden = or_zeros(grad_hidden);
  const at::Tensor of_state = or_zeros(grad_state) + of_hidden * out * (1 - squashed * squashed);
  const at::Tensor of_gates = at::cat({of_state * now * in * (1 - in), of_state * before * forget * (1 - forget),
                                       of_state * in * (1 - now * now), of_hidden * squashed * out * (1 - out)},
                                      1);
  return {of_gates, of_state * forget, has_bias ? of_gates.sum(0) : at::Tensor()};
}

// The hidden state, and what its gradient needs: reset, update and new gate, the state before, the hidden part of the
// new gate.
std::tuple<at::Tensor, at::Tensor> gru_cell(const at::Tensor& input_gates, const at::Tensor& hidden_gates,
                                            const at::Tensor& before, const Optional& input_bias,
                                            const Optional& hidden_bias) {
  const auto input = with_bias(input_gates, input_bias).chunk(3, 1);
  const auto hidden = with_bias(hidden_gates, hidden_bias).chunk(3, 1);
  const at::Tensor reset = (input[0] + hidden[0]).sigmoid(), update = (input[1] + hidden[1]).sigmoid();
  const at::Tensor now = (input[2] + reset * hidden[2]).tanh();
  return {now + update * (before - now), at::cat({reset, update, now, before, hidden[2]}, 1)};
}

// The gradients of the input's gates, of the hidden gates, of the state before, and of both biases.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> gru_cell_backward(const at::Tensor& grad_hidden,
                                                                                         const at::Tensor& saved,
                                                                                         bool has_bias) {
  const auto parts = saved.chunk(5, 1);
  const at::Tensor &reset = parts[0], &update = parts[1], &now = parts[2], &before = parts[3], &hidden = parts[4];
  const at::Tensor of_now = grad_hidden * (1 - update) * (1 - now * now);
  const at::Tensor of_update = grad_hidden * (before - now) * update * (1 - update);
  const at::Tensor of_reset = of_now * hidden * reset * (1 - reset);
  const at::Tensor of_input = at::cat({of_reset, of_update, of_now}, 1);
  const at::Tensor of_gates = at::cat({of_reset, of_update, of_now * reset}, 1);
  if (!has_bias) return {of_input, of_gates, grad_hidden * update, at::Tensor(), at::Tensor()};
  return {of_input, of_gates, grad_hidden * update, of_input.sum(0), of_gates.sum(0)};
}

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("_thnn_fused_lstm_cell", lstm_cell);
  library.impl("_thnn_fused_lstm_cell_backward_impl", lstm_cell_backward);
  library.impl("_thnn_fused_gru_cell", gru_cell);
  library.impl("_thnn_fused_gru_cell_backward", gru_cell_backward);
}

}  // namespace
}  // namespace fake
