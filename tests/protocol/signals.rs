//! The built binary and the signals that a supervisor sends to it.
//!
//! Its frames are slow: eight classes of a real network each, one frame a batch, on one thread.

use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use camlens::proto::v1;
use camlens::proto::v1::dropped::Reason;
use camlens::proto::v1::explain_service_client::ExplainServiceClient;
use camlens::proto::v1::explain_stream_response::Message as Response;
use camlens::proto::v1::stream_policy::Overflow;
use tempfile::TempDir;
use tokio::process::Child;
use tonic::Code;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::conversation::Conversation;
use super::images;
use super::server::{PATIENCE, dial};

/// The default of `max_in_flight`.
const CREDIT: u64 = 16;

struct Sidecar {
    folder: TempDir,
    process: Child,
}

impl Sidecar {
    /// Starts the binary and waits until it is ready.
    async fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut command = Command::new(env!("CARGO_BIN_EXE_camlens"));
        // The environment of the test run must not reach the server.
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CAMLENS_") || name.starts_with("OTEL_"))
        {
            command.env_remove(name);
        }
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/models");
        command
            .args(["serve", "--threads", "1", "--max-batch", "1", "--models"])
            .arg(models)
            .arg("--listen")
            .arg(format!("unix:{}", folder.path().join("camlens.sock").display()))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let process = tokio::process::Command::from(command).kill_on_drop(true).spawn().expect("the program starts");
        let sidecar = Sidecar { folder, process };
        let began = Instant::now();
        while !sidecar.socket().exists() {
            assert!(began.elapsed() < PATIENCE, "it does not listen");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut health = HealthClient::new(sidecar.channel().await);
        let ready = health.check(HealthCheckRequest::default());
        tokio::time::timeout(PATIENCE, ready).await.expect("it gets ready").expect("it serves");
        sidecar
    }

    fn socket(&self) -> std::path::PathBuf {
        self.folder.path().join("camlens.sock")
    }

    async fn channel(&self) -> Channel {
        dial(self.socket(), |endpoint| endpoint).await
    }

    fn signal(&self, name: &str) {
        let process = self.process.id().expect("it runs");
        let sent = Command::new("sh").args(["-c", &format!("kill -{name} {process}")]).status().expect("a shell");
        assert!(sent.success(), "the signal was sent");
    }

    async fn exit(&mut self) -> ExitStatus {
        tokio::time::timeout(PATIENCE, self.process.wait()).await.expect("it ends").expect("its own child")
    }

    /// A blocking stream with `count` slow frames, the first of which has been answered: all have been accepted.
    async fn busy_stream(&self, count: u64) -> (ExplainServiceClient<Channel>, Conversation) {
        let mut client = ExplainServiceClient::new(self.channel().await);
        let target = v1::Target { kind: Some(v1::target::Kind::Top(16)) };
        let map = v1::TensorOutput {
            map: v1::Map::GuidedGradCam as i32,
            element_type: v1::ElementType::Uint8 as i32,
            ..Default::default()
        };
        let options = v1::ExplainOptions { targets: vec![target], tensors: vec![map], ..Default::default() };
        let policy = v1::StreamPolicy { overflow: Overflow::Block as i32, ..Default::default() };
        let request = v1::Open { options: Some(options), policy: Some(policy), ..Default::default() };
        let (mut stream, opened) = Conversation::open(&mut client, request).await;
        assert_eq!(u64::from(opened.max_in_flight), CREDIT);
        for sequence in 1..=count {
            stream.frame(sequence).await;
        }
        assert_eq!(stream.explanation().await.sequence, 1);
        (client, stream)
    }
}

async fn going_away(stream: &mut Conversation) -> v1::GoingAway {
    match stream.next().await {
        Response::GoingAway(going) => going,
        other => panic!("GoingAway comes first, not {other:?}"),
    }
}

async fn drains_at(signal: &str) {
    let mut sidecar = Sidecar::start(&[]).await;
    let (mut client, mut stream) = sidecar.busy_stream(6).await;
    sidecar.signal(signal);
    let going = going_away(&mut stream).await;
    assert_eq!(going.last_accepted_sequence, Some(6));
    assert_eq!(going.drain_timeout.map(|timeout| timeout.seconds), Some(20));

    // A new call is refused while accepted frames are finished.
    let late = v1::ExplainRequest { frame: Some(images::frame(9)), ..Default::default() };
    assert_eq!(client.explain(late).await.expect_err("it is stopping").code(), Code::Unavailable);
    let (_requests, outgoing) = tokio::sync::mpsc::channel(1);
    let refused = client.explain_stream(tokio_stream::wrappers::ReceiverStream::new(outgoing)).await;
    assert_eq!(refused.expect_err("it is stopping").code(), Code::Unavailable);
    // Sent after the server has named the last frame that it accepted: it is not read.
    stream.frame(7).await;

    for sequence in 2..=6 {
        assert_eq!(stream.explanation().await.sequence, sequence);
    }
    assert_eq!(stream.status().await.code(), Code::Ok);
    assert_eq!(sidecar.exit().await.code(), Some(0));
    assert!(!sidecar.socket().exists(), "the socket's file goes with the server");
}

#[tokio::test(flavor = "multi_thread")]
async fn at_sigterm_every_accepted_frame_is_answered_after_the_warning_and_the_exit_code_is_0() {
    drains_at("TERM").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigint_is_the_same_as_sigterm() {
    drains_at("INT").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_the_process_at_once_with_another_exit_code() {
    let mut sidecar = Sidecar::start(&[]).await;
    let (_client, mut stream) = sidecar.busy_stream(CREDIT).await;
    sidecar.signal("TERM");
    going_away(&mut stream).await;
    let asked = Instant::now();
    sidecar.signal("INT");
    let status = sidecar.exit().await;
    assert!(status.code().is_some_and(|code| code != 0), "{status}");
    assert!(asked.elapsed() < Duration::from_secs(4), "it took {:?}", asked.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_finished_within_the_drain_timeout_is_dropped_and_the_process_ends() {
    let mut sidecar = Sidecar::start(&["--drain-timeout", "1"]).await;
    let (_client, mut stream) = sidecar.busy_stream(CREDIT).await;
    let asked = Instant::now();
    sidecar.signal("TERM");
    assert_eq!(going_away(&mut stream).await.drain_timeout.map(|timeout| timeout.seconds), Some(1));
    let mut next = 2;
    loop {
        match stream.next().await {
            Response::Explanation(explanation) => assert_eq!(explanation.sequence, next),
            Response::Dropped(run) => {
                let left = CREDIT + 1 - next;
                assert_eq!((run.first_sequence, run.last_sequence, run.count), (next, CREDIT, left));
                assert_eq!(run.reason(), Reason::Draining);
                break;
            }
            other => panic!("an ending, not {other:?}"),
        }
        next += 1;
    }
    assert_eq!(stream.status().await.code(), Code::Ok);
    assert_eq!(sidecar.exit().await.code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(8), "it took {:?}", asked.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_does_not_hold_up_the_end() {
    let mut sidecar = Sidecar::start(&["--drain-timeout", "1"]).await;
    let (_client, stream) = sidecar.busy_stream(CREDIT).await;
    let asked = Instant::now();
    sidecar.signal("TERM");
    let status = sidecar.exit().await;
    drop(stream);
    assert_eq!(status.code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(10), "it took {:?}", asked.elapsed());
}
