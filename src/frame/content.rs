//! Names what was sent where a picture should be.

/// A name for content that is not read, such as "a GIF picture".
pub(super) fn name(data: &[u8]) -> String {
    let known = by_magic(data).or_else(|| by_box(data)).or_else(|| by_text(data)).or_else(|| by_stream(data));
    if let Some(name) = known {
        return name.to_owned();
    }
    let start: Vec<String> = data.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let start = start.join(" ");
    match embedded(data) {
        Some((name, at)) => format!("a {name} behind {at} other bytes (it begins with {start})"),
        None => format!("no picture that is known (it begins with {start})"),
    }
}

/// Content whose first bytes are its sign.
#[rustfmt::skip]
const MAGIC: [(&[u8], &str); 44] = [
    (b"GIF8", "a GIF picture"),
    (b"II\x2a\0", "a TIFF picture"), (b"MM\0\x2a", "a TIFF picture"), (b"II\x2b\0", "a TIFF picture"),
    (b"MM\0\x2b", "a TIFF picture"), (b"II\xBC", "a JPEG XR picture"),
    (b"\xFF\x0A", "a JPEG XL picture"), (b"\0\0\0\x0CJXL ", "a JPEG XL picture"),
    (b"\0\0\0\x0CjP  ", "a JPEG 2000 picture"), (b"\xFF\x4F\xFF\x51", "a JPEG 2000 picture"),
    (b"\0\0\x01\0", "an ICO picture"), (b"DDS ", "a DDS picture"), (b"8BPS", "a Photoshop file"),
    (b"qoif", "a QOI picture"), (b"v/1\x01", "an OpenEXR picture"), (b"#?RADIANCE", "a Radiance HDR picture"),
    (b"farbfeld", "a farbfeld picture"), (b"%PDF", "a PDF document"), (b"%!PS", "a PostScript document"),
    (b"\x1F\x8B", "gzip data: the field takes the picture itself"),
    (b"\x28\xB5\x2F\xFD", "zstd data: the field takes the picture itself"),
    (b"BZh", "bzip2 data: the field takes the picture itself"),
    (b"\xFD7zXZ\0", "xz data: the field takes the picture itself"),
    (b"PK\x03\x04", "a ZIP archive"), (b"7z\xBC\xAF", "a 7z archive"), (b"Rar!", "a RAR archive"),
    (b"\x1A\x45\xDF\xA3", "a Matroska or WebM video"), (b"FLV\x01", "a Flash video"), (b"OggS", "an Ogg file"),
    (b"\0\0\x01\xBA", "an MPEG video"), (b"\0\0\x01\xB3", "an MPEG video"),
    (b"\x93NUMPY", "a NumPy array: send frame.raw or frame.tensor"), (b"\x89HDF", "an HDF5 file"),
    (b"data:", "a data URL: the field takes the bytes themselves"),
    (b"/9j/", "a JPEG as base64 text: the field takes the bytes themselves"),
    (b"iVBORw0KGgo", "a PNG as base64 text: the field takes the bytes themselves"),
    (b"UklGR", "a WebP as base64 text: the field takes the bytes themselves"),
    (b"R0lGOD", "a GIF picture as base64 text"),
    (b"ffd8ff", "a JPEG as hexadecimal text: the field takes the bytes themselves"),
    (b"FFD8FF", "a JPEG as hexadecimal text: the field takes the bytes themselves"),
    (b"HTTP/", "an HTTP response: the field takes its body"),
    (b"Content-", "a part of a multipart body: the field takes the picture in it"),
    (b"http:", "a URL: the field takes the picture itself"), (b"https:", "a URL: the field takes the picture itself"),
];

fn by_magic(data: &[u8]) -> Option<&'static str> {
    if let Some(&(_, name)) = MAGIC.iter().find(|(magic, _)| data.starts_with(magic)) {
        return Some(name);
    }
    match data {
        // The header's length follows the file's length and four bytes, and where the pixels are.
        [b'B', b'M', _, _, _, _, _, _, _, _, _, _, _, _, 12 | 40 | 52 | 56 | 64 | 108 | 124, 0, ..] => {
            Some("a BMP picture")
        }
        [b'R', b'I', b'F', b'F', _, _, _, _, b'A', b'V', b'I', ..] => Some("an AVI video"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'A', b'V', ..] => Some("a WAV file"),
        [b'R', b'I', b'F', b'F', ..] => Some("a RIFF file other than WebP"),
        [b'P', b'1'..=b'7', b' ' | b'\t' | b'\n' | b'\r', ..] => Some("a PNM picture"),
        _ if data.ends_with(b"TRUEVISION-XFILE.\0") => Some("a TGA picture"),
        // Uncompressed or run-length coded true colour without a colour map.
        [_, 0, 2 | 10, 0, 0, 0, 0, 0, _, _, _, _, _, _, _, _, 24 | 32, _, ..] => Some("a TGA picture"),
        _ if data.get(128..132) == Some(b"DICM") => Some("a DICOM file"),
        _ => None,
    }
}

/// Files of ISO base media boxes, by their brand (ISO/IEC 14496-12).
fn by_box(data: &[u8]) -> Option<&'static str> {
    match data.get(4..8)? {
        b"ftyp" => {}
        b"moov" | b"moof" | b"mdat" | b"styp" | b"wide" => return Some("an MP4 or QuickTime video"),
        _ => return None,
    }
    let brands = data.get(8..)?.as_chunks::<4>().0.iter().take(16);
    for brand in brands {
        match brand {
            b"avif" | b"avis" => return Some("an AVIF picture"),
            b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" => return Some("a HEIC picture"),
            b"jxl " => return Some("a JPEG XL picture"),
            b"jp2 " | b"jpx " => return Some("a JPEG 2000 picture"),
            b"crx " => return Some("a raw picture of a camera"),
            b"isom" | b"mp41" | b"mp42" | b"avc1" | b"qt  " => return Some("an MP4 or QuickTime video"),
            _ => {}
        }
    }
    Some(if data.get(8..12) == Some(b"mif1") { "a HEIF picture" } else { "an MP4 or QuickTime video" })
}

fn by_text(data: &[u8]) -> Option<&'static str> {
    let data = data.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(data);
    let data = data.trim_ascii_start();
    let start = data.get(..data.len().min(256))?.to_ascii_lowercase();
    let has = |part: &[u8]| start.windows(part.len()).any(|window| window == part);
    match start.as_slice() {
        [b'<', ..] if has(b"<svg") => Some("an SVG drawing"),
        [b'<', ..] if has(b"<html") || has(b"<!doctype html") || has(b"<head") || has(b"<body") => Some("an HTML page"),
        [b'<', b'?', ..] => Some("an XML document"),
        [b'-', b'-', ..] if has(b"content-") => Some("a multipart body: the field takes the picture in it"),
        [b'{' | b'[', rest @ ..] if rest.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace()) => {
            Some("JSON text")
        }
        _ => None,
    }
}

/// Video without a container, and memory that was never written.
fn by_stream(data: &[u8]) -> Option<&'static str> {
    match data {
        [0, 0, 0, 1, unit, ..] | [0, 0, 1, unit, ..] if unit & 0x80 == 0 && *unit != 0 => {
            Some("an H.264 or H.265 video stream")
        }
        [0x47, ..] if data.get(188) == Some(&0x47) => Some("an MPEG transport stream"),
        _ if data.len() >= 4 && data.iter().all(|&byte| byte == 0) => Some("nothing but zeros"),
        _ => None,
    }
}

/// A picture that begins a little later, and where.
fn embedded(data: &[u8]) -> Option<(&'static str, usize)> {
    let start = &data[..data.len().min(1024)];
    let find = |part: &[u8]| start.windows(part.len()).position(|window| window == part);
    if let Some(at) = find(b"\xFF\xD8\xFF") {
        return Some(("JPEG", at));
    }
    find(b"\x89PNG\r\n\x1a\n").map(|at| ("PNG", at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_send_instead_of_a_picture_is_named() {
        for (data, expected) in [
            (&b"GIF89a\x01\0"[..], "a GIF picture"),
            (b"BM\x36\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0", "a BMP picture"),
            (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC picture"),
            (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avif", "an AVIF picture"),
            (b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2avc1mp41", "an MP4 or QuickTime video"),
            (b"\xFF\x0A\0\0", "a JPEG XL picture"),
            (b"\xFF\x4F\xFF\x51\0", "a JPEG 2000 picture"),
            (b"  <!DOCTYPE html><html>", "an HTML page"),
            (b"<?xml version=\"1.0\"?><svg/>", "an SVG drawing"),
            (b"{\"error\":\"camera offline\"}", "JSON text"),
            (b"\0\0\0\x01\x67\x42\0\x1e", "an H.264 or H.265 video stream"),
            (b"\0\0\0\0\0\0", "nothing but zeros"),
        ] {
            assert_eq!(name(data), expected);
        }
        for (data, part) in [
            (&b"--frame\r\nContent-Type: image/jpeg\r\n\r\n\xFF\xD8\xFF"[..], "multipart"),
            (b"/9j/4AAQSkZJRg", "base64"),
            (b"data:image/jpeg;base64,/9j/", "data URL"),
            (b"\x1F\x8B\x08\0", "gzip"),
            (b"\r\n\xFF\xD8\xFF\xE0", "a JPEG behind 2 other bytes"),
            (b"hello", "begins with 68 65 6c 6c"),
            (b"BMW", "begins with 42 4d 57"),
            (b"[\xFF\xFE", "begins with 5b ff fe"),
        ] {
            assert!(name(data).contains(part), "{}", name(data));
        }
    }
}
