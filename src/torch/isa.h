// Which instruction sets the kernels here use.
#pragma once

// Each includes those before it.
enum CamlensIsa {
  // None is asked for beyond what every processor of the architecture has.
  CAMLENS_ISA_DEFAULT,
  // AVX2 and FMA.
  CAMLENS_ISA_AVX2,
  // AVX-512 F.
  CAMLENS_ISA_AVX512,
  // AVX-512 BF16 and BW.
  CAMLENS_ISA_AVX512_BF16,
  // Not one of them.
  CAMLENS_ISA_UNKNOWN,
};

extern "C" {
// The best that the processor has and the environment variable CAMLENS_MAX_CPU_ISA allows, found out once.
enum CamlensIsa camlens_isa();

// What a value of CAMLENS_MAX_CPU_ISA allows: "default", "avx2", "avx512" or "avx512_bf16", in upper or lower case.
// Empty or null: all.
enum CamlensIsa camlens_isa_allowed(const char* value);
}
