//! Which part takes the most time, and what one may do about it.

use super::breakdown::{Breakdown, Part};
use crate::proto::v1::Stage;

/// How the frames were sent, as far as it explains what they waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sending {
    /// Each after the one before was answered: none waits for another of its own stream.
    OneByOne,
    /// Several on their way at once, or at a fixed rate.
    Together,
}

/// One sentence for people, and perhaps another that says how to read it; none when there was no time at all.
pub fn advice(breakdown: &Breakdown, sending: Sending) -> Option<String> {
    let (part, share) = breakdown.largest()?;
    let what = what_to_do(part);
    let mut text = format!("{} takes the most: {:.0} % of the time. {what}", part.name(), share * 100.0);
    if let Some(more) = reading(part, sending, breakdown.mean_batch_size()) {
        text = format!("{text} {more}");
    }
    Some(text)
}

/// What the part is, and what makes it shorter.
pub fn what_to_do(part: Part) -> &'static str {
    let Part::Stage(stage) = part else {
        return "The time goes outside the server: on the way, in the client, or in the sending of the answer. Smaller \
                frames and fewer or smaller maps need less of it; on one machine, so does a Unix socket.";
    };
    match Stage::try_from(stage) {
        Ok(Stage::Receive) => {
            "Frames are held back before they are queued, by the stream's credit or the server's limits: send fewer, or \
             let newer frames replace older ones (--overflow latest)."
        }
        Ok(Stage::Queue) => {
            "More frames come than the device takes: send fewer, let newer frames replace older ones (--overflow latest), \
             or give the ones that matter a higher --priority."
        }
        Ok(Stage::Decode) => "Send smaller pictures, or pixels instead of files (--raw shows what that gives).",
        Ok(Stage::Preprocess) => "Send frames that are nearer to the size of the model's input, or its input itself.",
        Ok(Stage::Batch) => {
            "The frame is ready and the device is not: it runs the batch before, or limits.max_batch_delay_ms lets it wait \
             for more frames."
        }
        Ok(Stage::CopyIn) => "The model's input goes to the device: a smaller input has less to copy.",
        Ok(Stage::Forward) => "That is the model itself: a smaller one, a smaller input or more cores make it faster.",
        Ok(Stage::Backward) => {
            "That is the way back from each target: ask for fewer targets; with predictions alone (--predictions-only) \
             there is none."
        }
        Ok(Stage::Fuse) => "Maps are made for each target: ask for fewer targets or maps.",
        Ok(Stage::CopyOut) => "Maps leave the device: ask for fewer targets or maps.",
        Ok(Stage::Render) => {
            "Answers are written: ask for fewer pictures and maps, JPEG instead of PNG, float16 or uint8 instead of float32."
        }
        Ok(Stage::Deliver) => {
            "Answers are ready and wait, for those of earlier frames of their stream or for a client that reads slowly: \
             read faster, or open the stream unordered."
        }
        Ok(Stage::Unspecified) | Err(_) => "This camlens does not know that stage; a newer one may.",
    }
}

/// What must be known to read the number rightly.
fn reading(part: Part, sending: Sending, mean_batch_size: f64) -> Option<String> {
    let Part::Stage(stage) = part else { return None };
    match Stage::try_from(stage).ok()? {
        Stage::Batch if sending == Sending::OneByOne => {
            Some("These frames were sent one by one: they wait for others' batches, or for that delay.".to_owned())
        }
        Stage::Receive | Stage::Queue | Stage::Batch => Some(match sending {
            Sending::OneByOne => {
                "These frames were sent one by one: they wait for frames of others, whose senders this is for."
                    .to_owned()
            }
            Sending::Together => {
                "These frames may wait for each other: --in-flight 1 shows what one alone takes.".to_owned()
            }
        }),
        Stage::CopyIn | Stage::Forward | Stage::Backward | Stage::Fuse | Stage::CopyOut if mean_batch_size >= 1.05 => {
            Some(format!("{mean_batch_size:.1} frames ran together on average, and each waits for its whole batch."))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::frame;
    use super::*;

    fn told(stage: Stage, batch_size: u32, sending: Sending) -> String {
        let mut frame = frame(1, 10_000, &[(stage, 8_000), (Stage::Unspecified, 1_000)]);
        frame.batch_size = batch_size;
        advice(&Breakdown::of([&frame]), sending).expect("some time")
    }

    #[test]
    fn the_part_that_takes_the_most_is_named_with_its_share_and_a_way_out() {
        assert_eq!(
            told(Stage::Forward, 1, Sending::OneByOne),
            "forward takes the most: 80 % of the time. That is the model itself: a smaller one, a smaller input or more cores \
             make it faster."
        );
        let away = frame(1, 10_000, &[(Stage::Forward, 1_000)]);
        let text = advice(&Breakdown::of([&away]), Sending::OneByOne).expect("some time");
        assert!(
            text.starts_with("outside takes the most: 90 % of the time. The time goes outside the server"),
            "{text}"
        );
        assert_eq!(advice(&Breakdown::default(), Sending::OneByOne), None);
    }

    #[test]
    fn waiting_says_for_whom() {
        for stage in [Stage::Receive, Stage::Queue, Stage::Batch] {
            assert!(told(stage, 1, Sending::OneByOne).contains("they wait for"), "{stage:?}");
            assert!(told(stage, 1, Sending::Together).ends_with("shows what one alone takes."), "{stage:?}");
        }
    }

    #[test]
    fn a_batch_is_remembered_where_its_time_is_everybodys() {
        let text = told(Stage::Backward, 4, Sending::Together);
        assert!(text.ends_with("4.0 frames ran together on average, and each waits for its whole batch."), "{text}");
        assert!(!told(Stage::Decode, 4, Sending::Together).contains("ran together"));
    }

    #[test]
    fn every_stage_that_a_server_may_name_has_its_own_advice() {
        let known = (1..).map_while(|value| Stage::try_from(value).ok());
        let advice: std::collections::HashSet<_> = known.map(|stage| what_to_do(Part::Stage(stage as i32))).collect();
        assert_eq!(advice.len(), crate::telemetry::Stage::ALL.len() - 1, "all but `send`");
        assert!(!advice.contains(what_to_do(Part::Stage(99))));
    }
}
