#include "isa.h"

#include <strings.h>

#include <algorithm>
#include <cstdlib>

namespace {

CamlensIsa best_of_processor() {
#if defined(__x86_64__)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return CAMLENS_ISA_DEFAULT;
  if (!__builtin_cpu_supports("avx512f")) return CAMLENS_ISA_AVX2;
  const bool has_bfloat16 = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw");
  return has_bfloat16 ? CAMLENS_ISA_AVX512_BF16 : CAMLENS_ISA_AVX512;
#else
  return CAMLENS_ISA_DEFAULT;
#endif
}

CamlensIsa found() {
  const CamlensIsa allowed = camlens_isa_allowed(std::getenv("CAMLENS_MAX_CPU_ISA"));
  // Whoever starts a program is told of a value that means nothing; a library that is loaded without one holds on to
  // the least.
  return allowed == CAMLENS_ISA_UNKNOWN ? CAMLENS_ISA_DEFAULT : std::min(allowed, best_of_processor());
}

}  // namespace

extern "C" {

CamlensIsa camlens_isa_allowed(const char* value) {
  if (value == nullptr || *value == '\0') return CAMLENS_ISA_AVX512_BF16;
  const char* const names[] = {"default", "avx2", "avx512", "avx512_bf16"};
  for (int isa = CAMLENS_ISA_DEFAULT; isa < CAMLENS_ISA_UNKNOWN; ++isa) {
    if (strcasecmp(value, names[isa]) == 0) return static_cast<CamlensIsa>(isa);
  }
  return CAMLENS_ISA_UNKNOWN;
}

CamlensIsa camlens_isa() {
  static const CamlensIsa isa = found();
  return isa;
}
}
