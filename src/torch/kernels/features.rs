//! What the processor can compute with, and in which element types.

use tch::Kind;

use super::element::ElementType;

/// Whether the processor multiplies bfloat16 natively and oneDNN uses it: AVX-512 BF16 (Intel from Cooper Lake and
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

/// Whether oneDNN's operators, as ATen exposes them (`mkldnn::…`), support a dtype and are fast.
pub fn has_onednn_kernels(kind: Kind) -> bool {
    kind == Kind::Float || (kind == Kind::BFloat16 && has_bfloat16())
}

/// Whether the processor has the instructions for camlens's own matrix products in a dtype, and so for
/// [`linear`](super::linear()), [`gemm`](super::gemm()), the sparse kernels, the gates and, in float32,
/// [`winograd`](super::winograd()). On x86: AVX2 or AVX-512 for float32, AVX-512 BF16 for bfloat16.
pub fn has_gemm_kernels(kind: Kind) -> bool {
    ElementType::of(kind).is_some_and(|element| element.panel_width().is_some())
}
