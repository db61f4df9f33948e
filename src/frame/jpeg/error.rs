//! Why a JPEG is not read.

/// An error in a file. Each message continues "… cannot be read:" or "… is not read:".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::frame) enum JpegError {
    /// The data ends before that of the first scan begins, or is too short for it.
    #[error("it is truncated")]
    Truncated,
    #[error("{0}")]
    Malformed(String),
    /// A kind of JPEG that this decoder does not know.
    #[error("{0}; baseline, extended and progressive JPEGs of 8 bits with Huffman coding are")]
    Unsupported(String),
}

impl JpegError {
    pub(super) fn malformed(reason: impl Into<String>) -> Self {
        JpegError::Malformed(reason.into())
    }

    pub(super) fn unsupported(reason: impl Into<String>) -> Self {
        JpegError::Unsupported(reason.into())
    }
}
