//! The segments of a JPEG: what stands before, between and behind the entropy-coded data.

use super::error::JpegError;
use super::huffman::{self, Class, Definition, Table};

pub(super) const START_OF_IMAGE: u8 = 0xD8;
pub(super) const END_OF_IMAGE: u8 = 0xD9;
pub(super) const START_OF_SCAN: u8 = 0xDA;
const QUANTIZATION: u8 = 0xDB;
const NUMBER_OF_LINES: u8 = 0xDC;
const RESTART_INTERVAL: u8 = 0xDD;
const HUFFMAN: u8 = 0xC4;
const APP0: u8 = 0xE0;
const APP1: u8 = 0xE1;
const APP14: u8 = 0xEE;

/// How the coefficients are distributed over scans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Process {
    /// A block's coefficients are in one scan: baseline and extended.
    Sequential,
    Progressive,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Component {
    pub(super) id: u8,
    /// Blocks per MCU, horizontally and vertically: 1 to 4.
    pub(super) horizontal: usize,
    pub(super) vertical: usize,
    pub(super) quantization: usize,
}

/// The frame header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) process: Process,
    pub(super) width: u32,
    pub(super) height: u32,
    /// 1, 3 or 4.
    pub(super) components: Vec<Component>,
}

/// A scan header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Scan {
    /// Indices of the components, with those of their tables.
    pub(super) components: Vec<ScanComponent>,
    /// The first and last coefficient in zigzag order.
    pub(super) start: usize,
    pub(super) end: usize,
    /// The position of the lowest bit after the scan before, and after this one.
    pub(super) high: u32,
    pub(super) low: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ScanComponent {
    pub(super) index: usize,
    pub(super) dc: usize,
    pub(super) ac: usize,
}

/// What the segments say so far.
#[derive(Debug, Default)]
pub(super) struct Header<'a> {
    pub(super) frame: Option<Frame>,
    steps: [Option<Box<[i32; 64]>>; 4],
    dc: [Option<Definition<'a>>; 4],
    ac: [Option<Definition<'a>>; 4],
    /// MCUs between restart markers; 0: there are none.
    pub(super) restart_interval: usize,
    pub(super) jfif: bool,
    /// The transform that Adobe's segment names.
    pub(super) adobe: Option<u8>,
    /// The content of the EXIF segment.
    pub(super) exif: Option<&'a [u8]>,
}

/// What ends a run of segments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stop {
    Scan(Scan),
    EndOfImage,
    /// The data ends before the next segment does.
    EndOfData,
}

impl<'a> Header<'a> {
    /// Reads segments from `at` on, up to a scan or the end, and sets `at` behind what was read.
    pub(super) fn read(&mut self, data: &'a [u8], at: &mut usize) -> Result<Stop, JpegError> {
        loop {
            let Some(marker) = next_marker(data, at) else { return Ok(Stop::EndOfData) };
            match marker {
                END_OF_IMAGE => return Ok(Stop::EndOfImage),
                // The next picture begins.
                START_OF_IMAGE if self.frame.is_some() => return Ok(Stop::EndOfImage),
                START_OF_IMAGE | 0x01 | 0xD0..=0xD7 => continue,
                0xF7 if self.frame.is_none() => return Err(JpegError::unsupported("it is JPEG-LS")),
                _ => {}
            }
            let Some(segment) = segment(data, at) else { return Ok(Stop::EndOfData) };
            match marker {
                QUANTIZATION => self.quantization(segment)?,
                HUFFMAN => self.huffman(segment)?,
                RESTART_INTERVAL => {
                    let [high, low, ..] = *segment else {
                        return Err(JpegError::malformed("its restart interval is cut"));
                    };
                    self.restart_interval = u16::from_be_bytes([high, low]).into();
                }
                START_OF_SCAN => return self.scan(segment).map(Stop::Scan),
                APP0 if segment.starts_with(b"JFIF\0") => self.jfif = true,
                APP1 if self.exif.is_none() => self.exif = segment.strip_prefix(b"Exif\0\0"),
                APP14 if segment.starts_with(b"Adobe") => self.adobe = segment.get(11).copied(),
                0xC0..=0xCF if is_frame(marker) => {
                    if self.frame.is_some() {
                        return Err(JpegError::malformed("it has two frame headers"));
                    }
                    self.frame = Some(frame(marker, segment, &data[*at..])?);
                }
                _ => {}
            }
        }
    }

    fn quantization(&mut self, mut segment: &[u8]) -> Result<(), JpegError> {
        while let [about, rest @ ..] = segment {
            let cut = || JpegError::malformed("a quantization table is cut");
            let id = usize::from(about & 15);
            let mut table = Box::new([0; 64]);
            let wide = about >> 4 != 0;
            for (k, &position) in super::blocks::ZIGZAG.iter().enumerate() {
                table[usize::from(position)] = if wide {
                    let bytes = rest.get(2 * k..2 * k + 2).ok_or_else(cut)?;
                    i32::from(bytes[0]) << 8 | i32::from(bytes[1])
                } else {
                    i32::from(*rest.get(k).ok_or_else(cut)?)
                };
            }
            *self
                .steps
                .get_mut(id)
                .ok_or_else(|| JpegError::malformed("its quantization tables are numbered beyond 3"))? = Some(table);
            segment = &rest[if wide { 128 } else { 64 }..];
        }
        Ok(())
    }

    fn huffman(&mut self, mut segment: &'a [u8]) -> Result<(), JpegError> {
        let wrong = || JpegError::malformed("a Huffman table is cut or numbered beyond 3");
        while let [about, rest @ ..] = segment {
            let (counts, rest) = rest.split_first_chunk::<16>().ok_or_else(wrong)?;
            let total: usize = counts.iter().map(|&count| usize::from(count)).sum();
            let symbols = rest.get(..total).ok_or_else(wrong)?;
            let tables = if about >> 4 == 0 { &mut self.dc } else { &mut self.ac };
            *tables.get_mut(usize::from(about & 15)).ok_or_else(wrong)? = Some(Definition { counts, symbols });
            segment = &rest[total..];
        }
        Ok(())
    }

    fn scan(&self, segment: &[u8]) -> Result<Scan, JpegError> {
        let frame = self.frame.as_ref().ok_or_else(|| JpegError::malformed("a scan stands before the frame header"))?;
        let cut = || JpegError::malformed("a scan header is cut");
        let count = usize::from(*segment.first().ok_or_else(cut)?);
        let mut components = Vec::with_capacity(4);
        if count == 0 || count > frame.components.len() {
            return Err(JpegError::malformed(format!("a scan has {count} components of {}", frame.components.len())));
        }
        for pair in segment.get(1..1 + 2 * count).ok_or_else(cut)?.as_chunks::<2>().0 {
            let index = frame
                .components
                .iter()
                .position(|component| component.id == pair[0])
                .filter(|index| components.iter().all(|other: &ScanComponent| other.index != *index))
                .ok_or_else(|| JpegError::malformed("a scan names a component that the frame does not have"))?;
            let (dc, ac) = (usize::from(pair[1] >> 4), usize::from(pair[1] & 15));
            if dc > 3 || ac > 3 {
                return Err(JpegError::malformed("its Huffman tables are numbered beyond 3"));
            }
            components.push(ScanComponent { index, dc, ac });
        }
        let &[start, end, approximation] = segment.get(1 + 2 * count..4 + 2 * count).ok_or_else(cut)? else {
            return Err(cut());
        };
        let (start, end) = (usize::from(start), usize::from(end));
        let (high, low) = (u32::from(approximation >> 4), u32::from(approximation & 15));
        match frame.process {
            // Cameras write all kinds of numbers here, and no decoder reads them.
            Process::Sequential => Ok(Scan { components, start: 0, end: 63, high: 0, low: 0 }),
            Process::Progressive => {
                let band = if start == 0 { end == 0 } else { start <= end && end <= 63 && count == 1 };
                if !band || low > 13 || (high != 0 && high != low + 1) {
                    return Err(JpegError::malformed("a progressive scan has an impossible range of coefficients"));
                }
                Ok(Scan { components, start, end, high, low })
            }
        }
    }

    /// Whether no Huffman table was defined, as in motion JPEG.
    pub(super) fn has_no_tables(&self) -> bool {
        self.dc.iter().chain(&self.ac).all(Option::is_none)
    }

    /// A quantization table: the steps of the coefficients, row by row.
    pub(super) fn steps(&self, id: usize) -> Result<Box<[i32; 64]>, JpegError> {
        self.steps[id].clone().ok_or_else(|| JpegError::malformed(format!("its quantization table {id} is not there")))
    }

    /// The table that a scan uses: the file's, or the standard one where the file leaves it out.
    pub(super) fn definition(&self, class: Class, id: usize) -> Result<Definition<'a>, JpegError> {
        let tables = if class == Class::Dc { &self.dc } else { &self.ac };
        tables[id]
            .or_else(|| huffman::standard(class, id))
            .ok_or_else(|| JpegError::malformed(format!("a scan uses Huffman table {id}, which is not there")))
    }

    /// Whether a Huffman table is not in the file.
    pub(super) fn lacks_table(&self, class: Class, id: usize) -> bool {
        (if class == Class::Dc { &self.dc } else { &self.ac })[id].is_none()
    }

    /// [`Header::definition`], ready to decode with.
    pub(super) fn table(&self, class: Class, id: usize) -> Result<Box<Table>, JpegError> {
        Table::new(self.definition(class, id)?)
            .map(Box::new)
            .ok_or_else(|| JpegError::malformed("a Huffman table has too many codes"))
    }
}

/// SOF0 to SOF15. Three markers in that range mean something else.
fn is_frame(marker: u8) -> bool {
    matches!(marker, 0xC0..=0xCF) && !matches!(marker, 0xC4 | 0xC8 | 0xCC)
}

/// The next marker from `at` on; `at` is then behind it. Fill bytes and whatever else stands between segments are
/// passed over.
pub(super) fn next_marker(data: &[u8], at: &mut usize) -> Option<u8> {
    loop {
        *at += memchr::memchr(0xFF, data.get(*at..)?)?;
        let fill = data[*at..].iter().take_while(|&&byte| byte == 0xFF).count();
        *at += fill;
        let marker = *data.get(*at)?;
        *at += 1;
        if marker != 0 {
            return Some(marker);
        }
    }
}

/// The content of the segment whose length stands at `at`; `at` is then behind it.
fn segment<'a>(data: &'a [u8], at: &mut usize) -> Option<&'a [u8]> {
    let length = usize::from(u16::from_be_bytes(*data.get(*at..)?.first_chunk()?)).max(2);
    let segment = data.get(*at + 2..*at + length)?;
    *at += length;
    Some(segment)
}

/// Whether the content of a segment is whole tables, or the number, that its marker announces, and nothing else. Only
/// of these segments can it be said.
pub(super) fn is_whole(marker: u8, mut content: &[u8]) -> bool {
    let table = |content: &[u8]| match (marker, content) {
        (HUFFMAN, [0..=3 | 0x10..=0x13, rest @ ..]) => {
            let counts = rest.first_chunk::<16>()?;
            Some(17 + counts.iter().map(|&count| usize::from(count)).sum::<usize>())
        }
        (QUANTIZATION, [0..=3, ..]) => Some(65),
        (QUANTIZATION, [0x10..=0x13, ..]) => Some(129),
        _ => None,
    };
    if matches!(marker, RESTART_INTERVAL | NUMBER_OF_LINES) {
        return content.len() == 2;
    }
    let mut tables = 0;
    while let Some(rest) = table(content).and_then(|length| content.get(length..)) {
        (content, tables) = (rest, tables + 1);
    }
    tables > 0 && content.is_empty()
}

/// Reads a frame header. `rest` follows it.
fn frame(marker: u8, segment: &[u8], rest: &[u8]) -> Result<Frame, JpegError> {
    let process = match marker {
        0xC0 | 0xC1 => Process::Sequential,
        0xC2 => Process::Progressive,
        0xC3 => return Err(JpegError::unsupported("it is lossless JPEG")),
        0xC9..=0xCB | 0xCD..=0xCF => return Err(JpegError::unsupported("it has arithmetic coding")),
        _ => return Err(JpegError::unsupported("it is hierarchical JPEG")),
    };
    let &[precision, h1, h2, w1, w2, count, ref components @ ..] = segment else {
        return Err(JpegError::malformed("its frame header is cut"));
    };
    if precision != 8 {
        return Err(JpegError::unsupported(format!("it has {precision} bits a sample")));
    }
    let width = u16::from_be_bytes([w1, w2]).into();
    let height = match u16::from_be_bytes([h1, h2]) {
        0 => lines_behind_first_scan(rest),
        height => height.into(),
    };
    if !matches!(count, 1 | 3 | 4) {
        return Err(JpegError::unsupported(format!("it has {count} components")));
    }
    let components = components
        .get(..3 * usize::from(count))
        .ok_or_else(|| JpegError::malformed("its frame header is cut"))?
        .as_chunks::<3>()
        .0
        .iter()
        .map(|&[id, sampling, quantization]| {
            let (horizontal, vertical) = (usize::from(sampling >> 4), usize::from(sampling & 15));
            if !(1..=4).contains(&horizontal) || !(1..=4).contains(&vertical) || quantization > 3 {
                return Err(JpegError::malformed(
                    "a component has an impossible sampling factor or quantization table",
                ));
            }
            Ok(Component { id, horizontal, vertical, quantization: quantization.into() })
        })
        .collect::<Result<_, _>>()?;
    Ok(Frame { process, width, height, components })
}

/// The height that a DNL segment behind the first scan gives; 0 when there is none.
fn lines_behind_first_scan(rest: &[u8]) -> u32 {
    let mut at = 0;
    while let Some(marker) = next_marker(rest, &mut at) {
        match marker {
            0x01 | 0xD0..=0xD7 => {}
            END_OF_IMAGE | START_OF_IMAGE => return 0,
            NUMBER_OF_LINES => {
                return match segment(rest, &mut at) {
                    Some(&[high, low]) => u16::from_be_bytes([high, low]).into(),
                    _ => 0,
                };
            }
            _ => {
                if segment(rest, &mut at).is_none() {
                    return 0;
                }
            }
        }
    }
    0
}
