//! camlens's own kernels for CUDA. Each function returns `None` where its kernel does not cover the arguments: ATen's
//! operators cover them.

use std::ffi::c_int;
use std::{ptr, slice};

use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use crate::torch::cuda::error::{CudaError, checked};
use crate::torch::cuda::library::{Cuda, with_kernels};
use crate::torch::ffi::TensorView;
use crate::torch::storage::view_of;
use crate::torch::{Bounds, OperatorError};

/// The most tensors that a kernel adds.
const MAX_TERMS: usize = 4;
/// ATen's numbers for float16, float32 and bfloat16, c10/core/ScalarType.h.
const KINDS: [c_int; 3] = [5, FLOAT, 15];
const FLOAT: c_int = 6;
/// The most channels of a picture, NORMALIZE_CHANNELS of geometry.cuh.
const MAX_CHANNELS: i64 = 4;

type Answer = Option<Result<Tensor, OperatorError>>;

/// As [`gate`](crate::torch::gate()).
pub fn gate(gradients: &[Tensor], source: &Tensor, bounds: Bounds, guided: bool) -> Answer {
    // On the processor nothing else is looked at.
    on_cuda(source)?;
    let gradients: Vec<&Tensor> = gradients.iter().collect();
    let cuda = covering(source, &gradients).filter(|_| !gradients.is_empty() && !bounds.low.is_nan())?;
    let [low, high] = [bounds.low, bounds.high.unwrap_or(f64::NAN)];
    let (pointers, bridge) = (pointers(&gradients), cuda.bridge());
    let mut result = ptr::null_mut();
    let ran = checked(bridge, "gate", |error| {
        // SAFETY: all tensors are live; both out-pointers are valid.
        unsafe {
            let (count, source) = (pointers.len(), source.as_ptr());
            (bridge.gate)(pointers.as_ptr(), count, source, low, high, guided, &raw mut result, error)
        }
    });
    // SAFETY: a kernel that ran returns a new tensor.
    Some(ran.map(|()| unsafe { Tensor::from_ptr(result) }).map_err(operator_error))
}

/// As [`add_clamped`](crate::torch::add_clamped). Nothing else may hold `sum`, whose memory the result takes.
pub fn add_clamped(sum: &Tensor, other: &Tensor, bounds: Bounds) -> Answer {
    let cuda = covering(sum, &[other])?;
    Some(run_epilogue(cuda, sum, None, Some(other), Some(bounds)).map(|()| sum.shallow_clone()))
}

/// `min(max(value + bias[c] + other, low), high)` in one pass over memory, in the memory of `value`, `[N, C, H, W]`,
/// which nothing else may hold. `bias` has shape `[C]`, `other` that of `value`.
///
/// # Errors
/// Shapes that do not fit.
pub fn epilogue(
    value: Tensor,
    bias: Option<&Tensor>,
    other: Option<&Tensor>,
    bounds: Option<Bounds>,
) -> Result<Tensor, OperatorError> {
    if bias.is_none() && other.is_none() && bounds.is_none() {
        return Ok(value);
    }
    let fits = |bias: &Tensor| view_of(bias).kind == view_of(&value).kind && bias.device() == value.device();
    if let Some(cuda) = covering(&value, other.as_slice()).filter(|_| bias.is_none_or(fits)) {
        run_epilogue(cuda, &value, bias, other, bounds)?;
        return Ok(value);
    }
    let _guard = tch::no_grad_guard();
    let mut result = value;
    if let Some(bias) = bias {
        result = result.f_add_(&bias.f_view([1, -1, 1, 1])?)?;
    }
    if let Some(other) = other {
        result = result.f_add_(other)?;
    }
    match bounds {
        Some(bounds) => {
            let [low, high] = Bounds::limits(Some(bounds));
            Ok(result.f_clamp_(low, high)?)
        }
        None => Ok(result),
    }
}

fn run_epilogue(
    cuda: Cuda,
    value: &Tensor,
    bias: Option<&Tensor>,
    other: Option<&Tensor>,
    bounds: Option<Bounds>,
) -> Result<(), OperatorError> {
    let [low, high] = Bounds::limits(bounds);
    let bridge = cuda.bridge();
    let pointer = |tensor: Option<&Tensor>| tensor.map_or(ptr::null(), |tensor| tensor.as_ptr());
    let ran = checked(bridge, "epilogue", |error| {
        // SAFETY: all tensors are live or null, and nothing else holds `value`.
        unsafe { (bridge.epilogue)(value.as_ptr(), pointer(bias), pointer(other), low, high, error) }
    });
    ran.map_err(operator_error)
}

/// Grad-CAM (Selvaraju et al. 2017): activations and gradients `[N, K, h, w]` to
/// `relu(Σ_k mean_{i,j}(gradients) · activations)`, `[N, h, w]` of f32.
pub fn grad_cam(activations: &Tensor, gradients: &Tensor) -> Answer {
    let cuda = on_cuda(activations).filter(|_| gradients.device() == activations.device())?;
    let bridge = cuda.bridge();
    let mut result = ptr::null_mut();
    let ran = checked(bridge, "grad_cam", |error| {
        // SAFETY: both tensors are live; both out-pointers are valid.
        unsafe { (bridge.grad_cam)(activations.as_ptr(), gradients.as_ptr(), &raw mut result, error) }
    });
    // SAFETY: a kernel that ran returns a new tensor.
    Some(ran.map(|()| unsafe { Tensor::from_ptr(result) }).map_err(operator_error))
}

/// Guided Grad-CAM: the guided gradient `[N, C, H, W]` times the map `[N, h, w]` of f32, resized bilinearly with
/// half-pixel centres; and the resized map, `[N, H, W]`. Both contiguous, of f32.
pub fn fuse(guided: &Tensor, map: &Tensor) -> Option<Result<(Tensor, Tensor), OperatorError>> {
    let cuda = on_cuda(guided).filter(|_| map.device() == guided.device())?;
    let bridge = cuda.bridge();
    let (mut fused, mut upsampled) = (ptr::null_mut(), ptr::null_mut());
    let ran = checked(bridge, "fuse", |error| {
        // SAFETY: both tensors are live; all out-pointers are valid.
        unsafe { (bridge.fuse)(guided.as_ptr(), map.as_ptr(), &raw mut fused, &raw mut upsampled, error) }
    });
    // SAFETY: a kernel that ran returns two new tensors.
    Some(ran.map(|()| unsafe { (Tensor::from_ptr(fused), Tensor::from_ptr(upsampled)) }).map_err(operator_error))
}

/// Pictures `[N, H, W, C]` of u8 as a model's input, `(byte / 255 - mean[c]) / std[c]` in f32 and in this order:
/// `[N, C, H, W]` of f32, channels-last or contiguous.
///
/// # Errors
/// Another number of channels than of means or of standard deviations.
pub fn normalize(bytes: &Tensor, mean: &[f32], std: &[f32], channels_last: bool) -> Result<Tensor, OperatorError> {
    let channels = bytes.size().last().copied().unwrap_or(0);
    if [mean.len(), std.len()].iter().any(|&count| count as i64 != channels) {
        let message = format!("{channels} channels, {} means, {} standard deviations", mean.len(), std.len());
        return Err(OperatorError::Failed { operator: "normalize".into(), message });
    }
    if let Some(cuda) = on_cuda(bytes).filter(|_| channels <= MAX_CHANNELS) {
        let bridge = cuda.bridge();
        let mut result = ptr::null_mut();
        checked(bridge, "normalize", |error| {
            // SAFETY: the tensor is live, there is a number for each channel, and both out-pointers are valid.
            unsafe {
                let (mean, std) = (mean.as_ptr(), std.as_ptr());
                (bridge.normalize)(bytes.as_ptr(), mean, std, FLOAT, channels_last, &raw mut result, error)
            }
        })
        .map_err(operator_error)?;
        // SAFETY: a kernel that ran returns a new tensor.
        return Ok(unsafe { Tensor::from_ptr(result) });
    }
    let _guard = tch::no_grad_guard();
    // Tensors are filled on the device, which a recording allows, and divided by: by a scalar, ATen multiplies.
    let numbers = |numbers: &[f32]| {
        let number = |&number: &f32| Tensor::f_full([1], f64::from(number), (Kind::Float, bytes.device()));
        Tensor::f_cat(&numbers.iter().map(number).collect::<Result<Vec<_>, _>>()?, 0)
    };
    let values = bytes.f_to_kind(Kind::Float)?.f_div(&numbers(&[255.0])?)?;
    let values = values.f_sub(&numbers(mean)?)?.f_div(&numbers(std)?)?.f_permute([0, 3, 1, 2])?;
    Ok(if channels_last { values } else { values.f_contiguous()? })
}

/// The device's bridge, if a kernel covers `first` and `others`: dense tensors of one device, shape, layout and dtype.
fn covering(first: &Tensor, others: &[&Tensor]) -> Option<Cuda> {
    let cuda = on_cuda(first)?;
    let view = view_of(first);
    let is_covered = KINDS.contains(&view.kind) && view.is_dense && others.len() <= MAX_TERMS;
    let is_alike = |other: &&Tensor| {
        let given = view_of(other);
        given.kind == view.kind && other.device() == first.device() && layout(&given) == layout(&view)
    };
    (is_covered && others.iter().all(is_alike)).then_some(cuda)
}

fn on_cuda(tensor: &Tensor) -> Option<Cuda> {
    with_kernels().filter(|_| matches!(tensor.device(), Device::Cuda(_)))
}

/// Sizes and strides.
fn layout(view: &TensorView) -> [&[i64]; 2] {
    [view.size, view.stride].map(|numbers| {
        if numbers.is_null() {
            return &[][..];
        }
        // SAFETY: they belong to the tensor, which the caller borrows for longer than the view is compared.
        unsafe { slice::from_raw_parts(numbers, view.dimensions) }
    })
}

fn pointers(tensors: &[&Tensor]) -> Vec<*const C_tensor> {
    tensors.iter().map(|tensor| tensor.as_ptr()).collect()
}

fn operator_error(error: CudaError) -> OperatorError {
    match error {
        CudaError::Failed(error) => error,
        other => OperatorError::Failed { operator: "cuda".into(), message: other.to_string() },
    }
}
