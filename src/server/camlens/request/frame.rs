//! A frame: its header, time to live and payload.

use std::time::{Duration, Instant, SystemTime};

use tonic::Code;

use crate::frame::{ImageFormat, Payload, PixelFormat};
use crate::proto::v1;
use crate::proto::v1::frame::Payload as Wire;
use crate::server::camlens::response::Echo;
use crate::server::frame_account::FrameHeader;
use crate::server::refusal::Refusal;
use crate::server::transport::calls::TraceHeaders;

use super::unknown_value;

/// The largest tag. It is held as long as the frame, since the answer repeats it.
const MAX_TAG_BYTES: usize = 4096;

/// The header of a frame that came with a call; the frame's own trace goes before the call's.
pub(in crate::server) fn header(frame: &v1::Frame, call: TraceHeaders, accepted_at: Instant) -> FrameHeader {
    let own = TraceHeaders { traceparent: frame.traceparent.clone(), tracestate: frame.tracestate.clone() };
    FrameHeader {
        sequence: frame.sequence,
        trace: own.or(call),
        payload_bytes: payload_bytes(frame),
        accepted_at,
        captured_at: frame.capture_time.and_then(|time| SystemTime::try_from(time).ok()),
    }
}

/// What the frame's answer repeats.
pub(in crate::server) fn echo(frame: &v1::Frame) -> Echo {
    Echo { sequence: frame.sequence, capture_time: frame.capture_time, tag: frame.tag.clone() }
}

fn payload_bytes(frame: &v1::Frame) -> u64 {
    let length = match &frame.payload {
        Some(Wire::Encoded(image)) => image.data.len(),
        Some(Wire::Raw(image)) => image.data.len(),
        Some(Wire::Tensor(tensor)) => tensor.data.len(),
        Some(Wire::SharedMemory(_)) | None => 0,
    };
    length as u64
}

/// The time to live in `field`, of a frame or of a stream's policy.
///
/// # Errors
/// When it is not more than 0 s.
pub(in crate::server) fn time_to_live(
    field: &'static str,
    given: Option<&prost_types::Duration>,
) -> Result<Option<Duration>, Refusal> {
    let Some(given) = given else { return Ok(None) };
    match Duration::try_from(*given) {
        Ok(duration) if !duration.is_zero() => Ok(Some(duration)),
        _ => {
            let message = format!("{field} is {given}: more than 0 s is allowed");
            Err(Refusal::invalid(field, message))
        }
    }
}

/// Takes the payload out of a frame.
///
/// # Errors
/// A field of the frame that is missing, too large, of an unknown value or not built yet.
pub(in crate::server) fn payload(frame: &mut v1::Frame, max_frame_bytes: u64) -> Result<Payload, Refusal> {
    if frame.tag.len() > MAX_TAG_BYTES {
        let message = format!("frame.tag has {} bytes: at most {MAX_TAG_BYTES} are allowed", frame.tag.len());
        return Err(Refusal::invalid("frame.tag", message));
    }
    if frame.region.is_some() {
        return Err(Refusal::not_built("frame.region", "regions are"));
    }
    let bytes = payload_bytes(frame);
    if bytes > max_frame_bytes {
        let message = format!(
            "the frame's payload has {bytes} bytes: at most {max_frame_bytes} are allowed (limits.max_frame_bytes)"
        );
        return Err(Refusal::new(Code::ResourceExhausted, "frame", message));
    }
    match frame.payload.take() {
        Some(Wire::Encoded(image)) => encoded(image),
        Some(Wire::Raw(image)) => raw(image),
        Some(Wire::Tensor(tensor)) => ready(tensor),
        Some(Wire::SharedMemory(_)) => Err(Refusal::not_built("frame.shared_memory", "shared memory is")),
        None => Err(Refusal::invalid("frame.payload", "frame.payload is missing: give encoded, raw or tensor")),
    }
}

fn encoded(image: v1::EncodedImage) -> Result<Payload, Refusal> {
    let format = match v1::ImageFormat::try_from(image.format) {
        Ok(v1::ImageFormat::Unspecified) => None,
        Ok(v1::ImageFormat::Jpeg) => Some(ImageFormat::Jpeg),
        Ok(v1::ImageFormat::Png) => Some(ImageFormat::Png),
        Ok(v1::ImageFormat::Webp) => Some(ImageFormat::WebP),
        Err(_) => {
            return Err(unknown_value("frame.encoded.format", image.format, "JPEG, PNG and WEBP are allowed"));
        }
    };
    Ok(Payload::Encoded { data: image.data, format, allow_damaged: false })
}

fn raw(image: v1::RawImage) -> Result<Payload, Refusal> {
    const FIELD: &str = "frame.raw.pixel_format";
    let pixel_format = match v1::PixelFormat::try_from(image.pixel_format) {
        Ok(v1::PixelFormat::Rgb8) => PixelFormat::Rgb8,
        Ok(v1::PixelFormat::Bgr8) => PixelFormat::Bgr8,
        Ok(v1::PixelFormat::Gray8) => PixelFormat::Gray8,
        Ok(v1::PixelFormat::Unspecified) => {
            let message = format!("{FIELD} is missing: RGB8, BGR8 and GRAY8 are allowed");
            return Err(Refusal::invalid(FIELD, message));
        }
        Ok(other) => {
            let message = format!("{FIELD}: {} is not built yet; send RGB8, BGR8 or GRAY8", other.as_str_name());
            return Err(Refusal::new(Code::Unimplemented, FIELD, message));
        }
        Err(_) => return Err(unknown_value(FIELD, image.pixel_format, "RGB8, BGR8 and GRAY8 are allowed")),
    };
    let stride_bytes = Some(image.stride_bytes).filter(|stride| *stride != 0);
    Ok(Payload::Raw { data: image.data, width: image.width, height: image.height, pixel_format, stride_bytes })
}

fn ready(tensor: v1::Tensor) -> Result<Payload, Refusal> {
    const FIELD: &str = "frame.tensor.element_type";
    match v1::ElementType::try_from(tensor.element_type) {
        Ok(v1::ElementType::Unspecified | v1::ElementType::Float32) => {}
        Ok(v1::ElementType::Float16 | v1::ElementType::Uint8) => {
            return Err(Refusal::not_built(FIELD, "inputs other than float32 are"));
        }
        Err(_) => return Err(unknown_value(FIELD, tensor.element_type, "FLOAT32 is allowed")),
    }
    for (field, given) in
        [("frame.tensor.scale", tensor.scale.is_some()), ("frame.tensor.zero_point", tensor.zero_point.is_some())]
    {
        if given {
            return Err(Refusal::invalid(field, format!("{field} belongs to UINT8 tensors: leave it out")));
        }
    }
    Ok(Payload::Tensor { data: tensor.data, shape: tensor.shape })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(payload_of: Wire) -> Refusal {
        let mut frame = v1::Frame { payload: Some(payload_of), ..Default::default() };
        payload(&mut frame, 100).expect_err("it is wrong")
    }

    #[test]
    fn each_mistake_names_its_field_and_what_is_allowed() {
        let raw = |pixel_format: i32| Wire::Raw(v1::RawImage { pixel_format, ..Default::default() });
        let tensor = |element_type: i32| Wire::Tensor(v1::Tensor { element_type, ..Default::default() });
        let large = Wire::Encoded(v1::EncodedImage { data: vec![0; 101].into(), ..Default::default() });
        for (wire, code, field, allowed) in [
            (raw(0), Code::InvalidArgument, "frame.raw.pixel_format", "RGB8"),
            (raw(v1::PixelFormat::Nv12 as i32), Code::Unimplemented, "frame.raw.pixel_format", "PIXEL_FORMAT_NV12"),
            (raw(999), Code::InvalidArgument, "frame.raw.pixel_format", "999"),
            (tensor(2), Code::Unimplemented, "frame.tensor.element_type", "float32"),
            (large, Code::ResourceExhausted, "frame", "limits.max_frame_bytes"),
            (Wire::SharedMemory(Default::default()), Code::Unimplemented, "frame.shared_memory", "not built"),
        ] {
            let refusal = refused(wire);
            assert_eq!((refusal.code, refusal.field.as_str()), (code, field));
            assert!(refusal.message.contains(allowed), "{refusal}");
        }
    }

    #[test]
    fn fields_of_later_versions_are_refused_not_ignored() {
        let mut frame = v1::Frame { region: Some(Default::default()), ..Default::default() };
        let refusal = payload(&mut frame, 100).expect_err("a region");
        assert_eq!((refusal.code, refusal.field.as_str()), (Code::Unimplemented, "frame.region"));
        let refusal = payload(&mut v1::Frame::default(), 100).expect_err("no payload");
        assert_eq!((refusal.code, refusal.field.as_str()), (Code::InvalidArgument, "frame.payload"));
        let mut tagged = v1::Frame { tag: vec![0; 5000].into(), ..Default::default() };
        assert_eq!(payload(&mut tagged, 100).expect_err("a long tag").field, "frame.tag");
    }
}
