//! The live page: who may open it, what it shows, and that it costs the streams nothing that is not bounded.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use camlens::proto::v1;
use camlens::proto::v1::explain_stream_request::Message;
use camlens::proto::v1::stream_policy::Overflow;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use super::conversation::{Conversation, open};
use super::images;
use super::server::{LABELS, PATIENCE, SIDE, TestServer};

async fn start(change: impl FnOnce(&mut camlens::config::ViewConfig)) -> TestServer {
    TestServer::start_with(|config| {
        config.view.listen = Some("127.0.0.1:0".to_owned());
        config.view.max_rate_hz = 60.0;
        change(&mut config.view);
    })
    .await
}

/// A page that was asked for: its head, and its body as it comes.
struct Asked {
    status: StatusCode,
    headers: hyper::HeaderMap,
    body: Incoming,
    /// The page's connection, which ends with this.
    connection: tokio::task::JoinHandle<()>,
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

async fn ask_with(address: SocketAddr, path: &str, headers: &[(header::HeaderName, &str)]) -> Asked {
    let stream = TcpStream::connect(address).await.expect("it listens");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("it speaks HTTP");
    let connection = tokio::spawn(async move { drop(connection.await) });
    let mut request = Request::get(path);
    if !headers.iter().any(|(name, _)| *name == header::HOST) {
        request = request.header(header::HOST, address.to_string());
    }
    for (name, value) in headers {
        request = request.header(name, *value);
    }
    let response: Response<Incoming> =
        sender.send_request(request.body(Empty::<Bytes>::new()).expect("a request")).await.expect("an answer");
    let (head, body) = response.into_parts();
    Asked { status: head.status, headers: head.headers, body, connection }
}

async fn ask(server: &TestServer, path: &str) -> Asked {
    ask_with(server.view.expect("a live page"), path, &[]).await
}

impl Asked {
    async fn text(mut self) -> String {
        let mut all = BytesMut::new();
        while let Some(frame) = self.body.frame().await {
            all.extend_from_slice(&frame.expect("a body").into_data().unwrap_or_default());
        }
        String::from_utf8(all.to_vec()).expect("UTF-8")
    }
}

/// The messages of `/live`.
struct Messages {
    asked: Asked,
    held: BytesMut,
}

impl Messages {
    async fn of(server: &TestServer, path: &str) -> Messages {
        let asked = ask(server, path).await;
        assert_eq!(asked.status, StatusCode::OK);
        Messages { asked, held: BytesMut::new() }
    }

    /// A message that has come as a whole.
    fn whole(&mut self) -> Option<(Value, Vec<Bytes>)> {
        let length = u32::from_le_bytes(self.held.get(..4)?.try_into().expect("four bytes")) as usize;
        let document: Value = serde_json::from_slice(self.held.get(4..4 + length)?).expect("a document");
        let lengths = document["parts"].as_array().expect("lengths").iter();
        let lengths: Vec<usize> = lengths.map(|part| part.as_u64().expect("a length") as usize).collect();
        self.held.get(..4 + length + lengths.iter().sum::<usize>())?;
        let _ = self.held.split_to(4 + length);
        Some((document, lengths.into_iter().map(|part| self.held.split_to(part).freeze()).collect()))
    }

    /// The next message. What has come of it is kept when this is given up.
    async fn next(&mut self) -> (Value, Vec<Bytes>) {
        loop {
            if let Some(message) = self.whole() {
                return message;
            }
            let frame = tokio::time::timeout(PATIENCE, self.asked.body.frame()).await.expect("it goes on");
            self.held.extend_from_slice(&frame.expect("more").expect("a body").into_data().unwrap_or_default());
        }
    }

    /// The next message of this kind.
    async fn next_of(&mut self, kind: &str) -> (Value, Vec<Bytes>) {
        loop {
            let message = self.next().await;
            if message.0["kind"] == kind {
                return message;
            }
        }
    }
}

/// A stream that asks for Guided Grad-CAM, as a client does that names nothing.
async fn stream(server: &TestServer) -> Conversation {
    let mut opening = open(Overflow::Block);
    opening.source = "line 4".to_owned();
    opening.options = None;
    Conversation::open(&mut server.explain().await, opening).await.0
}

/// The answer to a frame whose pixels are the same each time.
async fn explained(stream: &mut Conversation, sequence: u64) -> v1::Explanation {
    stream.send(Message::Frame(v1::Frame { sequence, ..images::frame(7) })).await;
    stream.explanation().await
}

/// Sends frames until one is on the page.
async fn shown(stream: &mut Conversation, first: u64, messages: &mut Messages) -> (Value, Vec<Bytes>) {
    let mut sequence = first;
    loop {
        stream.frame(sequence).await;
        stream.next().await;
        sequence += 1;
        let seen = tokio::time::timeout(Duration::from_millis(50), messages.next()).await;
        if let Ok(message) = seen
            && message.0["kind"] == "frame"
        {
            return message;
        }
        assert!(sequence < first + 500, "no frame is shown");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_a_streams_frames_maps_times_and_counts() {
    let server = start(|_| {}).await;
    let (empty, _) = Messages::of(&server, "/live").await.next_of("news").await;
    assert_eq!((&empty["streams"], &empty["stream"]), (&serde_json::json!([]), &Value::Null));

    let mut stream = stream(&server).await;
    let mut messages = Messages::of(&server, "/live").await;
    let (frame, parts) = shown(&mut stream, 1, &mut messages).await;
    let picture = image::load_from_memory(&parts[0]).expect("a JPEG");
    assert_eq!((picture.width(), picture.height()), (40, 30));
    assert_eq!(frame["predictions"].as_array().map(Vec::len), Some(5));
    let target = &frame["targets"][0];
    assert!(LABELS.contains(&target["class"].as_str().expect("a class")));
    for (layer, plane) in [("heat", "levels"), ("heat", "opacities"), ("light", "lit")] {
        let layer = &target[layer];
        let area = layer["width"].as_u64().expect("a width") * layer["height"].as_u64().expect("a height");
        assert_eq!(parts[layer[plane].as_u64().expect("a part") as usize].len() as u64, area, "{plane}");
    }
    let guided = image::load_from_memory(&parts[target["guided"].as_u64().expect("a part") as usize]);
    assert_eq!(guided.expect("a JPEG").width(), SIDE);
    assert!(frame["stages"].as_array().expect("stages").iter().any(|stage| stage[0] == "forward"));

    let (news, _) = messages.next_of("news").await;
    let told = &news["stream"];
    assert_eq!((told["name"].as_str(), told["policy"].as_str()), (Some("line 4"), Some("block, credit of 16 frames")));
    assert!(told["answered"].as_u64() >= Some(1) && told["failed"] == 0, "{told}");
    drop(stream);
    loop {
        let (news, _) = messages.next_of("news").await;
        if news["stream"]["ended"] == true {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_changes_because_somebody_looks() {
    let server = start(|_| {}).await;
    let mut stream = stream(&server).await;
    let unseen = explained(&mut stream, 1).await;
    let mut messages = Messages::of(&server, "/live").await;
    let mut sequence = 1;
    let seen = loop {
        sequence += 1;
        let answer = explained(&mut stream, sequence).await;
        let next = tokio::time::timeout(Duration::from_millis(50), messages.next()).await;
        if next.is_ok_and(|(message, _)| message["kind"] == "frame") {
            break answer;
        }
    };
    assert_eq!(unseen.predictions, seen.predictions);
    assert_eq!(unseen.targets, seen.targets);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_too_many_is_told_to_come_back() {
    let server = start(|view| view.max_viewers = 2).await;
    let _stream = stream(&server).await;
    let first = Messages::of(&server, "/live").await;
    let _second = ask(&server, "/mjpeg/overlay").await;
    let third = ask(&server, "/live").await;
    assert_eq!(third.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(third.headers[header::RETRY_AFTER], "5");
    assert!(third.text().await.contains("view.max_viewers"));
    assert_eq!(ask(&server, "/").await.status, StatusCode::OK, "the page itself says why nothing is shown");
    drop(first);
    let room = async { while ask(&server, "/live").await.status != StatusCode::OK {} };
    tokio::time::timeout(PATIENCE, room).await.expect("the place of a viewer that left is free");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_that_reads_nothing_holds_no_stream_and_gets_the_newest_frame() {
    let server = start(|_| {}).await;
    let mut stream = stream(&server).await;
    let mut slow = Messages::of(&server, "/live").await;
    let mut quick = Messages::of(&server, "/live").await;
    // Frames whose pictures fill what the kernel holds for a connection.
    let mut sequence = 1;
    let mut last = 0;
    let mut drawn = 0;
    while drawn < 40 {
        stream.send(Message::Frame(images::noise(sequence, 640))).await;
        stream.next().await;
        sequence += 1;
        if let Ok((message, _)) = tokio::time::timeout(Duration::from_millis(20), quick.next()).await
            && message["kind"] == "frame"
        {
            drawn += 1;
            last = message["sequence"].as_u64().expect("a number");
        }
        assert!(sequence < 2000, "only {drawn} frames are shown");
    }
    let mut got = 0;
    loop {
        let (message, _) = slow.next_of("frame").await;
        got += 1;
        if message["sequence"].as_u64() >= Some(last) {
            break;
        }
    }
    assert!(got < drawn, "{got} of {drawn}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_come_as_mjpeg_too() {
    let server = start(|_| {}).await;
    let mut stream = stream(&server).await;
    let mut sequence = 0;
    for picture in ["frame", "overlay", "heat-map", "guided-grad-cam", "light"] {
        let mut asked = ask(&server, &format!("/mjpeg/{picture}")).await;
        assert_eq!(asked.headers[header::CONTENT_TYPE], "multipart/x-mixed-replace; boundary=frame");
        let mut part = BytesMut::new();
        while !part.ends_with(b"\xff\xd9\r\n") {
            sequence += 1;
            explained(&mut stream, sequence).await;
            if let Ok(frame) = tokio::time::timeout(Duration::from_millis(50), asked.body.frame()).await {
                part.extend_from_slice(&frame.expect("more").expect("a body").into_data().unwrap_or_default());
            }
        }
        let (head, file) = part.split_at(part.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 4);
        assert!(head.starts_with(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: "));
        image::load_from_memory(file).expect(picture);
    }
    assert_eq!(ask(&server, "/mjpeg/sound").await.status, StatusCode::NOT_FOUND);
    assert_eq!(ask(&server, "/mjpeg/overlay/other").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_open_the_page_and_strangers_do_not() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let tokens = folder.path().join("tokens");
    std::fs::write(&tokens, "viewer: a-token-0123456789\n").expect("a file");
    let server = start(|view| view.token_file = Some(tokens)).await;
    let address = server.view.expect("a live page");
    let asked = ask(&server, "/").await;
    assert_eq!(asked.status, StatusCode::UNAUTHORIZED);
    assert!(asked.headers[header::WWW_AUTHENTICATE].to_str().expect("text").starts_with("Basic"));
    // anybody:a-token-0123456789
    for value in ["Bearer a-token-0123456789", "Basic YW55Ym9keTphLXRva2VuLTAxMjM0NTY3ODk="] {
        for path in ["/", "/live.js", "/live"] {
            let asked = ask_with(address, path, &[(header::AUTHORIZATION, value)]).await;
            assert_eq!(asked.status, StatusCode::OK, "{path}");
        }
    }
    for path in ["/", "/live", "/mjpeg/overlay", "/style.css"] {
        let asked = ask_with(address, path, &[(header::AUTHORIZATION, "Bearer another-0123456789")]).await;
        assert_eq!(asked.status, StatusCode::UNAUTHORIZED, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_other_site_can_use_the_page() {
    let server = start(|_| {}).await;
    let address = server.view.expect("a live page");
    let asked = ask_with(address, "/live", &[(header::HOST, "attacker.example")]).await;
    assert_eq!(asked.status, StatusCode::MISDIRECTED_REQUEST);
    let asked = ask(&server, "/").await;
    for (name, value) in [
        ("cache-control", "no-store"),
        ("cross-origin-resource-policy", "same-origin"),
        ("x-content-type-options", "nosniff"),
    ] {
        assert_eq!(asked.headers[name], value);
    }
    let policy = asked.headers["content-security-policy"].to_str().expect("text").to_owned();
    assert!(policy.contains("default-src 'self'") && policy.contains("frame-ancestors 'none'"), "{policy}");
    let page = asked.text().await;
    assert!(page.contains("How to read this") && !page.contains("{help}"));
    for outside in ["http://", "https://", "//cdn"] {
        assert!(!page.contains(outside), "{outside}");
    }
}
