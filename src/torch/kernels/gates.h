// The gates of rectifiers as bits, laid out as micro/gate_layout.h says. All tensors are channels-last and dense, of
// float32 or bfloat16 as `element` says.
#pragma once
#include <cstdint>

namespace camlens {

struct GateLayer {
  int32_t element;
  int64_t pixels, channels;
};

}  // namespace camlens

extern "C" {

// The gates of `results`. A bound that is NaN does not close a gate.
int camlens_gates_find(const camlens::GateLayer* layer, const void* results, float low, float high, uint64_t* gates,
                       char** error);

// Writes clamp(left + right, least, most) to `sums`, which may be `left`, and the gates of these sums. A clamp bound
// that is NaN does not limit.
int camlens_gates_add(const camlens::GateLayer* layer, const void* left, const void* right, float least, float most,
                      float low, float high, void* sums, uint64_t* gates, char** error);

// Writes left + right where the gates are open, 0 elsewhere; with `is_guided`, max(left + right, 0). `right` may be
// null; `passed` may be `left` or `right`.
int camlens_gates_pass(const camlens::GateLayer* layer, const void* left, const void* right, const uint64_t* gates,
                       bool is_guided, void* passed, char** error);
}
