//! From a frame's end to its message.

use std::time::SystemTime;

use prost::Message as _;
use tonic::Code;

use crate::proto::v1;
use crate::proto::v1::explain_stream_response::Message as Response;
use crate::schedule::{JobError, Outcome};
use crate::stream::{DropReason, DroppedRun, Message};
use crate::telemetry::Stage;

use super::frames::{PendingFrame, UnsentAnswer};
use super::opened::OpenStream;
use crate::server::camlens::response;
use crate::server::refusal::Refusal;
use crate::server::viewing::{self, SeenFrame};
use crate::view::Ended;

/// Upper bound on the bytes that the delivery's timing adds to an answer after its size was measured.
const LATE_BYTES: usize = 64;

impl OpenStream {
    pub(super) fn refused(&mut self, sequence: u64, refusal: Refusal) {
        let Some(PendingFrame { mut account, echo, .. }) = self.pending.remove(&sequence) else { return };
        account.failed(&refusal);
        let error = response::frame_error(refusal, sequence, echo.tag);
        let bytes = error.encoded_len();
        let answer = UnsentAnswer { message: Response::FrameError(error), account };
        self.session.answered(sequence, Box::new(answer), bytes);
    }

    pub(super) fn dropped(&mut self, sequence: u64, reason: DropReason) {
        if let Some(mut frame) = self.pending.remove(&sequence) {
            // A client that has gone has cancelled all of its frames.
            frame.account.dropped(if self.account.has_gone() { DropReason::Cancelled } else { reason });
        }
        self.session.dropped(sequence, reason);
    }

    pub(super) fn outcome(&mut self, sequence: u64, outcome: Outcome) {
        let mut answer = match outcome {
            Ok(answer) => answer,
            Err(JobError::Expired) => return self.dropped(sequence, DropReason::Expired),
            Err(error) => return self.refused(sequence, Refusal::from(&error)),
        };
        let Some(mut frame) = self.pending.remove(&sequence) else { return };
        frame.account.answered(&answer);
        if let Some(view) = &self.view {
            let captured = frame.echo.capture_time.and_then(|time| SystemTime::try_from(time).ok());
            let seen = SeenFrame { sequence, tag: &frame.echo.tag, captured };
            if let Some(scene) = viewing::scene(&mut answer, &seen, &self.model.metadata) {
                view.show(scene);
            }
        }
        let trace_id = frame.account.trace_id();
        let explanation = response::explanation(answer, frame.echo.clone(), trace_id, &frame.options, &self.model);
        let bytes = explanation.encoded_len() + LATE_BYTES;
        let limit = self.policy.max_response_bytes;
        if limit != 0 && bytes as u64 > limit {
            let message = format!(
                "the answer has {bytes} bytes, and policy.max_response_bytes is {limit}: ask for fewer or smaller \
                 outputs"
            );
            self.pending.insert(sequence, frame);
            return self.refused(sequence, Refusal::new(Code::ResourceExhausted, "options", message));
        }
        let message = Response::Explanation(Box::new(explanation));
        let answer = UnsentAnswer { message, account: frame.account };
        self.session.answered(sequence, Box::new(answer), bytes);
    }

    pub(super) fn next_message(&mut self) -> Option<Response> {
        let message = self.session.next_message()?;
        self.count(&message);
        Some(match message {
            Message::Answer { answer, .. } => {
                let UnsentAnswer { mut message, account } = *answer;
                account.mark(Stage::Deliver);
                if let Response::Explanation(explanation) = &mut message {
                    explanation.timings = response::timings(&account.timings());
                }
                self.sending = Some(account);
                message
            }
            Message::Dropped(run) => Response::Dropped(dropped(run)),
            Message::GoingAway { last_accepted, drain_timeout } => Response::GoingAway(v1::GoingAway {
                last_accepted_sequence: last_accepted,
                drain_timeout: drain_timeout.try_into().ok(),
                reason: self.going_away_because.to_owned(),
            }),
        })
    }

    /// Counts the frames that a message ends for the live page.
    fn count(&self, message: &Message<Box<UnsentAnswer>>) {
        let Some(view) = &self.view else { return };
        match message {
            Message::Answer { answer, .. } if matches!(answer.message, Response::FrameError(_)) => {
                view.count(Ended::Failed, 1);
            }
            Message::Answer { .. } => view.count(Ended::Answered, 1),
            Message::Dropped(run) => view.count(Ended::Dropped(run.reason.name()), run.count),
            Message::GoingAway { .. } => {}
        }
    }

    /// The transport has taken the previous message.
    pub(super) fn finish_sending(&mut self) {
        if let Some(account) = self.sending.take() {
            account.mark(Stage::Send);
        }
    }
}

fn dropped(run: DroppedRun) -> v1::Dropped {
    use v1::dropped::Reason;
    let reason = match run.reason {
        DropReason::Replaced => Reason::Replaced,
        DropReason::Expired => Reason::Expired,
        DropReason::Cancelled => Reason::Cancelled,
        DropReason::SlowReader => Reason::SlowReader,
        DropReason::RateLimited => Reason::RateLimited,
        DropReason::Draining => Reason::Draining,
        DropReason::StreamEnded => Reason::StreamEnded,
    };
    v1::Dropped { first_sequence: run.first, last_sequence: run.last, count: run.count, reason: reason as i32 }
}
