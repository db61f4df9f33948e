//! The one way into the engine, for every face.
//!
//! A face converts a frame of its protocol to a [`ReadFrame`]; no generated type goes any further. A frame that belongs
//! to no stream is explained by [`Service::explain_frame`]. A face with streams decides itself when it accepts a frame:
//! it opens the frame's [`FrameAccount`], gets an [`Admission`] from the stream's [`Lane`], and calls
//! [`Service::submit`].

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;
use tonic::Code;

use crate::explain::{Expected, Method, Target};
use crate::frame::Payload;
use crate::schedule::{
    Admission, Answer, Engine, Handle, Job, JobError, Lane, MapKind, Onlooker, Outcome, Outputs, Reply, Served,
};
use crate::telemetry::Stage;

use super::frame_account::{FrameAccount, FrameHeader};
use super::refusal::Refusal;
use super::service::Service;
use super::transport::deadline;

/// What to compute for a frame, checked against the model and the server's limits.
#[derive(Debug, Clone)]
pub(super) struct CheckedOptions {
    pub(super) method: Method,
    pub(super) targets: Vec<Target>,
    pub(super) outputs: Outputs,
    /// Damaged pictures are explained as far as they can be read.
    pub(super) allow_damaged_frames: bool,
}

/// A frame as it was read.
pub(super) struct ReadFrame {
    pub(super) header: FrameHeader,
    /// What to explain, or what is wrong with it.
    pub(super) content: Result<FrameContent, Refusal>,
}

/// What a frame holds, after the checks that need no decoding.
pub(super) struct FrameContent {
    options: Arc<CheckedOptions>,
    payload: Payload,
    expires_at: Option<Instant>,
    priority: u8,
    expected: Option<Expected>,
    onlooker: Option<Onlooker>,
    bytes: u64,
}

impl FrameContent {
    /// Checks the payload's header and the options against each other and `model`.
    ///
    /// # Errors
    /// What would otherwise fail when the frame is decoded or rendered.
    pub(super) fn new(
        model: &Served,
        options: Arc<CheckedOptions>,
        payload: Payload,
        expires_at: Option<Instant>,
    ) -> Result<Self, Refusal> {
        let payload = if options.allow_damaged_frames { payload.allowing_damage() } else { payload };
        let bytes = model.check_header(&payload, &options.outputs).map_err(|error| Refusal::from(&error))?;
        Ok(FrameContent { options, payload, expires_at, priority: 0, expected: None, onlooker: None, bytes })
    }

    /// With a priority of 0 to [`crate::schedule::MAX_PRIORITY`] instead of 0.
    pub(super) fn with_priority(self, priority: u8) -> Self {
        FrameContent { priority, ..self }
    }

    /// With what another program predicted of the frame.
    pub(super) fn expecting(self, expected: Option<Expected>) -> Self {
        FrameContent { expected, ..self }
    }

    /// For somebody who looks at the stream now.
    pub(super) fn watched_by(self, onlooker: Option<Onlooker>) -> Self {
        FrameContent { onlooker, ..self }
    }

    /// Memory that the frame takes until it is explained: its payload, its pixels and the model's input.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn expires_at(&self) -> Option<Instant> {
        self.expires_at
    }

    pub(super) fn options(&self) -> &Arc<CheckedOptions> {
        &self.options
    }
}

/// A frame that was explained.
pub(super) struct Explained {
    pub(super) answer: Answer,
    pub(super) options: Arc<CheckedOptions>,
    /// Keep it until the answer has been sent: dropping it closes it.
    pub(super) account: FrameAccount,
}

/// A frame in the engine. Dropping it cancels the frame, unless it has ended.
pub(super) struct SubmittedFrame {
    engine: Engine,
    handle: Handle,
}

impl SubmittedFrame {
    /// Ends the frame unless it is on the device. Returns whether it did.
    pub(super) fn withdraw(&self) -> bool {
        self.engine.withdraw(&self.handle)
    }

    /// Ends the frame wherever it is. Returns whether it did.
    pub(super) fn cancel(&self) -> bool {
        self.engine.cancel(&self.handle)
    }
}

impl Drop for SubmittedFrame {
    fn drop(&mut self) {
        self.cancel();
    }
}

impl Service {
    /// Puts an accepted frame into the engine. `reply` gets its outcome, unless the returned guard ends the frame
    /// before.
    pub(super) fn submit(
        &self,
        lane: &Lane,
        content: FrameContent,
        admission: Admission,
        account: &FrameAccount,
        reply: Reply,
    ) -> SubmittedFrame {
        let FrameContent { options, payload, expires_at, priority, expected, onlooker, bytes: _ } = content;
        let mut method = options.method.clone();
        // Whoever looks at the product also sees its factor, which is computed in any case.
        if onlooker.is_some() && method.maps.contains(MapKind::GuidedGradCam) {
            method.maps = method.maps.iter().chain([MapKind::GradCam]).collect();
        }
        let handle = self.engine.submit(Job {
            lane: lane.clone(),
            priority,
            expires_at,
            method,
            targets: options.targets.clone(),
            outputs: Outputs { expected, ..options.outputs.clone() },
            payload,
            progress: account.progress().clone(),
            admission,
            onlooker,
            reply,
        });
        SubmittedFrame { engine: self.engine.clone(), handle }
    }

    /// Explains one frame that belongs to no stream. It is admitted now or refused, and cancelled at `deadline`.
    ///
    /// # Errors
    /// The frame's own refusal, a limit that is reached, the deadline, or why the engine did not explain it.
    pub(super) async fn explain_frame(
        &self,
        model: &Arc<Served>,
        frame: ReadFrame,
        deadline: Option<Instant>,
    ) -> Result<Explained, Refusal> {
        let ReadFrame { header, content } = frame;
        let source = self.telemetry.call_source((&model.metadata.name, model.metadata.version));
        let mut account = FrameAccount::open(&self.telemetry, self.engine.clock(), &source, "", &header);
        let answered = async {
            let content = content?;
            let options = Arc::clone(&content.options);
            let answer = self.answer(model, content, &account, deadline).await?;
            Ok((answer, options))
        };
        match answered.await {
            Ok((answer, options)) => {
                account.answered(&answer);
                account.mark(Stage::Deliver);
                Ok(Explained { answer, options, account })
            }
            Err(refusal) => {
                account.failed(&refusal);
                Err(refusal)
            }
        }
    }

    async fn answer(
        &self,
        model: &Arc<Served>,
        content: FrameContent,
        account: &FrameAccount,
        deadline: Option<Instant>,
    ) -> Result<Answer, Refusal> {
        let lane = self.engine.lane(model);
        let admission = lane.try_admit(content.bytes)?;
        let (reply, outcome) = oneshot::channel::<Outcome>();
        // The receiver is gone when the client is.
        let reply = Reply::new(move |outcome| drop(reply.send(outcome)));
        // Cancels the frame at the deadline.
        let _guard = self.submit(&lane, content, admission, account, reply);
        tokio::select! {
            // An answer that comes after the deadline is late, whichever of the two is seen first.
            biased;
            () = deadline::passed(deadline) => Err(Refusal::new(Code::DeadlineExceeded, "", deadline::EXCEEDED)),
            outcome = outcome => outcome.unwrap_or(Err(JobError::Stopped)).map_err(|error| Refusal::from(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{Config, LimitsConfig, ModelsConfig};
    use crate::explain::Mode;
    use crate::schedule::MAX_PRIORITY;
    use crate::server::load::{Loaded, load};
    use crate::server::shutdown::Shutdown;
    use crate::server::transport::calls::TraceHeaders;
    use crate::telemetry::Telemetry;

    fn service(change: impl FnOnce(&mut Config)) -> Service {
        let models = ModelsConfig { repository: "builtin:identity".into(), ..ModelsConfig::default() };
        let limits = LimitsConfig::default().within(1 << 30);
        let mut config = Config { models, limits, ..Config::default() };
        change(&mut config);
        let loaded = load(&config).expect("the built-in model");
        let Loaded { engine, devices, .. } = loaded;
        Service::new(&config, (engine, devices), None, Telemetry::disabled(), Shutdown::new())
    }

    /// A face whose protocol is a grey picture and the number of classes wanted.
    struct GreyFace(Service);

    struct GreyRequest {
        pixels: Vec<u8>,
        width: u32,
        top: u32,
    }

    impl GreyFace {
        fn model(&self) -> Arc<Served> {
            Arc::clone(&self.0.engine.served()[0])
        }

        fn read(&self, request: GreyRequest) -> ReadFrame {
            let GreyRequest { pixels, width, top } = request;
            let header = FrameHeader {
                sequence: 7,
                trace: TraceHeaders::default(),
                payload_bytes: pixels.len() as u64,
                accepted_at: self.0.engine.clock().now(),
                captured_at: None,
            };
            let options = CheckedOptions {
                method: Method { mode: Mode::Default, ..Method::default() },
                targets: vec![Target::Top(top)],
                outputs: Outputs { top_predictions: top as usize, ..Outputs::default() },
                allow_damaged_frames: false,
            };
            let height = pixels.len() as u32 / width;
            let payload = Payload::Raw {
                data: pixels.into(),
                width,
                height,
                pixel_format: crate::frame::PixelFormat::Gray8,
                stride_bytes: None,
            };
            ReadFrame { header, content: FrameContent::new(&self.model(), options.into(), payload, None) }
        }

        async fn call(&self, request: GreyRequest, deadline: Option<Instant>) -> Result<usize, Refusal> {
            let explained = self.0.explain_frame(&self.model(), self.read(request), deadline).await?;
            assert_eq!(explained.account.trace_id().len(), 32);
            Ok(explained.answer.predictions.len())
        }
    }

    fn grey(side: u32, top: u32) -> GreyRequest {
        GreyRequest { pixels: vec![128; (side * side) as usize], width: side, top }
    }

    #[tokio::test]
    async fn a_face_without_generated_types_gets_answers_and_refusals() {
        let face = GreyFace(service(|config| config.limits.max_frame_pixels = 300 * 300));
        assert_eq!(face.call(grey(256, 3), None).await, Ok(3));
        let large = face.call(grey(400, 3), None).await.expect_err("too many pixels");
        assert_eq!(large.code, Code::ResourceExhausted);
        let late = face.call(grey(256, 3), Some(Instant::now() - Duration::from_secs(1))).await;
        assert_eq!(late.map_err(|refusal| refusal.code), Err(Code::DeadlineExceeded));
        assert_eq!(face.call(grey(256, 1), None).await, Ok(1), "a frame that is given up harms no other");
        face.0.engine.stop();
    }

    #[tokio::test]
    async fn a_face_with_streams_submits_what_it_has_accepted_and_gets_each_outcome_once() {
        let face = GreyFace(service(|_| {}));
        let Service { engine, telemetry, .. } = &face.0;
        let lane = engine.lane(&face.model());
        let source = telemetry.call_source(("identity", 1));
        let (outcomes, mut posted) = tokio::sync::mpsc::unbounded_channel();
        let mut frames = Vec::new();
        for sequence in 0..3 {
            let ReadFrame { header, content } = face.read(grey(256, 1));
            let content = content.expect("a sound frame").with_priority(MAX_PRIORITY);
            let account = FrameAccount::open(telemetry, engine.clock(), &source, "LATEST", &header);
            let admission = lane.try_admit(content.bytes()).expect("room");
            let outcomes = outcomes.clone();
            let reply =
                Reply::new(move |outcome| outcomes.send((sequence, outcome.is_ok())).expect("the test listens"));
            frames.push((face.0.submit(&lane, content, admission, &account, reply), account));
        }
        let mut ended = Vec::new();
        while ended.len() < 3 {
            let next = tokio::time::timeout(Duration::from_secs(60), posted.recv()).await;
            ended.extend(next.expect("no frame is lost"));
        }
        ended.sort_unstable();
        assert_eq!(ended, [(0, true), (1, true), (2, true)]);
        assert!(frames.iter().all(|(frame, _)| !frame.cancel()), "they have ended");
        engine.stop();
    }
}
