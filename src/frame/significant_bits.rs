//! Samples that use fewer bits than they are stored in.

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
}
