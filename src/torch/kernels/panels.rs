//! Weights packed in panels as wide as the registers allow, so that a product reads them in order.

use std::ptr;

use tch::{TchError, Tensor};

use super::element::ElementType;
use super::tensor::{Operand, View, contiguous, expect, multiplied_type};
use crate::torch::OperatorError;

/// `[..., depth, columns]` to `[..., panels, steps, panel width]`, with two elements per step and column in a last
/// dimension for bfloat16. The last panel is padded with zeros.
///
/// # Errors
/// Another dtype, no instructions for it, an odd depth of bfloat16, out of memory.
pub(super) fn pack(kernel: &str, right: &Tensor) -> Result<Tensor, OperatorError> {
    let (element, width) = multiplied_type(kernel, &View::of(right))?;
    let panels = split(right, width)?;
    if element == ElementType::Float32 {
        return Ok(panels.f_contiguous()?);
    }
    let depth = right.size()[right.dim() - 2];
    expect(depth % 2 == 0, kernel, || format!("an even number of inputs is expected, not {depth}"))?;
    Ok(panels.f_unflatten(-2, [depth / 2, 2])?.f_transpose(-1, -2)?.f_contiguous()?)
}

/// `[..., depth, columns]` to `[..., panels, depth, panel width]` for the sparse kernels, with the columns in the order
/// of `SparsePanels` in micro/sparse.h.
///
/// # Errors
/// Another dtype, no instructions for it, out of memory.
pub(super) fn pack_sparse(kernel: &str, right: &Tensor) -> Result<Tensor, OperatorError> {
    let (element, width) = multiplied_type(kernel, &View::of(right))?;
    let panels = split(right, width)?;
    if element == ElementType::Float32 {
        return Ok(panels.f_contiguous()?);
    }
    // Groups of four columns, alternately from both halves of a panel.
    let interleaved = panels.f_unflatten(-1, [2, width / 8, 4])?.f_transpose(-2, -3)?;
    Ok(interleaved.f_contiguous()?.f_flatten(-3, -1)?)
}

/// `[..., panels, depth, panel width]`, not contiguous.
fn split(right: &Tensor, width: i64) -> Result<Tensor, TchError> {
    let _guard = tch::no_grad_guard();
    let columns = right.size().last().copied().unwrap_or(0);
    let panels = (columns + width - 1) / width;
    let missing = panels * width - columns;
    // Padding by nothing would copy.
    let whole = if missing == 0 { right.shallow_clone() } else { right.f_constant_pad_nd([0, missing])? };
    whole.f_unflatten(-1, [panels, width])?.f_transpose(-2, -3)
}

/// A bias of float32, padded to the columns of whole panels.
pub(super) struct Bias<'a>(Option<Operand<'a>>);

impl<'a> Bias<'a> {
    /// # Errors
    /// Another dtype or device, another length, out of memory.
    pub fn padded(kernel: &str, bias: Option<&'a Tensor>, columns: i64, width: i64) -> Result<Self, OperatorError> {
        let Some(bias) = bias else { return Ok(Bias(None)) };
        Self::check(kernel, bias, columns)?;
        let missing = (width - columns % width) % width;
        if missing == 0 {
            return Ok(Bias(Some(contiguous(bias)?)));
        }
        let _guard = tch::no_grad_guard();
        Ok(Bias(Some(Operand::Copied(bias.f_constant_pad_nd([0, missing])?))))
    }

    /// As it is.
    ///
    /// # Errors
    /// Those of [`Bias::padded`].
    pub fn exact(kernel: &str, bias: Option<&'a Tensor>, columns: i64) -> Result<Self, OperatorError> {
        let Some(bias) = bias else { return Ok(Bias(None)) };
        Self::check(kernel, bias, columns)?;
        Ok(Bias(Some(contiguous(bias)?)))
    }

    fn check(kernel: &str, bias: &Tensor, columns: i64) -> Result<(), OperatorError> {
        let view = View::of(bias);
        let fits = view.element_type() == Some(ElementType::Float32) && view.size() == [columns];
        expect(fits, kernel, || format!("a bias of {columns} float32 is expected"))
    }

    /// Null when there is none.
    pub fn data(&self) -> *const f32 {
        self.0.as_ref().map_or(ptr::null(), |bias| View::of(bias).data())
    }
}
