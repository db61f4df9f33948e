//! The frames of a recorded video.

use std::time::Duration;

use super::ffmpeg::{Decoder, Ending};
use super::input::Input;
use crate::cli::failure::Failure;
use crate::client::{Capture, OutgoingFrame};

/// Passes each frame of `input` to `take` until it returns `false`. Frames are named `CLIP#NUMBER`. Returns the number
/// of errors that the decoder reported and went on.
///
/// # Errors
/// There is no ffmpeg, no frame, or the video breaks off.
pub fn read(input: &Input, take: &mut dyn FnMut(OutgoingFrame) -> bool) -> Result<u64, Failure> {
    match read_with(Decoder::start(input)?, input, take) {
        (0, Some(ending), _) if ending.is_of_an_old_ffmpeg() => {
            verdict(input, read_with(Decoder::start_old(input)?, input, take))
        }
        read => verdict(input, read),
    }
}

/// The number of frames, how the video ended (`None`: `take` wants no more), and the decoder's errors.
type Read = (u64, Option<Ending>, u64);

fn read_with(mut decoder: Decoder, input: &Input, take: &mut dyn FnMut(OutgoingFrame) -> bool) -> Read {
    let (clip, mut count, mut first_s) = (input.clip(), 0, None);
    loop {
        let frame = match decoder.next() {
            Ok(frame) => frame,
            Err(ending) => return (count, Some(ending), decoder.errors()),
        };
        count += 1;
        let position = frame.time_s.map(|time_s| {
            let first_s = *first_s.get_or_insert(time_s);
            Duration::try_from_secs_f64(time_s - first_s).unwrap_or_default()
        });
        let captured = Capture::now();
        if !take(OutgoingFrame { name: format!("{clip}#{count}"), payload: frame.payload, captured, position }) {
            return (count, None, decoder.errors());
        }
    }
}

fn verdict(input: &Input, (count, ending, errors): Read) -> Result<u64, Failure> {
    let Some(ending) = ending else { return Ok(errors) };
    let (name, because) = (&input.name, ending.because());
    match (ending.status.success() && ending.garbage.is_none(), count) {
        (true, 1..) => Ok(errors),
        (true, 0) => Err(Failure::failed(format!("{name} has no frames of video"))),
        (false, 0) => Err(Failure::failed(format!("cannot read {name} as a video; {because}"))),
        (false, _) => Err(Failure::failed(format!("{name} breaks off after {count} frames; {because}"))),
    }
}
