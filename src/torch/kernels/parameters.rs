//! The parameters of convolutions and pooling windows.

/// How a convolution moves over its input: along the height, then along the width. Laid out as its namesake in
/// convolution_parameters.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct ConvolutionParameters {
    pub stride: [i64; 2],
    pub padding: [i64; 2],
    pub dilation: [i64; 2],
}
