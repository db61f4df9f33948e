//! One stream of frames: the conversation.

use std::collections::{BTreeMap, BTreeSet};
use std::{error::Error, fs, path::Path, path::PathBuf};

use camlens::client::{Link, explain_client};
use camlens::proto::v1::explain_stream_request::Message as Request;
use camlens::proto::v1::explain_stream_response::Message as Response;
use camlens::proto::v1::{self, frame::Payload};
use tokio_stream::wrappers::ReceiverStream;

/// Where each frame is. A frame's sequence is its file's index + 1.
#[derive(Default)]
pub struct Frames {
    pub files: Vec<PathBuf>,
    /// Frames to send.
    pub waiting: BTreeSet<u64>,
    /// Frames in flight: sent on this connection and not ended.
    sent: BTreeSet<u64>,
    pub counts: BTreeMap<&'static str, usize>,
}

impl Frames {
    /// Ends up to `count` frames in flight, from `first` to `last`.
    fn end(&mut self, how: &'static str, first: u64, last: u64, count: u64) {
        let ended: Vec<u64> = self.sent.range(first..=last).take(count as usize).copied().collect();
        *self.counts.entry(how).or_default() += ended.len();
        self.sent.retain(|sequence| !ended.contains(sequence));
    }

    /// Holds one stream, from Open to its status: sends within the credit and reads how each frame ends.
    pub async fn converse(&mut self, link: Link, open: v1::Open, out: &Path) -> Result<(), Box<dyn Error>> {
        let (requests, outgoing) = tokio::sync::mpsc::channel(64);
        let message = |message| v1::ExplainStreamRequest { message: Some(message) };
        requests.send(message(Request::Open(open))).await?;
        let (mut credit, mut requests) = (0, Some(requests));
        let mut responses = explain_client(link).explain_stream(ReceiverStream::new(outgoing)).await?.into_inner();
        let mut accepted = u64::MAX; // without GoingAway any frame that was sent may have been accepted
        let status = loop {
            match responses.message().await {
                Ok(None) => break Ok(()),
                Err(status) => break Err(status.into()),
                Ok(Some(response)) => match response.message {
                    Some(Response::Opened(opened)) => {
                        credit = opened.max_in_flight as usize;
                        *self.counts.entry("connections").or_default() += 1;
                    }
                    Some(Response::Explanation(answer)) => {
                        let name = self.files[answer.sequence as usize - 1].file_name().unwrap_or_default().display();
                        fs::write(out.join(format!("{name}.png")), &answer.targets[0].pictures[0].data)?;
                        self.end("explained", answer.sequence, answer.sequence, 1);
                    }
                    Some(Response::Dropped(run)) => {
                        self.end("dropped", run.first_sequence, run.last_sequence, run.count);
                    }
                    Some(Response::FrameError(error)) => self.end("failed", error.sequence, error.sequence, 1),
                    Some(Response::GoingAway(away)) => {
                        (credit, accepted) = (0, away.last_accepted_sequence.unwrap_or(0));
                    }
                    None => {}
                },
            }
            while self.sent.len() < credit
                && let Some(sequence) = self.waiting.pop_first()
            {
                let data = fs::read(&self.files[sequence as usize - 1])?.into();
                let payload = Some(Payload::Encoded(v1::EncodedImage { data, ..Default::default() }));
                let frame = v1::Frame { sequence, payload, ..Default::default() };
                self.sent.insert(sequence);
                if let Some(requests) = &requests {
                    let _ = requests.send(message(Request::Frame(frame))).await;
                }
            }
            requests = requests.filter(|_| !self.sent.is_empty() || !self.waiting.is_empty());
        };
        self.waiting.extend(self.sent.split_off(&accepted.saturating_add(1)));
        self.end("lost", 0, u64::MAX, u64::MAX); // or send them again, where explaining one twice does no harm
        status
    }
}
