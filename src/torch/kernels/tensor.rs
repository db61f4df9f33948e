//! The kernels' door: what is checked of a tensor before a kernel gets its pointer, and the memory that kernels write
//! to.

use std::ffi::c_int;
use std::marker::PhantomData;
use std::ops::Deref;
use std::slice;

use tch::{Device, Kind, TchError, Tensor};

use super::element::ElementType;
use crate::torch::OperatorError;
use crate::torch::ffi;
use crate::torch::storage::view_of;

/// ATen's number for int64, c10/core/ScalarType.h.
const INT64: c_int = 4;
/// ATen's number for uint8.
const UINT8: c_int = 0;

/// How a tensor lies in memory, read in one call.
pub(super) struct View<'a> {
    raw: ffi::TensorView,
    tensor: PhantomData<&'a Tensor>,
}

impl<'a> View<'a> {
    pub fn of(tensor: &'a Tensor) -> Self {
        View { raw: view_of(tensor), tensor: PhantomData }
    }

    pub fn size(&self) -> &'a [i64] {
        if self.raw.size.is_null() {
            return &[];
        }
        // SAFETY: the sizes belong to the tensor, which is borrowed for 'a; camlens never resizes a tensor in place.
        unsafe { slice::from_raw_parts(self.raw.size, self.raw.dimensions) }
    }

    /// The size, when there are that many dimensions.
    pub fn dimensions<const N: usize>(&self) -> Option<[i64; N]> {
        self.size().try_into().ok()
    }

    pub fn strides(&self) -> &'a [i64] {
        if self.raw.stride.is_null() {
            return &[];
        }
        // SAFETY: as in `size`.
        unsafe { slice::from_raw_parts(self.raw.stride, self.raw.dimensions) }
    }

    pub fn elements(&self) -> i64 {
        self.size().iter().product()
    }

    /// None for another type than float32 and bfloat16, and for a tensor that is not a strided one on the CPU.
    pub fn element_type(&self) -> Option<ElementType> {
        if self.raw.is_on_cpu { ElementType::from_code(self.raw.kind) } else { None }
    }

    /// Bytes of an element.
    pub fn element_bytes(&self) -> i64 {
        self.raw.element_bytes
    }

    pub fn is_strided_on_cpu(&self) -> bool {
        self.raw.is_on_cpu
    }

    pub fn is_int64(&self) -> bool {
        self.raw.is_on_cpu && self.raw.kind == INT64
    }

    pub fn is_uint8(&self) -> bool {
        self.raw.is_on_cpu && self.raw.kind == UINT8
    }

    pub fn is_contiguous(&self) -> bool {
        self.raw.is_contiguous
    }

    pub fn is_channels_last(&self) -> bool {
        self.raw.is_channels_last
    }

    /// Whether a kernel may write its result to this tensor's memory: nothing else holds the tensor or its storage, and
    /// its elements cover distinct, adjacent addresses.
    pub fn is_overwritable(&self) -> bool {
        self.raw.is_exclusive && self.raw.is_dense
    }

    /// Whether both have the same shape and element type.
    pub fn is_alike(&self, other: &View<'_>) -> bool {
        self.size() == other.size() && self.raw.kind == other.raw.kind && self.raw.is_on_cpu == other.raw.is_on_cpu
    }

    /// The address of the first element; null for a tensor that is not a strided one on the CPU.
    pub fn data<T>(&self) -> *const T {
        self.raw.data.cast()
    }
}

/// The address of the first element of a tensor that a kernel may write to.
pub(super) fn data_mut<T>(tensor: &mut Tensor) -> *mut T {
    View::of(tensor).data::<T>().cast_mut()
}

/// A tensor as it was given, or a copy of it in the layout that a kernel needs.
pub(super) enum Operand<'a> {
    Given(&'a Tensor),
    Copied(Tensor),
}

impl Deref for Operand<'_> {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        match self {
            Operand::Given(tensor) => tensor,
            Operand::Copied(tensor) => tensor,
        }
    }
}

/// Row-major.
pub(super) fn contiguous(tensor: &Tensor) -> Result<Operand<'_>, TchError> {
    if View::of(tensor).is_contiguous() {
        return Ok(Operand::Given(tensor));
    }
    let _guard = tch::no_grad_guard();
    Ok(Operand::Copied(tensor.f_contiguous()?))
}

/// `[N, C, H, W]` with the channels of a pixel adjacent in memory.
pub(super) fn channels_last(tensor: &Tensor) -> Result<Operand<'_>, TchError> {
    if View::of(tensor).is_channels_last() {
        return Ok(Operand::Given(tensor));
    }
    let [n, c, h, w] = tensor.size4()?.into();
    let mut copy = empty_channels_last([n, c, h, w], tensor.f_kind()?, tensor.device())?;
    let _guard = tch::no_grad_guard();
    copy.f_copy_(tensor)?;
    Ok(Operand::Copied(copy))
}

/// Uninitialised.
pub(super) fn empty(size: &[i64], kind: Kind) -> Result<Tensor, TchError> {
    Tensor::f_empty(size, (kind, Device::Cpu))
}

/// Uninitialised, `[N, C, H, W]` with the channels of a pixel adjacent in memory.
pub(super) fn empty_channels_last(size: [i64; 4], kind: Kind, device: Device) -> Result<Tensor, TchError> {
    let [_, channels, height, width] = size;
    Tensor::f_empty_strided(size, [height * width * channels, 1, width * channels, channels], (kind, device))
}

/// A kernel's refusal of its arguments.
pub(super) fn refused(kernel: &str, message: String) -> OperatorError {
    OperatorError::Failed { operator: kernel.to_owned(), message }
}

/// `expect(condition, kernel, || message)?`: refuses the arguments unless the condition holds.
pub(super) fn expect(holds: bool, kernel: &str, message: impl FnOnce() -> String) -> Result<(), OperatorError> {
    if holds { Ok(()) } else { Err(refused(kernel, message())) }
}

/// The element type of a tensor that is multiplied, and the width of a weight's panels.
///
/// # Errors
/// Another dtype or device, no instructions for it.
pub(super) fn multiplied_type(kernel: &str, tensor: &View<'_>) -> Result<(ElementType, i64), OperatorError> {
    let element = tensor.element_type().ok_or_else(|| {
        refused(kernel, "there are no instructions but for float32 and bfloat16 on the CPU".to_owned())
    })?;
    let width = element.panel_width().ok_or_else(|| {
        refused(kernel, format!("the processor has no instructions for products of {}", element.name()))
    })?;
    Ok((element, width))
}
