//! Whether a JPEG is complete, and its size. The decoder fills missing data with grey, so truncation must be found
//! before the decoder runs.

const START_OF_SCAN: u8 = 0xDA;
const END_OF_IMAGE: u8 = 0xD9;

/// Facts from the segments of a JPEG.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Survey {
    /// Whether the data reaches the end-of-image marker. Data after the marker (a preview, a camera's own data) is
    /// ignored.
    pub(super) complete: bool,
    /// Width and height from the first frame header; `None` when the data ends before it.
    pub(super) size: Option<(u32, u32)>,
}

/// Reads a JPEG segment by segment.
pub(super) fn survey(data: &[u8]) -> Survey {
    let mut size = None;
    let complete = walk(data, &mut |marker, segment| {
        if size.is_none()
            && is_frame_header(marker)
            && let [_, a, b, c, d, ..] = *segment
        {
            size = Some((u16::from_be_bytes([c, d]).into(), u16::from_be_bytes([a, b]).into()));
        }
    });
    Survey { complete, size }
}

/// SOF0 to SOF15. Three markers in that range mean something else.
fn is_frame_header(marker: u8) -> bool {
    matches!(marker, 0xC0..=0xCF) && !matches!(marker, 0xC4 | 0xC8 | 0xCC)
}

/// Calls `segment` with the marker and the content of each segment. Returns whether the end-of-image marker was
/// reached.
fn walk(data: &[u8], segment: &mut impl FnMut(u8, &[u8])) -> bool {
    let mut at = 2;
    loop {
        // Fill bytes may precede a segment, and entropy-coded data follows a scan: there 0xFF is followed by zero or by
        // a restart marker.
        let Some(found) = data.get(at..).and_then(|rest| rest.iter().position(|&byte| byte == 0xFF)) else {
            return false;
        };
        let Some(&marker) = data.get(at + found + 1) else { return false };
        match marker {
            0xFF => at += found + 1,
            0x00 | 0x01 | 0xD0..=0xD8 => at += found + 2,
            END_OF_IMAGE => return true,
            _ => {
                let length_at = at + found + 2;
                let Some(length) = data.get(length_at..length_at + 2) else { return false };
                let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
                at = length_at + length.max(2);
                segment(marker, data.get(length_at + 2..at.min(data.len())).unwrap_or_default());
                if marker == START_OF_SCAN && at >= data.len() {
                    return false;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TINY: [u8; 20] =
        [0xFF, 0xD8, 0xFF, 0xE0, 0, 4, 0xFF, 0xD9, 0xFF, 0xDA, 0, 3, 1, 7, 0xFF, 0, 0xFF, 0xD0, 0xFF, 0xD9];

    #[test]
    fn an_end_marker_inside_a_segment_does_not_count() {
        assert!(survey(&TINY).complete);
        for length in 0..TINY.len() {
            assert!(!survey(&TINY[..length]).complete, "{length} bytes of {}", TINY.len());
        }
    }

    #[test]
    fn data_after_the_end_is_ignored() {
        assert!(survey(&[&TINY[..], &[0xFF, 0xDA, 1]].concat()).complete);
    }

    #[test]
    fn the_size_is_in_the_first_frame_header_and_not_in_a_table() {
        let table = [0xFF, 0xC4, 0, 9, 8, 1, 1, 2, 2, 9, 9];
        let header = [0xFF, 0xC2, 0, 8, 8, 0x01, 0x02, 0x03, 0x04, 3];
        let second = [0xFF, 0xC0, 0, 8, 8, 0, 1, 0, 1, 3];
        let data = [&[0xFF, 0xD8], &table[..], &header, &second, &[0xFF, 0xD9]].concat();
        assert_eq!(survey(&data), Survey { complete: true, size: Some((0x0304, 0x0102)) });
    }
}
