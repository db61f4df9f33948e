//! Samples that use fewer bits than they are stored in: PNG's sBIT chunk.

/// The most significant bits that the sBIT chunk of a PNG names for a colour channel. `None`: there is no such chunk.
pub(super) fn of_png(data: &[u8]) -> Option<u32> {
    let mut rest = data.get(8..)?;
    loop {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let (kind, after) = after.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        match kind {
            // One number for grey, three for colours; then one for alpha.
            b"sBIT" => {
                return after.get(..length)?.iter().take(if length < 3 { 1 } else { 3 }).copied().max().map(u32::from);
            }
            b"IDAT" | b"IEND" => return None,
            _ => rest = after.get(length.checked_add(4)?..)?,
        }
    }
}

/// Scales samples of `depth` bits whose lower `significant` bits alone are used, so that they use all.
///
/// PNG says that writers scale samples up to the stored depth. Cameras with 10 or 12 bits often do not, and their
/// pictures are nearly black. Samples count as not scaled up when all fit into the significant bits and one of them is
/// no value that scaling makes, by whichever of the usual ways: zeros below, repeated bits, or rounding.
pub(super) fn scale_up(samples: &mut [u16], depth: u32, significant: u32) {
    if significant == 0 || significant >= depth {
        return;
    }
    let (most, full) = ((1u32 << significant) - 1, (1u32 << depth) - 1);
    let shift = depth - significant;
    let is_scaled = |sample: u32| {
        let value = sample >> shift;
        let shifted = value << shift;
        // Of a sample this small, the bits that would be repeated below are zeros.
        let rounded = (value * full + most / 2) / most;
        sample == shifted || sample == rounded
    };
    if samples.iter().any(|&sample| u32::from(sample) > most) || samples.iter().all(|&sample| is_scaled(sample.into()))
    {
        return;
    }
    for sample in samples {
        *sample = (u32::from(*sample) * full / most) as u16;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scaled(samples: &[u16], depth: u32, significant: u32) -> Vec<u16> {
        let mut samples = samples.to_vec();
        scale_up(&mut samples, depth, significant);
        samples
    }

    #[test]
    fn samples_that_were_not_scaled_up_are() {
        assert_eq!(scaled(&[0, 1, 2048, 4095], 16, 12), [0, 16, 32775, 65535]);
        assert_eq!(scaled(&[3, 1023], 16, 10), [192, 65535]);
        assert_eq!(scaled(&[5, 31], 8, 5), [41, 255]);
    }

    #[test]
    fn a_dark_picture_that_was_scaled_up_stays_dark() {
        // 12 bits at 1/16 of the brightness: with zeros below, and rounded.
        let shifted: Vec<u16> = (0..256).map(|value| value << 4).collect();
        let rounded: Vec<u16> = (0..255u32).map(|value| ((value * 65535 + 2047) / 4095) as u16).collect();
        for samples in [shifted, rounded] {
            assert_eq!(scaled(&samples, 16, 12), samples);
        }
    }

    #[test]
    fn bright_samples_and_a_chunk_that_says_nothing_change_nothing() {
        for significant in [0, 12, 16, 40] {
            assert_eq!(scaled(&[7, 4097], 16, significant), [7, 4097]);
        }
    }

    #[test]
    fn the_chunk_is_found_before_the_pixels_only() {
        let chunk =
            |kind: &[u8], content: &[u8]| [&(content.len() as u32).to_be_bytes()[..], kind, content, &[0; 4]].concat();
        let signature = b"\x89PNG\r\n\x1a\n".to_vec();
        let file = |chunks: &[Vec<u8>]| [&signature[..], &chunks.concat()].concat();
        let (text, pixels) = (chunk(b"tEXt", b"sBIT"), chunk(b"IDAT", b""));
        assert_eq!(of_png(&file(&[text.clone(), chunk(b"sBIT", &[12]), pixels.clone()])), Some(12));
        assert_eq!(of_png(&file(&[chunk(b"sBIT", &[5, 6, 5, 8])])), Some(6));
        assert_eq!(of_png(&file(&[chunk(b"sBIT", &[5, 8])])), Some(5));
        assert_eq!(of_png(&file(&[text, pixels, chunk(b"sBIT", &[12])])), None);
        assert_eq!(of_png(&[&signature[..], &[0xFF; 12]].concat()), None);
    }
}
