//! Certificates that change while streams run.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use camlens::proto::v1;
use camlens::proto::v1::explain_service_client::ExplainServiceClient;
use camlens::proto::v1::explain_stream_request::Message as Request;
use camlens::proto::v1::explain_stream_response::Message as Response;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};
use tokio_stream::wrappers::ReceiverStream;

use super::certificates::{Authority, Files};
use super::server::{PATIENCE, Server, connect, tls};

/// The certificate that the server presents to a new connection.
async fn shown(server: &Server, authority: &Authority) -> CertificateDer<'static> {
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes()).expect("a certificate");
    roots.add(root).expect("an authority");
    let config = ClientConfig::builder_with_provider(ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = tokio::net::TcpStream::connect(("127.0.0.1", server.port())).await.expect("it listens");
    let name = "localhost".try_into().expect("a name");
    let connection = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.expect("a handshake");
    connection.get_ref().1.peer_certificates().expect("a certificate")[0].clone().into_owned()
}

fn certificate_of(files: &Files) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(&files.certificate).expect("a certificate")
}

/// As in Kubernetes: the files are links into a directory that is itself a link, which is replaced.
fn swap(folder: &Path, version: &str, files: &[(&str, String)]) {
    let at = folder.join(version);
    std::fs::create_dir(&at).expect("a folder");
    files.iter().for_each(|(name, text)| super::certificates::write_secret(&at.join(name), text));
    std::os::unix::fs::symlink(version, folder.join("next")).expect("a link");
    std::fs::rename(folder.join("next"), folder.join("data")).expect("a swap");
}

fn frame(sequence: u64) -> v1::ExplainStreamRequest {
    let data = vec![sequence as u8; 40 * 30 * 3].into();
    let pixel_format = v1::PixelFormat::Rgb8 as i32;
    let raw = v1::RawImage { data, width: 40, height: 30, pixel_format, ..Default::default() };
    let frame = v1::Frame { sequence, payload: Some(v1::frame::Payload::Raw(raw)), ..Default::default() };
    v1::ExplainStreamRequest { message: Some(Request::Frame(frame)) }
}

/// Sends a frame and waits for its answer.
async fn explained(
    requests: &mpsc::Sender<v1::ExplainStreamRequest>,
    answers: &mut tonic::Streaming<v1::ExplainStreamResponse>,
    sequence: u64,
) {
    requests.send(frame(sequence)).await.expect("the stream lives");
    let answer = tokio::time::timeout(PATIENCE, answers.message()).await.expect("an answer").expect("no error");
    match answer.and_then(|answer| answer.message) {
        Some(Response::Explanation(explanation)) => assert_eq!(explanation.sequence, sequence),
        other => panic!("an explanation, not {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_shown_to_new_connections_and_streams_go_on_and_a_broken_one_changes_nothing() {
    let authority = Authority::new("ours");
    let (first, second) = (authority.sign("first"), authority.sign("second"));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pair = |files: &Files| [("tls.crt", files.certificate_pem()), ("tls.key", files.key_pem())];
    swap(folder.path(), "v1", &pair(&first));
    let links = ["crt", "key"].map(|ending| folder.path().join(format!("tls.{ending}")));
    for link in &links {
        let target = Path::new("data").join(link.file_name().expect("a name"));
        std::os::unix::fs::symlink(target, link).expect("a link");
    }
    let [certificate, key] = links;
    let mut server = Server::with_tls(&Files { certificate, key }, &[]);
    server.keep_secret(&second.key_pem());
    assert_eq!(shown(&server, &authority).await, certificate_of(&first));

    let channel = connect(&server.url("https"), Some(tls(&authority, None))).await.expect("a connection");
    let (requests, outgoing) = mpsc::channel(4);
    let open = v1::Open {
        options: Some(v1::ExplainOptions { predictions_only: Some(true), ..Default::default() }),
        ..Default::default()
    };
    requests.send(v1::ExplainStreamRequest { message: Some(Request::Open(open)) }).await.expect("room");
    let call = ExplainServiceClient::new(channel).explain_stream(ReceiverStream::new(outgoing)).await;
    let mut answers = call.expect("a stream").into_inner();
    let opened = answers.message().await.expect("no error").and_then(|answer| answer.message);
    assert!(matches!(opened, Some(Response::Opened(_))));
    explained(&requests, &mut answers, 1).await;

    swap(folder.path(), "v2", &pair(&second));
    server.wait_for_log("were read again");
    assert_eq!(shown(&server, &authority).await, certificate_of(&second));
    explained(&requests, &mut answers, 2).await;

    // A key that does not belong to the certificate.
    swap(folder.path(), "v3", &[("tls.crt", first.certificate_pem()), ("tls.key", second.key_pem())]);
    let line = server.wait_for_log("cannot be used: the old ones stay");
    assert!(line.contains("ERROR") && line.contains("is not that of the certificate"), "{line}");
    assert_eq!(shown(&server, &authority).await, certificate_of(&second));
    explained(&requests, &mut answers, 3).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(server.log().matches("the old ones stay").count(), 1, "it is said once");

    swap(folder.path(), "v4", &pair(&first));
    let began = std::time::Instant::now();
    while shown(&server, &authority).await != certificate_of(&first) {
        assert!(began.elapsed() < PATIENCE, "good files are taken after broken ones");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    explained(&requests, &mut answers, 4).await;
}
