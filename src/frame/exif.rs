//! The orientation in an EXIF block (CIPA DC-008, tag 0x0112), which is a small TIFF file.

use super::Orientation;

const ORIENTATION: u16 = 0x0112;

/// The orientation that an EXIF block holds, with or without its `Exif` prefix. A block that cannot be read, or a
/// number other than 1 to 8, means upright, as in other readers: unreadable metadata does not make the pixels wrong.
pub(super) fn orientation(block: &[u8]) -> Orientation {
    let tiff = block.strip_prefix(b"Exif\0\0").unwrap_or(block);
    number(tiff).and_then(|number| u8::try_from(number).ok()).map_or(Orientation::Upright, Orientation::from_exif)
}

/// The value of the tag in the first directory, of whatever integer type.
fn number(tiff: &[u8]) -> Option<u32> {
    let order = match tiff.get(..4)? {
        b"II\x2a\0" => Order::Little,
        b"MM\0\x2a" => Order::Big,
        _ => return None,
    };
    let directory = usize::try_from(order.u32(tiff.get(4..8)?)?).ok()?;
    let (count, entries) = tiff.get(directory..)?.split_first_chunk::<2>()?;
    let entries = entries.chunks_exact(12).take(order.u16(count)?.into());
    let entry = entries.into_iter().find(|entry| order.u16(&entry[..2]) == Some(ORIENTATION))?;
    let value = &entry[8..12];
    match order.u16(&entry[2..4])? {
        // BYTE, SBYTE, UNDEFINED.
        1 | 6 | 7 => value.first().copied().map(u32::from),
        // SHORT, SSHORT.
        3 | 8 => order.u16(&value[..2]).map(u32::from),
        // LONG, SLONG, IFD.
        4 | 9 | 13 => order.u32(value),
        _ => None,
    }
}

/// The order of bytes in a number.
#[derive(Debug, Clone, Copy)]
enum Order {
    Little,
    Big,
}

impl Order {
    fn u16(self, bytes: &[u8]) -> Option<u16> {
        let bytes = *bytes.first_chunk()?;
        Some(match self {
            Order::Little => u16::from_le_bytes(bytes),
            Order::Big => u16::from_be_bytes(bytes),
        })
    }

    fn u32(self, bytes: &[u8]) -> Option<u32> {
        let bytes = *bytes.first_chunk()?;
        Some(match self {
            Order::Little => u32::from_le_bytes(bytes),
            Order::Big => u32::from_be_bytes(bytes),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A block whose directory stands at `at` and has another tag first.
    fn block(big: bool, kind: u16, value: u32, at: u32) -> Vec<u8> {
        let two = |n: u16| if big { n.to_be_bytes() } else { n.to_le_bytes() };
        let four = |n: u32| if big { n.to_be_bytes() } else { n.to_le_bytes() };
        let mut block = if big { b"MM\0\x2a".to_vec() } else { b"II\x2a\0".to_vec() };
        block.extend(four(at));
        block.resize(at as usize, 0);
        block.extend(two(2));
        block.extend([&two(0x010F)[..], &two(3), &four(1), &[0; 4]].concat());
        block.extend([&two(ORIENTATION)[..], &two(kind), &four(1)].concat());
        block.extend(match kind {
            1 | 6 => [value as u8, 0, 0, 0],
            3 | 8 => [two(value as u16), [0; 2]].concat().try_into().unwrap(),
            _ => four(value),
        });
        block.extend(four(0));
        block
    }

    #[test]
    fn every_integer_type_in_both_byte_orders_at_any_offset_is_read() {
        for big in [false, true] {
            for kind in [1, 3, 4, 6, 8, 9] {
                for at in [8, 9, 64] {
                    let block = block(big, kind, 6, at);
                    assert_eq!(orientation(&block), Orientation::Rotate90, "{big} {kind} {at}");
                    assert_eq!(orientation(&[b"Exif\0\0", &block[..]].concat()), Orientation::Rotate90);
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_read_means_upright() {
        for number in [0, 9, 256 + 6, u32::MAX] {
            assert_eq!(orientation(&block(true, 4, number, 8)), Orientation::Upright, "{number}");
        }
        // A fraction, and a directory beyond the end.
        assert_eq!(orientation(&block(false, 5, 6, 8)), Orientation::Upright);
        let mut far = block(false, 3, 6, 8);
        far[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(orientation(&far), Orientation::Upright);
        let whole = block(false, 3, 6, 8);
        let entries_end = 10 + 2 * 12;
        for length in 0..whole.len() {
            let turned = orientation(&whole[..length]) == Orientation::Rotate90;
            assert_eq!(turned, length >= entries_end, "{length} bytes");
        }
    }
}
