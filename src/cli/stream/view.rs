//! The live page of `camlens stream`.

use std::net::SocketAddr;
use std::time::Instant;

use tokio::net::lookup_host;

use super::sink::{End, Sink};
use crate::cli::failure::Failure;
use crate::cli::scene::SceneMaps;
use crate::client::{Event, names};
use crate::http::{Bounds, Port, Spoken};
use crate::proto::v1;
use crate::proto::v1::explain_stream_response::Message as Response;
use crate::render::Scene;
use crate::view::{self, Access, Ended, Hub, Limits, Stream, StreamFacts};

const LIMITS: Limits = Limits { max_viewers: 32, max_rate_hz: 10.0, max_side: 640 };
/// Connections of the page: viewers, and the files of the page.
const BOUNDS: Bounds = Bounds { connections: 64, per_peer: 64 };

/// Serves the page on a port of this machine until the command ends. Returns its streams and its address.
///
/// # Errors
/// An address beyond this machine, or one that cannot be had.
pub async fn serve(address: &str) -> Result<(Hub, SocketAddr), Failure> {
    let cannot = |error| Failure::failed(format!("cannot show the live page at {address}: {error}"));
    let mut resolved = lookup_host(address).await.map_err(cannot)?;
    if !resolved.all(|one| one.ip().to_canonical().is_loopback()) {
        return Err(Failure::usage(format!("--view {address} would show the frames beyond this machine"))
            .hint("give 127.0.0.1:PORT, and let an SSH tunnel reach it"));
    }
    let port = Port::bind(address, "live page", Spoken::Http1, BOUNDS).await.map_err(cannot)?;
    let actual = port.address().map_err(cannot)?;
    let hub = Hub::new(LIMITS);
    tokio::spawn(port.serve(view::routes(hub.clone(), Access::of_this_machine())));
    Ok((hub, actual))
}

/// Shows a stream's frames on the page.
pub struct ViewSink {
    hub: Hub,
    name: String,
    maps: Option<SceneMaps>,
    is_live: bool,
    /// Set when the server has opened the stream.
    stream: Option<Stream>,
}

impl ViewSink {
    /// `name` is the source's; the server tells the rest.
    pub fn new(hub: Hub, name: String, maps: Option<SceneMaps>, is_live: bool) -> Self {
        ViewSink { hub, name, maps, is_live, stream: None }
    }

    fn count(&self, ended: Ended<'_>, frames: u64) {
        if let Some(stream) = &self.stream {
            stream.count(ended, frames);
        }
    }
}

impl Sink for ViewSink {
    fn take(&mut self, event: &Event<'_>) -> Result<(), Failure> {
        match event {
            // A stream that is opened again goes on with its counts.
            Event::Message(Response::Opened(opened), _) if self.stream.is_none() => {
                let model = opened.model.clone().unwrap_or_default();
                self.stream = Some(self.hub.open(StreamFacts {
                    id: opened.stream_id.clone(),
                    name: self.name.clone(),
                    model: format!("{} {}", model.name, model.version),
                    policy: opened.effective_policy.as_ref().map_or(String::new(), in_words),
                }));
            }
            Event::Message(Response::Explanation(answer), answered) => {
                self.count(Ended::Answered, 1);
                let (Some(stream), Some(answered), Some(maps)) = (&self.stream, answered, self.maps) else {
                    return Ok(());
                };
                if stream.wants(Instant::now())
                    && let Some(scene) = maps.scene(answer, &answered.frame.payload)
                {
                    let glass_to_answer = self.is_live.then_some(answered.glass_to_answer);
                    stream.show(Scene { glass_to_answer, ..scene });
                }
            }
            Event::Message(Response::Dropped(run), _) => {
                self.count(Ended::Dropped(&names::drop_reason(run.reason)), run.count);
            }
            Event::Message(Response::FrameError(_), _) => self.count(Ended::Failed, 1),
            Event::Message(..) | Event::Disconnected { .. } => {}
        }
        Ok(())
    }

    fn finish(self: Box<Self>, _: &End<'_>) -> Result<Option<String>, Failure> {
        Ok(None)
    }
}

fn in_words(policy: &v1::StreamPolicy) -> String {
    use v1::stream_policy::Overflow;
    view::Policy {
        overflow: match policy.overflow() {
            Overflow::Block => "block",
            Overflow::Reject => "reject",
            Overflow::Latest | Overflow::Unspecified => "latest",
        },
        depth: policy.depth,
        time_to_live: policy.time_to_live.and_then(|time| time.try_into().ok()),
        max_rate_hz: policy.max_rate_hz,
        priority: policy.priority,
        unordered: policy.unordered,
    }
    .to_string()
}
