//! What the processor has, and what it may be held to.
//!
//! Three libraries choose kernels by the processor, and each can be held to less than it has, so that another
//! processor's path is tested on any machine: ATen by `ATEN_CPU_CAPABILITY`, oneDNN by `ONEDNN_MAX_CPU_ISA`, camlens by
//! [`MAX_CPU_ISA`].

use std::ffi::CString;
use std::sync::OnceLock;

use tch::Kind;

use super::{Operator, Value, ffi};

/// The environment variable that holds camlens's own kernels to an instruction set: `default` (those that need no more
/// than every processor of the architecture has), `avx2`, `avx512` or `avx512_bf16`. Without it they use the best that
/// the processor has. It is read once.
pub const MAX_CPU_ISA: &str = "CAMLENS_MAX_CPU_ISA";

/// Whether [`MAX_CPU_ISA`] is set to something that it can mean.
///
/// # Errors
/// A sentence with the values that it can have. Kernels are held to `default` then.
pub fn check_max_cpu_isa() -> Result<(), String> {
    let Some(value) = std::env::var_os(MAX_CPU_ISA) else { return Ok(()) };
    let value = value.to_string_lossy();
    if allowed(&value) == ffi::ISA_UNKNOWN {
        return Err(format!("{MAX_CPU_ISA} is {value:?}: default, avx2, avx512 and avx512_bf16 are allowed"));
    }
    Ok(())
}

/// What a value of [`MAX_CPU_ISA`] allows.
fn allowed(value: &str) -> std::ffi::c_int {
    let Ok(text) = CString::new(value) else { return ffi::ISA_UNKNOWN };
    // SAFETY: the text ends with a zero and outlives the call.
    unsafe { ffi::camlens_isa_allowed(text.as_ptr()) }
}

/// Whether models run in bfloat16 here: the processor multiplies bfloat16 numbers by itself (AVX-512 BF16: Intel from
/// Cooper Lake and Sapphire Rapids on, AMD from Zen 4 on; or Arm's BF16), and neither oneDNN nor camlens is held to
/// less.
pub fn has_bfloat16() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        let of_x86 = ffi::camlens_isa() >= ffi::ISA_AVX512_BF16;
        #[cfg(target_arch = "aarch64")]
        let of_arm = std::arch::is_aarch64_feature_detected!("bf16");
        #[cfg(not(target_arch = "aarch64"))]
        let of_arm = false;
        (of_x86 || of_arm) && onednn_takes("mkldnn::_is_mkldnn_bf16_supported")
    })
}

/// Whether a network of that dtype is computed in it here: where oneDNN refuses float16 or bfloat16, ATen multiplies
/// number by number, tens of times slower than float32.
pub fn computes_in(kind: Kind) -> bool {
    static HAS_FLOAT16: OnceLock<bool> = OnceLock::new();
    match kind {
        Kind::BFloat16 => has_bfloat16(),
        Kind::Half => *HAS_FLOAT16.get_or_init(|| onednn_takes("mkldnn::_is_mkldnn_fp16_supported")),
        _ => true,
    }
}

/// Whether oneDNN's operators, as ATen carries them (`mkldnn::…`), are there for a dtype, and fast.
pub fn has_kernels(kind: Kind) -> bool {
    kind == Kind::Float || (kind == Kind::BFloat16 && has_bfloat16())
}

/// What oneDNN itself says; it knows the processor, and `ONEDNN_MAX_CPU_ISA`.
fn onednn_takes(question: &str) -> bool {
    let answer = Operator::find(question, "").and_then(|operator| operator.call(&[]));
    matches!(answer.as_deref(), Ok([Value::Bool(true)]))
}

#[cfg(test)]
mod tests {
    use tch::{Device, Tensor};

    use super::*;
    use crate::torch::has_products;

    #[test]
    fn the_variable_has_four_values_and_others_are_unknown() {
        assert_eq!(["default", "avx2", "AVX2", "avx512", "Avx512_BF16", ""].map(allowed), [0, 1, 1, 2, 3, 3]);
        assert!(["avx3", "avx2 ", "avx2\0", "all"].iter().all(|value| allowed(value) == ffi::ISA_UNKNOWN));
        assert_eq!(check_max_cpu_isa(), Ok(()), "these tests run with one of them");
    }

    #[test]
    fn kernels_are_held_to_what_the_environment_says() {
        let Ok(value) = std::env::var(MAX_CPU_ISA) else { return };
        assert!(ffi::camlens_isa() <= allowed(&value));
        assert!(!value.eq_ignore_ascii_case("avx2") || !has_products(Kind::BFloat16));
        assert!(!value.eq_ignore_ascii_case("avx2") || !has_bfloat16());
    }

    #[test]
    fn a_dtype_that_has_kernels_is_one_that_onednn_takes() {
        let convolution = Operator::find("mkldnn::_convolution_pointwise", "").unwrap();
        for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
            let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(kind);
            let pairs = [[0, 0], [1, 1], [1, 1]].map(|pair| Value::Ints(pair.to_vec()));
            let activation = [Value::String("none".into()), Value::Floats(Vec::new()), Value::None];
            let tensors = [random(&[1, 16, 5, 5]), random(&[16, 16, 3, 3])].map(Value::Tensor);
            let arguments: Vec<Value> = tensors
                .into_iter()
                .chain([Value::None])
                .chain(pairs)
                .chain([Value::Int(1)])
                .chain(activation)
                .collect();
            let ran = convolution.call_tensor(&arguments);
            assert!(!has_kernels(kind) || ran.is_ok(), "{kind:?}: {ran:?}");
            // Whatever is computed in float32 instead is what oneDNN refuses, or what the processor is slow in.
            assert!(!computes_in(kind) || ran.is_ok(), "{kind:?}: {ran:?}");
        }
    }
}
