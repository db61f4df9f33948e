//! From a frame's end to the message that tells it.

use prost::Message as _;
use tonic::Code;

use crate::proto::v1;
use crate::proto::v1::explain_stream_response::Message as Response;
use crate::schedule::{JobError, Outcome};
use crate::stream::{DropReason, DroppedRun, Message};
use crate::telemetry::Stage;

use super::opened::{InWork, OpenStream};
use crate::server::camlens::response;
use crate::server::frame_account::FrameAccount;
use crate::server::refusal::Refusal;

/// What the delivery's timing adds to an answer after it was measured, with room to spare.
const LATE_BYTES: usize = 64;

/// An answer on its way, with the account that closes when it is sent.
pub(in crate::server) struct Told {
    pub(in crate::server) message: Response,
    pub(in crate::server) account: FrameAccount,
}

impl OpenStream {
    pub(in crate::server) fn refused(&mut self, sequence: u64, refusal: Refusal) {
        let Some(InWork { mut account, echo, .. }) = self.in_work.remove(&sequence) else { return };
        account.failed(&refusal);
        let error = refusal.into_frame_error(sequence, echo.tag);
        let bytes = error.encoded_len();
        let told = Told { message: Response::FrameError(error), account };
        self.session.answered(sequence, Box::new(told), bytes);
    }

    pub(in crate::server) fn dropped(&mut self, sequence: u64, reason: DropReason) {
        if let Some(mut frame) = self.in_work.remove(&sequence) {
            // Of a stream whose client has gone, every frame was taken back.
            frame.account.dropped(if self.account.has_gone() { DropReason::Cancelled } else { reason });
        }
        self.session.dropped(sequence, reason);
    }

    pub(in crate::server) fn outcome(&mut self, sequence: u64, outcome: Outcome) {
        let answer = match outcome {
            Ok(answer) => answer,
            Err(JobError::Expired) => return self.dropped(sequence, DropReason::Expired),
            Err(error) => return self.refused(sequence, Refusal::from(&error)),
        };
        let Some(mut frame) = self.in_work.remove(&sequence) else { return };
        frame.account.answered(&answer);
        let explanation = response::explanation(answer, frame.echo.clone(), &frame.asked, &self.model);
        let bytes = explanation.encoded_len() + LATE_BYTES;
        let limit = self.policy.max_response_bytes;
        if limit != 0 && bytes as u64 > limit {
            let message = format!(
                "the answer has {bytes} bytes, and policy.max_response_bytes is {limit}: ask for fewer or smaller outputs"
            );
            self.in_work.insert(sequence, frame);
            return self.refused(sequence, Refusal::new(Code::ResourceExhausted, "options", message));
        }
        let told = Told { message: Response::Explanation(Box::new(explanation)), account: frame.account };
        self.session.answered(sequence, Box::new(told), bytes);
    }

    pub(in crate::server) fn next_message(&mut self) -> Option<Response> {
        Some(match self.session.next_message()? {
            Message::Answer { answer, .. } => {
                let Told { mut message, account } = *answer;
                account.mark(Stage::Deliver);
                if let Response::Explanation(explanation) = &mut message {
                    explanation.timings = response::timings(&account.timings());
                }
                self.sending = Some(account);
                message
            }
            Message::Dropped(run) => Response::Dropped(told(run)),
            Message::GoingAway { last_accepted, drain_timeout } => Response::GoingAway(v1::GoingAway {
                last_accepted_sequence: last_accepted,
                drain_timeout: drain_timeout.try_into().ok(),
                reason: self.going_away_because.to_owned(),
            }),
        })
    }

    /// The transport has taken the message before.
    pub(in crate::server) fn finish_sending(&mut self) {
        if let Some(account) = self.sending.take() {
            account.mark(Stage::Send);
        }
    }
}

fn told(run: DroppedRun) -> v1::Dropped {
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
