//! Portable pixmaps, as ffmpeg writes them to a pipe.

use std::io::{self, BufRead};

use bytes::Bytes;

use crate::client::Payload;

/// Largest frame that is read, in bytes: more than 16k × 16k pixels.
const MAX_FRAME_BYTES: u64 = 1 << 30;

/// Reads one binary pixmap (`P6`); `None` at the end of the pipe.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] if the header is invalid; [`io::ErrorKind::UnexpectedEof`] if the pixmap is cut off.
pub fn read(stream: &mut impl BufRead) -> io::Result<Option<Payload>> {
    if stream.fill_buf()?.is_empty() {
        return Ok(None);
    }
    let damaged = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    if word(stream)? != "P6" {
        return Err(damaged("not a portable pixmap"));
    }
    let mut number = || word(stream)?.parse::<u32>().map_err(|_| damaged("a size that is not a number"));
    let (width, height, maximum) = (number()?, number()?, number()?);
    let length = u64::from(width) * u64::from(height) * 3;
    if maximum != 255 || length == 0 || length > MAX_FRAME_BYTES {
        return Err(damaged(&format!("a frame of {width}×{height} pixels with the maximum {maximum}")));
    }
    let mut data = vec![0; length as usize];
    stream.read_exact(&mut data)?;
    Ok(Some(Payload::Rgb { width, height, data: Bytes::from(data) }))
}

/// Reads one word of the header and the single blank after it.
fn word(stream: &mut impl BufRead) -> io::Result<String> {
    let mut word = String::new();
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        if byte[0].is_ascii_whitespace() {
            return Ok(word);
        }
        if word.len() == 20 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a header that does not end"));
        }
        word.push(char::from(byte[0]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixmaps_of_different_sizes_are_read_in_turn() {
        let mut stream = &b"P6\n2 1\n255\nabcdefP6\n1 1\n255\nxyz"[..];
        let rgb = |width, height, data: &'static [u8]| Payload::Rgb { width, height, data: Bytes::from_static(data) };
        assert_eq!(read(&mut stream).expect("a pixmap"), Some(rgb(2, 1, b"abcdef")));
        assert_eq!(read(&mut stream).expect("a pixmap"), Some(rgb(1, 1, b"xyz")));
        assert_eq!(read(&mut stream).expect("the end"), None);
    }

    #[test]
    fn an_invalid_pixmap_is_an_error_and_allocates_nothing() {
        for bytes in [
            &b"GIF89a..."[..],
            b"P6\n99999 99999\n255\n",
            b"P6\n0 1\n255\n",
            b"P6\n1 1\n65535\nabcdef",
            b"P6\n-1 1\n255\n",
        ] {
            let mut stream = bytes;
            let error = read(&mut stream).expect_err("no pixmap");
            assert!(matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof), "{error}");
        }
    }
}
