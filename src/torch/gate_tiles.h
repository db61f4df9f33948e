// The arithmetic of rectifiers' gates, which are bits: one for each number of a pixel, the lowest of a word first, a pixel's words after each
// other. The numbers of a pixel, and the pixels, lie next to each other. gate_tiles.cpp is compiled as product_tiles.cpp is.
#pragma once
#include <stdint.h>

enum {
  // The numbers that a word tells of.
  CAMLENS_GATE_WORD = 64,
};

struct CamlensPixels {
  int64_t count, channels;
};

// A gate is open for results above `low` and below `high`; a bound that is NaN does not close, and NaN passes.
struct CamlensGateTiles {
  // Which results a gate is open for.
  void (*open)(const void* results, struct CamlensPixels pixels, float low, float high, uint64_t* gates);
  // `one` + `other` between `least` and `most`, none of which is where it is NaN, and which of these results a gate is open for.
  void (*add)(const void* one, const void* other, struct CamlensPixels pixels, float least, float most, float low, float high, void* to,
              uint64_t* gates);
  // `one` + `other`, which may be null, where the gate is open, and 0 elsewhere; `floor` where it is less than that. NaN stays NaN.
  void (*pass)(const void* one, const void* other, struct CamlensPixels pixels, const uint64_t* gates, float floor, void* to);
};

extern "C" {
#if defined(__x86_64__)
extern const struct CamlensGateTiles camlens_gate_tiles_avx2;
extern const struct CamlensGateTiles camlens_gate_tiles_avx512;
extern const struct CamlensGateTiles camlens_gate_tiles_avx512_bf16;
#else
extern const struct CamlensGateTiles camlens_gate_tiles_default;
#endif
}
