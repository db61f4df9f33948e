// The instruction sets that camlens's own kernels use.
#pragma once
#include <cstdint>

namespace camlens {

// Numbered as in features.rs; each includes those before it.
enum class Isa : int32_t {
  // What every processor of the architecture has.
  DEFAULT = 0,
  // AVX2 and FMA.
  AVX2 = 1,
  // AVX-512 F.
  AVX512 = 2,
  // AVX-512 BF16 and BW.
  AVX512_BF16 = 3,
  // Not a value of CAMLENS_MAX_CPU_ISA.
  UNKNOWN = 4,
};

// The best instruction set that the processor has and the environment variable CAMLENS_MAX_CPU_ISA allows. The variable
// is read once.
Isa isa();

}  // namespace camlens

extern "C" {

// `camlens::isa()`.
int32_t camlens_isa();

// The `camlens::Isa` that a value of CAMLENS_MAX_CPU_ISA allows: "default", "avx2", "avx512" or "avx512_bf16", in upper
// or lower case; all of them if it is empty or null.
int32_t camlens_isa_allowed(const char* value);
}
