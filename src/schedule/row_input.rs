//! A row's input in the host's memory, and how it is read.

use std::mem;

use super::buffers::Buffer;
use crate::frame::Preparation;

/// A row's input, in the host's memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RowInput<'a> {
    /// `[C, H, W]`.
    Values(&'a [f32]),
    /// A picture before normalisation, `[H, W, C]`: a quarter of the bytes, for a device that normalises it.
    Bytes(&'a [u8]),
}

/// A row's input in memory that is reused.
#[derive(Debug)]
pub(super) enum PreparedInput {
    /// `[C, H, W]`.
    Values(Buffer<f32>),
    /// A picture before normalisation, `[H, W, C]`.
    Bytes(Buffer<u8>),
}

impl PreparedInput {
    pub(super) fn as_row(&self) -> RowInput<'_> {
        match self {
            PreparedInput::Values(buffer) => RowInput::Values(&buffer.values),
            PreparedInput::Bytes(buffer) => RowInput::Bytes(&buffer.values),
        }
    }

    /// The model's input, `[C, H, W]`.
    pub(super) fn into_values(self, preparation: &Preparation) -> Vec<f32> {
        match self {
            PreparedInput::Values(mut buffer) => mem::take(&mut buffer.values),
            PreparedInput::Bytes(buffer) => preparation.values(&buffer.values),
        }
    }
}
