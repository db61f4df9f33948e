#include "isa.h"

#include <strings.h>

#include <algorithm>
#include <cstdlib>

namespace camlens {

namespace {

Isa best_of_processor() {
#if defined(__x86_64__)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::DEFAULT;
  if (!__builtin_cpu_supports("avx512f")) return Isa::AVX2;
  const bool has_bfloat16 = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw");
  return has_bfloat16 ? Isa::AVX512_BF16 : Isa::AVX512;
#else
  return Isa::DEFAULT;
#endif
}

Isa allowed(const char* value) {
  if (value == nullptr || *value == '\0') return Isa::AVX512_BF16;
  if (strcasecmp(value, "default") == 0) return Isa::DEFAULT;
  if (strcasecmp(value, "avx2") == 0) return Isa::AVX2;
  if (strcasecmp(value, "avx512") == 0) return Isa::AVX512;
  if (strcasecmp(value, "avx512_bf16") == 0) return Isa::AVX512_BF16;
  return Isa::UNKNOWN;
}

Isa found() {
  const Isa most = allowed(std::getenv("CAMLENS_MAX_CPU_ISA"));
  // The command line refuses such a value before anything is computed.
  return most == Isa::UNKNOWN ? Isa::DEFAULT : std::min(most, best_of_processor());
}

}  // namespace

Isa isa() {
  static const Isa best = found();
  return best;
}

}  // namespace camlens

extern "C" {

int32_t camlens_isa() { return static_cast<int32_t>(camlens::isa()); }

int32_t camlens_isa_allowed(const char* value) { return static_cast<int32_t>(camlens::allowed(value)); }
}
