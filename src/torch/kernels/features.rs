//! What the processor can compute with, and in which element types.
//!
//! Three libraries choose kernels by the processor. Each can be held to fewer instructions, so that another processor's
//! kernels are tested: ATen by `ATEN_CPU_CAPABILITY`, oneDNN by `ONEDNN_MAX_CPU_ISA`, camlens by [`MAX_CPU_ISA`].

use std::ffi::CString;
use std::sync::OnceLock;

use tch::Kind;

use super::element::ElementType;
use super::ffi;
use crate::torch::{Operator, Value};

/// The environment variable that limits the instruction set of camlens's own kernels: `default` (what every processor
/// of the architecture has), `avx2`, `avx512` or `avx512_bf16`. Without it they use the best that the processor has. It
/// is read once.
pub const MAX_CPU_ISA: &str = "CAMLENS_MAX_CPU_ISA";

// As isa.h numbers them.
const AVX512_BF16: i32 = 3;
const UNKNOWN: i32 = 4;

/// Checks the value of [`MAX_CPU_ISA`].
///
/// # Errors
/// Another value than the variable can have. Kernels keep to `default` then.
pub fn check_max_cpu_isa() -> Result<(), String> {
    let Some(value) = std::env::var_os(MAX_CPU_ISA) else { return Ok(()) };
    let value = value.to_string_lossy();
    if allowed(&value) == UNKNOWN {
        return Err(format!("{MAX_CPU_ISA} is {value:?}: default, avx2, avx512 and avx512_bf16 are allowed"));
    }
    Ok(())
}

/// The instruction set that a value of [`MAX_CPU_ISA`] allows.
fn allowed(value: &str) -> i32 {
    let Ok(text) = CString::new(value) else { return UNKNOWN };
    // SAFETY: the text is NUL-terminated and outlives the call.
    unsafe { ffi::camlens_isa_allowed(text.as_ptr()) }
}

/// Whether models run in bfloat16 here: the processor multiplies bfloat16 natively (AVX-512 BF16: Intel from Cooper
/// Lake and Sapphire Rapids on, AMD from Zen 4 on; or Arm's BF16), and neither [`MAX_CPU_ISA`] nor oneDNN's own
/// variable forbids it.
pub fn has_bfloat16() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        let on_x86 = ffi::camlens_isa() >= AVX512_BF16;
        #[cfg(target_arch = "aarch64")]
        let on_arm = std::arch::is_aarch64_feature_detected!("bf16");
        #[cfg(not(target_arch = "aarch64"))]
        let on_arm = false;
        (on_x86 || on_arm) && onednn_answers("mkldnn::_is_mkldnn_bf16_supported")
    })
}

/// Whether a model that was saved in a dtype runs in it here. Where oneDNN does not support float16 or bfloat16, ATen
/// convolves and multiplies with scalar loops, tens of times slower than in float32.
pub fn computes_in(kind: Kind) -> bool {
    static HAS_FLOAT16: OnceLock<bool> = OnceLock::new();
    match kind {
        Kind::BFloat16 => has_bfloat16(),
        Kind::Half => *HAS_FLOAT16.get_or_init(|| onednn_answers("mkldnn::_is_mkldnn_fp16_supported")),
        _ => true,
    }
}

/// The answer of an operator without arguments that gives a bool. oneDNN knows the processor and `ONEDNN_MAX_CPU_ISA`.
fn onednn_answers(operator: &str) -> bool {
    let answer = Operator::find(operator, "").and_then(|operator| operator.call(&[]));
    matches!(answer.as_deref(), Ok([Value::Bool(true)]))
}

/// Whether oneDNN's operators, as ATen exposes them (`mkldnn::…`), support a dtype and are fast.
pub fn has_onednn_kernels(kind: Kind) -> bool {
    kind == Kind::Float || (kind == Kind::BFloat16 && has_bfloat16())
}

/// Whether camlens's own matrix products support a dtype, and so [`linear`](super::linear()), [`gemm`](super::gemm()),
/// the sparse kernels, the gates and, in float32, [`winograd`](super::winograd()). They support float32 on every
/// processor, bfloat16 with AVX-512 BF16.
pub fn has_gemm_kernels(kind: Kind) -> bool {
    ElementType::of(kind).is_some_and(|element| element.panel_width().is_some())
}

#[cfg(test)]
mod tests {
    use tch::{Device, Tensor};

    use super::*;

    #[test]
    fn the_variable_has_four_values_and_others_are_unknown() {
        assert_eq!(["default", "avx2", "AVX2", "avx512", "Avx512_BF16", ""].map(allowed), [0, 1, 1, 2, 3, 3]);
        assert!(["avx3", "avx2 ", "avx2\0", "all"].iter().all(|value| allowed(value) == UNKNOWN));
        assert_eq!(check_max_cpu_isa(), Ok(()), "these tests run with one of them");
    }

    #[test]
    fn kernels_keep_to_the_instruction_set_that_the_variable_allows() {
        let most = std::env::var(MAX_CPU_ISA).map_or(AVX512_BF16, |value| allowed(&value));
        assert!(ffi::camlens_isa() <= most);
        // On x86 a panel is two vectors wide; in the portable kernels it is four vectors of four floats.
        let width = |kind| ElementType::of(kind).and_then(ElementType::panel_width);
        let floats = [16, 16, 32, 32];
        assert_eq!(width(Kind::Float), Some(floats[ffi::camlens_isa() as usize]));
        assert_eq!(width(Kind::BFloat16).is_some(), ffi::camlens_isa() == AVX512_BF16);
        assert!(!has_bfloat16() || cfg!(target_arch = "aarch64") || has_gemm_kernels(Kind::BFloat16));
    }

    #[test]
    fn onednn_runs_every_dtype_that_it_is_said_to_run() {
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
            assert!(!has_onednn_kernels(kind) || ran.is_ok(), "{kind:?}: {ran:?}");
            assert!(!computes_in(kind) || ran.is_ok(), "{kind:?}: {ran:?}");
        }
    }
}
