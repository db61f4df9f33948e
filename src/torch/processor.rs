//! What the processor has.

use tch::Kind;

/// Whether the processor multiplies bfloat16 numbers by itself, and oneDNN uses that: AVX-512 BF16 (Intel from Cooper Lake and
/// Sapphire Rapids on, AMD from Zen 4 on), or Arm's BF16.
pub fn has_bfloat16() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = std::arch::is_x86_feature_detected!("avx512bf16") && std::arch::is_x86_feature_detected!("avx512bw");
    #[cfg(target_arch = "aarch64")]
    let has = std::arch::is_aarch64_feature_detected!("bf16");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let has = false;
    has
}

/// Whether oneDNN's operators, as ATen carries them (`mkldnn::…`), are there for a dtype, and fast.
pub fn has_kernels(kind: Kind) -> bool {
    kind == Kind::Float || (kind == Kind::BFloat16 && has_bfloat16())
}
