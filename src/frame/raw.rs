//! Raw frames: rows of pixels without a header.

use super::{Channels, FrameError, Limits, Orientation, PixelFormat, Pixels};

/// The rows of a raw frame. Rows may be padded; the padding of the last row may be absent.
#[derive(Debug, Clone, Copy)]
pub(super) struct RawRows {
    /// Bytes from the start of one row to the start of the next.
    stride: u64,
    row_bytes: u64,
}

impl RawRows {
    /// Checks the sizes of a raw frame.
    ///
    /// # Errors
    /// A side of 0, too many pixels, a stride smaller than a row, or data of another length.
    pub(super) fn check(
        data: &[u8],
        width: u32,
        height: u32,
        pixel_format: PixelFormat,
        stride_bytes: Option<u32>,
        limits: &Limits,
    ) -> Result<Self, FrameError> {
        for (field, value) in [("frame.raw.width", width), ("frame.raw.height", height)] {
            if value == 0 {
                return Err(FrameError::NoSize { field, value });
            }
        }
        if u64::from(width) * u64::from(height) > limits.max_pixels {
            return Err(FrameError::TooManyPixels { field: "frame.raw", width, height, limit: limits.max_pixels });
        }
        let row_bytes = u64::from(width) * u64::from(pixel_format.bytes_per_pixel());
        let stride = stride_bytes.map_or(row_bytes, u64::from);
        if stride < row_bytes {
            // Only a given stride can be smaller than a row, and a given stride fits `u32`.
            let stride_bytes = stride as u32;
            return Err(FrameError::StrideTooSmall { stride_bytes, width, pixel_format, row_bytes });
        }
        let needed = stride * (u64::from(height) - 1) + row_bytes;
        let padded = stride * u64::from(height);
        let bytes = data.len() as u64;
        if bytes != needed && bytes != padded {
            let stride_bytes = stride;
            return Err(FrameError::RawLength { bytes, width, height, pixel_format, stride_bytes, needed, padded });
        }
        Ok(RawRows { stride, row_bytes })
    }
}

/// Copies the rows of a raw frame into a picture.
pub(super) fn decode_raw(
    data: &[u8],
    width: u32,
    height: u32,
    pixel_format: PixelFormat,
    stride_bytes: Option<u32>,
    limits: &Limits,
) -> Result<Pixels, FrameError> {
    let RawRows { stride, row_bytes } = RawRows::check(data, width, height, pixel_format, stride_bytes, limits)?;
    let mut rows = Vec::with_capacity((row_bytes * u64::from(height)) as usize);
    for row in data.chunks(stride as usize) {
        rows.extend_from_slice(&row[..row_bytes as usize]);
    }
    let channels = match pixel_format {
        PixelFormat::Gray8 => Channels::Gray,
        PixelFormat::Rgb8 => Channels::Rgb,
        PixelFormat::Bgr8 => {
            rows.chunks_exact_mut(3).for_each(|pixel| pixel.swap(0, 2));
            Channels::Rgb
        }
    };
    Ok(Pixels::from_stored(width, height, channels, rows, Orientation::Upright))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(
        data: &[u8],
        width: u32,
        height: u32,
        format: PixelFormat,
        stride: Option<u32>,
    ) -> Result<Pixels, FrameError> {
        decode_raw(data, width, height, format, stride, &Limits::default())
    }

    #[test]
    fn bgr_becomes_rgb() {
        let pixels = raw(&[1, 2, 3, 4, 5, 6], 2, 1, PixelFormat::Bgr8, None).unwrap();
        assert_eq!(pixels.data(), [3, 2, 1, 6, 5, 4]);
    }

    #[test]
    fn padding_is_skipped_and_may_be_absent_after_the_last_row() {
        for data in [&[1, 2, 9, 3, 4, 9][..], &[1, 2, 9, 3, 4]] {
            assert_eq!(raw(data, 2, 2, PixelFormat::Gray8, Some(3)).unwrap().data(), [1, 2, 3, 4]);
        }
    }

    #[test]
    fn a_wrong_length_says_how_many_bytes_are_needed() {
        let error = raw(&[0; 7], 2, 2, PixelFormat::Rgb8, None).unwrap_err();
        assert_eq!(error.field(), "frame.raw.data");
        assert_eq!(error.to_string(), "frame.raw.data has 7 bytes: 2×2 pixels of Rgb8 with 6 bytes a row need 12");
        let error = raw(&[0; 7], 2, 2, PixelFormat::Rgb8, Some(8)).unwrap_err();
        assert!(error.to_string().ends_with("need 14, or 16 with a padded last row"), "{error}");
    }

    #[test]
    fn a_stride_below_a_row_a_side_of_zero_and_too_many_pixels_are_refused() {
        assert_eq!(raw(&[0; 4], 2, 2, PixelFormat::Gray8, Some(1)).unwrap_err().field(), "frame.raw.stride_bytes");
        assert_eq!(raw(&[], 0, 2, PixelFormat::Gray8, None).unwrap_err().field(), "frame.raw.width");
        assert_eq!(raw(&[], 2, 0, PixelFormat::Gray8, None).unwrap_err().field(), "frame.raw.height");
        let error = raw(&[], u32::MAX, u32::MAX, PixelFormat::Rgb8, Some(u32::MAX)).unwrap_err();
        assert_eq!(error.kind(), crate::frame::ErrorKind::ResourceExhausted);
        assert!(error.to_string().contains("4294967295×4294967295"), "{error}");
    }
}
