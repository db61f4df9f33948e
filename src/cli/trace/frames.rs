//! The frames to send: read from a source, or synthetic.

use crate::cli::bench::payloads;
use crate::cli::bench::payloads::{DEFAULT_SIZE, PayloadKind, Size};
use crate::cli::failure::Failure;
use crate::cli::source::Source;
use crate::client::{OutgoingFrame, Payload};
use crate::proto::v1::frame::Payload as Wire;

/// Opens the source that `text` names. Without it, the frames are synthetic JPEGs of `size`.
pub fn open(text: Option<&str>, size: Option<Size>) -> Result<Source, Failure> {
    match text {
        Some(text) => Source::open(text),
        None => synthetic(size.unwrap_or(DEFAULT_SIZE)).map(Source::Ready),
    }
}

fn synthetic(size: Size) -> Result<Vec<OutgoingFrame>, Failure> {
    let frames = payloads::synthetic(PayloadKind::Encoded, size, 3)?;
    let files = frames.into_iter().filter_map(|payload| match payload {
        Wire::Encoded(image) => Some(image.data),
        Wire::Raw(_) | Wire::Tensor(_) | Wire::SharedMemory(_) => None,
    });
    Ok(files
        .enumerate()
        .map(|(number, data)| OutgoingFrame::new(format!("synthetic {}", number + 1), Payload::Encoded(data)))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::source::into_pixels;

    #[test]
    fn without_a_source_frames_are_jpegs_of_the_requested_size() {
        let source = open(None, Some(Size { width: 32, height: 16 })).expect("synthetic frames");
        let Source::Ready(frames) = source else { panic!("{source:?}") };
        assert!(frames.len() > 1);
        for frame in frames {
            let pixels = into_pixels(frame).expect("an image").payload;
            assert!(matches!(pixels, Payload::Rgb { width: 32, height: 16, .. }));
        }
        assert!(open(Some("/nowhere/at all"), None).is_err());
    }
}
