//! Names the part of the round trip that takes the most time, and how to shorten it.

use super::breakdown::{Breakdown, Part};
use crate::proto::v1::Stage;

/// How the frames were sent, which determines what they can wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sending {
    /// One frame in flight: no frame waits for another of its own stream.
    OneByOne,
    /// Several frames in flight, or a fixed rate.
    Together,
}

/// The part that takes the most time, what shortens it and, where needed, how to read the number. None: all times are
/// zero.
pub fn advice(breakdown: &Breakdown, sending: Sending) -> Option<String> {
    let (part, share) = breakdown.largest()?;
    let what = remedy(part);
    let mut text = format!("{} takes the most time: {:.0} % of the round trips. {what}", part.name(), share * 100.0);
    if let Some(more) = caveat(part, sending, breakdown.mean_batch_size()) {
        text = format!("{text} {more}");
    }
    Some(text)
}

/// What the part consists of, and what shortens it.
fn remedy(part: Part) -> &'static str {
    let Part::Stage(stage) = part else {
        return "It is spent outside the server's stages: in the network, in the client, or in sending the answer. Send \
                smaller frames, request fewer or smaller maps or, on one machine, use a Unix socket.";
    };
    match Stage::try_from(stage) {
        Ok(Stage::Receive) => {
            "Frames are held back before they are queued, by the stream's credit or the server's limits: send fewer \
             frames, or let newer frames replace older ones (--overflow latest)."
        }
        Ok(Stage::Queue) => {
            "Frames arrive faster than the device explains them: send fewer frames, let newer frames replace older \
             ones (--overflow latest), or give the important streams a higher --priority."
        }
        Ok(Stage::Decode) => "Send smaller images, or pixels instead of files (compare with --raw).",
        Ok(Stage::Preprocess) => "Send frames closer to the model's input size, or send the input tensor.",
        Ok(Stage::Batch) => {
            "The frame is ready, but its batch has not started: the device is running the previous batch, or waits up \
             to limits.max_batch_delay_ms for more frames."
        }
        Ok(Stage::CopyIn) => "The model's input is copied to the device: use a model with a smaller input.",
        Ok(Stage::Forward) => "This is the model's forward run: use a smaller model, a smaller input or more cores.",
        Ok(Stage::Backward) => {
            "This is the reverse run from each target: request fewer targets, or only predictions \
             (--predictions-only), which need no reverse run."
        }
        Ok(Stage::Fuse) => "Maps are computed for each target: request fewer targets or maps.",
        Ok(Stage::CopyOut) => "Maps are copied from the device: request fewer targets or maps.",
        Ok(Stage::Render) => {
            "Pictures and maps are encoded: request fewer of them, JPEG instead of PNG, float16 or uint8 instead of \
             float32."
        }
        Ok(Stage::Deliver) => {
            "Answers are ready, but wait for the answers to earlier frames of their stream or for a slow client: read \
             faster, or open the stream unordered."
        }
        Ok(Stage::Unspecified) | Err(_) => "This version of camlens does not know the stage; a newer version may.",
    }
}

/// What else the number depends on, if anything.
fn caveat(part: Part, sending: Sending, mean_batch_size: f64) -> Option<String> {
    let Part::Stage(stage) = part else { return None };
    match Stage::try_from(stage).ok()? {
        Stage::Batch if sending == Sending::OneByOne => {
            Some("Only one frame was in flight: it waited for batches of other streams, or for that delay.".to_owned())
        }
        Stage::Receive | Stage::Queue | Stage::Batch => Some(match sending {
            Sending::OneByOne => {
                "Only one frame was in flight: it waited for frames of other streams, to which this advice applies."
                    .to_owned()
            }
            Sending::Together => {
                "These frames may wait for each other: --in-flight 1 measures one frame at a time.".to_owned()
            }
        }),
        Stage::CopyIn | Stage::Forward | Stage::Backward | Stage::Fuse | Stage::CopyOut if mean_batch_size >= 1.05 => {
            Some(format!("The mean batch size is {mean_batch_size:.1}, and each frame waits for its whole batch."))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::frame;
    use super::*;

    fn advice_for(stage: Stage, batch_size: u32, sending: Sending) -> String {
        let mut frame = frame(1, 10_000, &[(stage, 8_000), (Stage::Unspecified, 1_000)]);
        frame.batch_size = batch_size;
        advice(&Breakdown::of([&frame]), sending).expect("some time")
    }

    #[test]
    fn the_largest_part_is_named_with_its_share_and_a_remedy() {
        assert_eq!(
            advice_for(Stage::Forward, 1, Sending::OneByOne),
            "forward takes the most time: 80 % of the round trips. This is the model's forward run: use a smaller \
             model, a smaller input or more cores."
        );
        let away = frame(1, 10_000, &[(Stage::Forward, 1_000)]);
        let text = advice(&Breakdown::of([&away]), Sending::OneByOne).expect("some time");
        assert!(
            text.starts_with("outside takes the most time: 90 % of the round trips. It is spent outside the server"),
            "{text}"
        );
        assert_eq!(advice(&Breakdown::default(), Sending::OneByOne), None);
    }

    #[test]
    fn advice_on_waiting_says_what_frames_wait_for() {
        for stage in [Stage::Receive, Stage::Queue, Stage::Batch] {
            assert!(advice_for(stage, 1, Sending::OneByOne).contains("it waited for"), "{stage:?}");
            assert!(advice_for(stage, 1, Sending::Together).ends_with("measures one frame at a time."), "{stage:?}");
        }
    }

    #[test]
    fn advice_on_the_device_mentions_the_batch_size() {
        let text = advice_for(Stage::Backward, 4, Sending::Together);
        assert!(text.ends_with("The mean batch size is 4.0, and each frame waits for its whole batch."), "{text}");
        assert!(!advice_for(Stage::Decode, 4, Sending::Together).contains("batch"));
    }

    #[test]
    fn every_stage_of_the_protocol_has_its_own_remedy() {
        let known = (1..).map_while(|value| Stage::try_from(value).ok());
        let remedies: std::collections::HashSet<_> = known.map(|stage| remedy(Part::Stage(stage as i32))).collect();
        assert_eq!(remedies.len(), crate::telemetry::Stage::ALL.len() - 1, "all but `send`");
        assert!(!remedies.contains(remedy(Part::Stage(99))));
    }
}
