#include "gates.h"

#include "../status.h"
#include "dispatch.h"
#include "parallel.h"
#include "row_parts.h"
#include "sparse_rows.h"

#include <algorithm>
#include <limits>

namespace camlens {

namespace {

// Elements per thread, at least.
constexpr int64_t ELEMENTS_PER_THREAD = 16384;

const GateKernels& kernels_of(const GateLayer& layer) {
  return *micro_kernels(static_cast<ElementType>(layer.element))->gates;
}

// Calls `work(first, range)` for ranges of pixels that cover the layer, on as many threads as are worth it.
template <typename Work>
void for_each_range(const GateLayer& layer, const Work& work) {
  const int64_t channels = layer.channels, pixels = layer.pixels;
  if (pixels * channels <= ELEMENTS_PER_THREAD) return work(0, PixelRange{pixels, channels});
  const RowParts parts(pixels, std::max<int64_t>(1, ELEMENTS_PER_THREAD / channels));
  in_parallel(parts.count, [&](int64_t begin, int64_t end) {
    const int64_t first = parts.begin(begin);
    work(first, PixelRange{parts.begin(end) - first, channels});
  });
}

// The elements of a pixel; null if `elements` is.
const char* at_pixel(const GateLayer& layer, const void* elements, int64_t pixel) {
  if (elements == nullptr) return nullptr;
  return static_cast<const char*>(elements) + pixel * layer.channels * size_of(static_cast<ElementType>(layer.element));
}
char* at_pixel(const GateLayer& layer, void* elements, int64_t pixel) {
  return const_cast<char*>(at_pixel(layer, static_cast<const void*>(elements), pixel));
}

}  // namespace

}  // namespace camlens

extern "C" {

int camlens_gates_find(const camlens::GateLayer* layer, const void* results, float low, float high, uint64_t* gates,
                       char** error) {
  using namespace camlens;
  return guarded(error, [&]() -> int {
    const GateKernels& kernels = kernels_of(*layer);
    const int64_t words = mask_words(layer->channels);
    for_each_range(*layer, [&](int64_t first, PixelRange range) {
      kernels.find(at_pixel(*layer, results, first), range, low, high, gates + first * words);
    });
    return CAMLENS_OK;
  });
}

int camlens_gates_add(const camlens::GateLayer* layer, const void* left, const void* right, float least, float most,
                      float low, float high, void* sums, uint64_t* gates, char** error) {
  using namespace camlens;
  return guarded(error, [&]() -> int {
    const GateKernels& kernels = kernels_of(*layer);
    const int64_t words = mask_words(layer->channels);
    for_each_range(*layer, [&](int64_t first, PixelRange range) {
      kernels.add(at_pixel(*layer, left, first), at_pixel(*layer, right, first), range, least, most, low, high,
                  at_pixel(*layer, sums, first), gates + first * words);
    });
    return CAMLENS_OK;
  });
}

int camlens_gates_pass(const camlens::GateLayer* layer, const void* left, const void* right, const uint64_t* gates,
                       bool is_guided, void* passed, char** error) {
  using namespace camlens;
  return guarded(error, [&]() -> int {
    const GateKernels& kernels = kernels_of(*layer);
    const int64_t words = mask_words(layer->channels);
    const float floor = is_guided ? 0.0f : -std::numeric_limits<float>::infinity();
    for_each_range(*layer, [&](int64_t first, PixelRange range) {
      kernels.pass(at_pixel(*layer, left, first), at_pixel(*layer, right, first), range, gates + first * words, floor,
                   at_pixel(*layer, passed, first));
    });
    return CAMLENS_OK;
  });
}
}
