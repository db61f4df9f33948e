//! NumPy's `.npy` files of little-endian 32-bit floats, row-major.
//!
//! <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>

use std::io::{self, Read, Write};

use thiserror::Error;

const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// The largest array that is read, in elements: 1 GiB of floats.
const MAX_ELEMENTS: u64 = 1 << 28;

/// An array of 32-bit floats, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

/// Why a file is refused.
#[derive(Debug, Error)]
pub enum NpyError {
    #[error("not a .npy file")]
    Magic,
    #[error("the header is damaged: {0}")]
    Header(&'static str),
    #[error(
        "elements are `{0}`; save the array as little-endian float32, row-major: numpy.ascontiguousarray(a, '<f4')"
    )]
    Elements(String),
    #[error("the array is larger than 1 GiB")]
    Size,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Writes `data`, row-major, with its shape.
///
/// # Errors
/// Those of `out`; a shape whose header is longer than 64 KiB.
///
/// # Panics
/// When `data` does not have the number of elements that `shape` says.
pub fn write(mut out: impl Write, shape: &[usize], data: &[f32]) -> io::Result<()> {
    assert_eq!(shape.iter().product::<usize>(), data.len(), "shape {shape:?} does not hold {} floats", data.len());
    let sizes: String = shape.iter().map(|size| format!("{size},")).collect();
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({sizes}), }}");
    // Magic, version and length take 10 bytes. The header is padded so that the data starts at a multiple of 64.
    let padded = (10 + header.len() + 1).next_multiple_of(64) - 10;
    header.push_str(&" ".repeat(padded - header.len() - 1));
    header.push('\n');
    let length = u16::try_from(header.len()).map_err(|_| io::Error::other("too many axes for a .npy header"))?;
    out.write_all(MAGIC)?;
    out.write_all(&[1, 0])?;
    out.write_all(&length.to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    let bytes: Vec<u8> = data.iter().flat_map(|value| value.to_le_bytes()).collect();
    out.write_all(&bytes)
}

/// Reads an array of `<f4`, row-major.
///
/// # Errors
/// [`NpyError`]: another kind of file, a damaged header, other elements, a size beyond 1 GiB, missing data.
pub fn read(mut input: impl Read) -> Result<Array, NpyError> {
    let mut start = [0; 8];
    input.read_exact(&mut start).map_err(|_| NpyError::Magic)?;
    if &start[..6] != MAGIC {
        return Err(NpyError::Magic);
    }
    let length = match start[6] {
        1 => {
            let mut length = [0; 2];
            input.read_exact(&mut length)?;
            u32::from(u16::from_le_bytes(length))
        }
        2 | 3 => {
            let mut length = [0; 4];
            input.read_exact(&mut length)?;
            u32::from_le_bytes(length)
        }
        _ => return Err(NpyError::Header("a version later than 3")),
    };
    if length > 64 * 1024 {
        return Err(NpyError::Header("longer than 64 KiB"));
    }
    let mut header = vec![0; length as usize];
    input.read_exact(&mut header)?;
    let header = String::from_utf8(header).map_err(|_| NpyError::Header("not text"))?;

    let descr = field(&header, "descr").ok_or(NpyError::Header("no descr"))?;
    let descr = descr.trim_matches(['\'', '"']);
    let order = field(&header, "fortran_order").ok_or(NpyError::Header("no fortran_order"))?;
    if descr != "<f4" || order != "False" {
        return Err(NpyError::Elements(format!("{descr}, fortran_order {order}")));
    }
    let shape = shape(&header)?;
    let count = shape
        .iter()
        .try_fold(1u64, |count, &size| count.checked_mul(size as u64))
        .filter(|&count| count <= MAX_ELEMENTS)
        .ok_or(NpyError::Size)?;
    // `take` bounds the allocation by the data that exists, not by the size that the header claims.
    let mut bytes = Vec::new();
    input.take(count * 4).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != count * 4 {
        return Err(NpyError::Header("the file ends before its data does"));
    }
    let data = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    Ok(Array { shape, data })
}

/// The text of the entry `name` of the header's dictionary, up to the comma.
fn field<'h>(header: &'h str, name: &str) -> Option<&'h str> {
    let (_, after) = header.split_once(&format!("'{name}':"))?;
    after.split([',', '}']).next().map(str::trim)
}

fn shape(header: &str) -> Result<Vec<usize>, NpyError> {
    let damaged = NpyError::Header("no shape");
    let Some((_, after)) = header.split_once("'shape':") else { return Err(damaged) };
    let Some((inside, _)) = after.trim_start().strip_prefix('(').and_then(|rest| rest.split_once(')')) else {
        return Err(damaged);
    };
    let sizes = inside.split(',').map(str::trim).filter(|size| !size.is_empty());
    sizes.map(|size| size.parse().map_err(|_| NpyError::Header("a size that is no number"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(shape: &[usize], data: &[f32]) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(&mut bytes, shape, data).expect("memory takes everything");
        bytes
    }

    #[test]
    fn what_is_written_is_read_back() {
        for (shape, data) in
            [(vec![2, 3], vec![0.0, -1.5, 2.0, f32::MAX, 1e-30, 6.0]), (vec![1], vec![7.0]), (vec![], vec![3.0])]
        {
            let bytes = written(&shape, &data);
            assert_eq!((bytes.len() - data.len() * 4) % 64, 0);
            assert_eq!(read(&bytes[..]).expect("our own file"), Array { shape, data });
        }
    }

    #[test]
    fn the_header_is_numpys() {
        let bytes = written(&[1, 2], &[1.0, 2.0]);
        let header = String::from_utf8_lossy(&bytes[10..128]).into_owned();
        assert!(header.starts_with("{'descr': '<f4', 'fortran_order': False, 'shape': (1,2,), }"), "{header}");
        assert!(header.ends_with('\n'));
    }

    #[test]
    fn other_files_say_what_they_are() {
        assert!(matches!(read(&b"PK\x03\x04 a zip"[..]), Err(NpyError::Magic)));
        let doubles = String::from_utf8_lossy(&written(&[1], &[1.0])[10..128]).replace("<f4", "<f8");
        let mut bytes = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
        bytes.extend(doubles.as_bytes());
        assert!(matches!(read(&bytes[..]), Err(NpyError::Elements(kind)) if kind.starts_with("<f8")));
        let cut = &written(&[4], &[0.0; 4])[..130];
        assert!(matches!(read(cut), Err(NpyError::Header(_))));
    }

    #[test]
    fn a_header_that_promises_too_much_is_refused_before_memory_is_taken() {
        let bytes = written(&[1], &[1.0]);
        let mut huge = bytes[..10].to_vec();
        huge.extend(String::from_utf8_lossy(&bytes[10..128]).replace("(1,)", "(99999999999999,)").as_bytes());
        huge[8] = (huge.len() - 10) as u8;
        assert!(matches!(read(&huge[..]), Err(NpyError::Size)));
    }
}
