//! A row's input in the host's memory, and how it is read.

use std::borrow::Cow;
use std::mem;

use super::buffers::Buffer;
use crate::frame::Preparation;

/// A row's input, in the host's memory.
#[derive(Debug, Clone, Copy)]
pub enum RowInput<'a> {
    /// `[C, H, W]`.
    Values(&'a [f32]),
    /// A picture's bytes before normalisation, `[H, W, C]`, for a device that normalises them, and its preparation.
    Picture(&'a [u8], &'a Preparation),
}

impl<'a> RowInput<'a> {
    /// The model's input, `[C, H, W]`.
    pub fn values(self) -> Cow<'a, [f32]> {
        match self {
            RowInput::Values(values) => Cow::Borrowed(values),
            RowInput::Picture(bytes, preparation) => Cow::Owned(preparation.values(bytes)),
        }
    }
}

/// A row's input in memory that is reused.
#[derive(Debug)]
pub(super) enum PreparedInput {
    /// `[C, H, W]`.
    Values(Buffer<f32>),
    /// A picture's bytes before normalisation, `[H, W, C]`.
    Picture(Buffer<u8>),
}

impl PreparedInput {
    pub(super) fn as_row<'a>(&'a self, preparation: &'a Preparation) -> RowInput<'a> {
        match self {
            PreparedInput::Values(buffer) => RowInput::Values(&buffer.values),
            PreparedInput::Picture(buffer) => RowInput::Picture(&buffer.values, preparation),
        }
    }

    /// The model's input, `[C, H, W]`.
    pub(super) fn into_values(self, preparation: &Preparation) -> Vec<f32> {
        match self {
            PreparedInput::Values(mut buffer) => mem::take(&mut buffer.values),
            PreparedInput::Picture(buffer) => preparation.values(&buffer.values),
        }
    }
}
