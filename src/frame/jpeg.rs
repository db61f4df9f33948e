//! Is a JPEG all there? The decoder fills what is missing with grey, so that must be known before it runs.

const START_OF_SCAN: u8 = 0xDA;
const END_OF_IMAGE: u8 = 0xD9;

/// Whether the data reaches its end-of-image marker, walking segment by segment. What follows that marker (a preview, a
/// camera's own data) is of no interest.
pub(super) fn reaches_its_end(data: &[u8]) -> bool {
    let mut at = 2;
    loop {
        // Between segments there may be fill bytes, and after a scan there is its entropy-coded data, in which 0xFF is
        // followed by zero or by a restart marker.
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
        assert!(reaches_its_end(&TINY));
        for length in 0..TINY.len() {
            assert!(!reaches_its_end(&TINY[..length]), "{length} bytes of {}", TINY.len());
        }
    }

    #[test]
    fn what_follows_the_end_is_of_no_interest() {
        assert!(reaches_its_end(&[&TINY[..], &[0xFF, 0xDA, 1]].concat()));
    }
}
