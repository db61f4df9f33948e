//! Decodes a scan with the tables that it names.

use fearless_simd::Simd;

use super::blocks::Band;
use super::error::JpegError;
use super::header::{Header, Scan};
use super::huffman::Class;
use super::intervals;
use super::planes::{Picture, UNKNOWN};
use super::units::{Kind, Lane, Units};

/// Decodes the scan whose data begins at `at`, and sets `at` behind it. What is damaged is noted in `picture`. Returns
/// whether the data ends in this scan.
///
/// # Errors
/// A scan that cannot be decoded at all: tables that are missing, or an order of scans that is impossible.
pub(super) fn decode<S: Simd>(
    simd: S,
    picture: &mut Picture,
    header: &Header<'_>,
    scan: &Scan,
    data: &[u8],
    at: &mut usize,
) -> Result<bool, JpegError> {
    let kind = admit(picture, scan)?;
    let alone = scan.components.len() == 1;
    let mut lanes = Vec::with_capacity(4);
    for component in &scan.components {
        let plane = &picture.planes[component.index];
        // The table that is there at a component's first scan counts.
        let steps = match &plane.steps {
            Some(steps) => steps.clone(),
            None => header.steps(plane.quantization)?,
        };
        let (wide, high) = if alone { (1, 1) } else { (plane.horizontal, plane.vertical) };
        let table = |class, id, needed: bool| if needed { header.table(class, id).map(Some) } else { Ok(None) };
        let dc = table(Class::Dc, component.dc, matches!(kind, Kind::Sequential | Kind::DcFirst))?;
        let ac = table(Class::Ac, component.ac, !matches!(kind, Kind::DcFirst | Kind::DcRefine))?;
        picture.has_borrowed_tables |= (dc.is_some() && header.lacks_table(Class::Dc, component.dc))
            || (ac.is_some() && header.lacks_table(Class::Ac, component.ac));
        lanes.push(Lane { plane: component.index, wide, high, dc, ac, steps });
    }
    let (wide, high) = match &picture.planes[scan.components[0].index] {
        plane if alone => (plane.own_wide, plane.own_high),
        _ => picture.mcus,
    };
    let band = Band { start: scan.start, end: scan.end, low: scan.low };
    let count = wide * high;
    let length = if header.restart_interval == 0 { count } else { header.restart_interval };
    let units = Units { kind, band, lanes, wide, count, webcam: header.has_no_tables() };
    for lane in &units.lanes {
        let plane = &mut picture.planes[lane.plane];
        plane.known[scan.start..=scan.end].fill(scan.low as u8);
        plane.steps.get_or_insert_with(|| lane.steps.clone());
    }

    let segments = intervals::split(data, *at, count.div_ceil(length));
    *at = segments.end;
    if kind == Kind::Sequential {
        units.sequential(simd, picture, data, &segments, length);
    } else {
        units.progressive(simd, picture, data, &segments, length);
    }
    Ok(segments.cut)
}

/// Checks that a scan continues what earlier scans brought.
fn admit(picture: &Picture, scan: &Scan) -> Result<Kind, JpegError> {
    let mut kind = Kind::Sequential;
    for component in &scan.components {
        let known = &picture.planes[component.index].known;
        let before = if scan.high == 0 { UNKNOWN } else { scan.high as u8 };
        if known[scan.start..=scan.end].iter().any(|&low| low != before) {
            return Err(JpegError::malformed("a scan repeats another one, or refines one that is not there"));
        }
        if picture.progressive {
            if scan.start > 0 && known[0] == UNKNOWN {
                return Err(JpegError::malformed("a scan of details stands before that of the means"));
            }
            kind = match (scan.start, scan.high) {
                (0, 0) => Kind::DcFirst,
                (0, _) => Kind::DcRefine,
                (_, 0) => Kind::AcFirst,
                _ => Kind::AcRefine,
            };
        }
    }
    Ok(kind)
}
