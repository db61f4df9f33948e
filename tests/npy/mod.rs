//! Reads the `.npy` files that NumPy's `save` writes: version 1.0, C order, bytes or little-endian f32.

use std::path::Path;

/// One array, row-major.
pub struct Array<T> {
    pub shape: Vec<usize>,
    pub values: Vec<T>,
}

/// Reads an array of bytes.
pub fn bytes(path: &Path) -> Array<u8> {
    let (shape, values) = read(path, "|u1");
    Array { shape, values }
}

/// Reads an array of f32.
pub fn floats(path: &Path) -> Array<f32> {
    let (shape, data) = read(path, "<f4");
    let values = data.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect();
    Array { shape, values }
}

fn read(path: &Path, element: &str) -> (Vec<usize>, Vec<u8>) {
    let file = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(&file[..8], b"\x93NUMPY\x01\0", "{} is no .npy of version 1.0", path.display());
    let header_end = 10 + usize::from(u16::from_le_bytes([file[8], file[9]]));
    let header = std::str::from_utf8(&file[10..header_end]).unwrap();
    assert!(header.contains(&format!("'descr': '{element}'")), "{}: {header}", path.display());
    assert!(header.contains("'fortran_order': False"), "{}: {header}", path.display());
    let shape = header.split_once("'shape': (").unwrap().1.split_once(')').unwrap().0;
    let shape = shape.split(',').filter(|part| !part.trim().is_empty()).map(|part| part.trim().parse().unwrap());
    (shape.collect(), file[header_end..].to_vec())
}
