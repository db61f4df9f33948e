//! Reads `.npz` files as NumPy's `savez` and `savez_compressed` write them: a zip of `.npy` arrays of version 1.0, in C
//! order, little-endian.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use zip::ZipArchive;
use zip::result::ZipError;

/// One array, row-major.
pub struct Array<T> {
    pub shape: Vec<usize>,
    pub values: Vec<T>,
}

/// A type of elements that is read.
pub trait Element: Sized {
    /// NumPy's name of the type in an array's header.
    const DESCR: &str;
    fn all(bytes: &[u8]) -> Vec<Self>;
}

impl Element for u8 {
    const DESCR: &str = "|u1";
    fn all(bytes: &[u8]) -> Vec<Self> {
        bytes.to_vec()
    }
}

impl Element for f32 {
    const DESCR: &str = "<f4";
    fn all(bytes: &[u8]) -> Vec<Self> {
        bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
    }
}

impl Element for f64 {
    const DESCR: &str = "<f8";
    fn all(bytes: &[u8]) -> Vec<Self> {
        bytes.chunks_exact(8).map(|eight| f64::from_le_bytes(eight.try_into().unwrap())).collect()
    }
}

/// Reads the array `name` of the `.npz` at `path`; `None` if the file holds no array of that name.
///
/// # Panics
///
/// If the file cannot be read, or the array's elements are not `T`.
pub fn find<T: Element>(path: &Path, name: &str) -> Option<Array<T>> {
    let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut archive = ZipArchive::new(file).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut bytes = Vec::new();
    match archive.by_name(&format!("{name}.npy")) {
        Ok(mut entry) => entry.read_to_end(&mut bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display())),
        Err(ZipError::FileNotFound) => return None,
        Err(error) => panic!("{}: {error}", path.display()),
    };
    Some(parse(&bytes).unwrap_or_else(|wrong| panic!("{}, {name}: {wrong}", path.display())))
}

fn parse<T: Element>(file: &[u8]) -> Result<Array<T>, String> {
    let Some(rest) = file.strip_prefix(b"\x93NUMPY\x01\0") else { return Err("not a .npy of version 1.0".into()) };
    let (header, data) = rest[2..].split_at(usize::from(u16::from_le_bytes([rest[0], rest[1]])));
    let header = String::from_utf8_lossy(header);
    if !header.contains(&format!("'descr': '{}'", T::DESCR)) || !header.contains("'fortran_order': False") {
        return Err(format!("{header}, not {} in C order", T::DESCR));
    }
    let shape = header.split_once("'shape': (").unwrap().1.split_once(')').unwrap().0;
    let shape = shape.split(',').filter(|part| !part.trim().is_empty()).map(|part| part.trim().parse().unwrap());
    let (shape, values): (Vec<usize>, _) = (shape.collect(), T::all(data));
    if shape.iter().product::<usize>() != values.len() {
        return Err(format!("{} values do not fill the shape {shape:?}", values.len()));
    }
    Ok(Array { shape, values })
}
