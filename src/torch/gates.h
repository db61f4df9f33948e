// Rectifiers' gates as bits, on the CPU: what comes back through one needs no more of its result. The conventions are those of bridge.h.
//
// The gates of a result `[N, C, H, W]` are int64 `[N, H, W, words]`, as gate_tiles.h says. Tensors with numbers are float32 or bfloat16 as
// `camlens_has_products` says.
#pragma once
#include <cstddef>
#include <cstdint>

namespace at {
class Tensor;
}

extern "C" {

// Which numbers of `result`, whose channels lie next to each other in memory, are between `low` and `high`. A bound that is NaN does not close.
int camlens_gates(const at::Tensor* result, double low, double high, at::Tensor** gates, char** error);

// min(max(`sum` + `other`, low), high), a bound that is NaN being none, of one shape, with the channels next to each other in memory, and the
// gates of these results; in the memory of `sum` where nobody else holds it.
int camlens_add_gates(const at::Tensor* sum, const at::Tensor* other, double low, double high, at::Tensor** result, at::Tensor** gates,
                      char** error);

// Takes a gradient back through gates: the sum of `parts` (1 or 2) where they are open, else 0; `guided`: max(sum, 0) there. The gradient has
// its channels next to each other in memory, and may use the memory of a part that nobody else holds.
int camlens_pass_gates(const at::Tensor* const* parts, size_t part_count, const at::Tensor* gates, bool guided, at::Tensor** gradient,
                       char** error);
}

// Place for the gates of a result, and what the result, which was rounded after it was clamped, is compared with for them.
at::Tensor camlens_gates_for(const at::Tensor& result);
float camlens_gate_bound(const at::Tensor& result, double bound);

// Raises unless they are the gates of results of the gradient's shape, `[N, C, H, W]`.
void camlens_check_gates(const at::Tensor& gates, const at::Tensor& gradient);
