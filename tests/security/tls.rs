//! TLS and mutual TLS.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::certificates::Authority;
use super::server::{Server, ask, tls};

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_trusts_the_authority_is_served_and_another_refuses() {
    let authority = Authority::new("ours");
    let server = Server::with_tls(&authority.sign("server"), &[]);
    ask(&server.url("https"), Some(tls(&authority, None))).await.expect("it is served");
    let stranger = Authority::new("another");
    let error = ask(&server.url("https"), Some(tls(&stranger, None))).await.expect_err("an unknown authority");
    assert!(error.contains("UnknownIssuer"), "{error}");
    let misnamed = tls(&authority, None).domain_name("camlens.example");
    let error = ask(&server.url("https"), Some(misnamed)).await.expect_err("another name");
    assert!(error.contains("not valid for name"), "{error}");
    ask(&server.url("http"), None).await.expect_err("plaintext");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_mutual_tls_a_client_must_show_a_certificate_of_the_right_authority() {
    let (authority, clients) = (Authority::new("ours"), Authority::new("clients"));
    let ca = clients.certificate();
    let mut server = Server::with_tls(&authority.sign("server"), &["--tls-client-ca", ca.to_str().expect("UTF-8")]);
    let known = clients.sign_as("camera", &["camera"], |_| {});
    ask(&server.url("https"), Some(tls(&authority, Some(&known)))).await.expect("a known client");
    // tonic's message depends on timing; command_line.rs checks the message for users.
    ask(&server.url("https"), Some(tls(&authority, None))).await.expect_err("no certificate");
    server.wait_for_log("peer sent no certificates");
    let unknown = authority.sign_as("other", &["camera"], |_| {});
    ask(&server.url("https"), Some(tls(&authority, Some(&unknown)))).await.expect_err("another's");
    assert!(server.wait_for_log("invalid peer certificate").contains("UnknownIssuer"));
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_are_stuck_keep_nobody_out() {
    let authority = Authority::new("ours");
    let server = Server::with_tls(&authority.sign("server"), &[]);
    let mut stuck: Vec<TcpStream> = Vec::new();
    for index in 0..200_u8 {
        let mut connection = TcpStream::connect(("127.0.0.1", server.port())).expect("it listens");
        if index % 2 == 0 {
            // The beginning of a record that is never completed.
            connection.write_all(&[22, 3, 1, 1]).expect("it is read");
        }
        stuck.push(connection);
    }
    let began = Instant::now();
    ask(&server.url("https"), Some(tls(&authority, None))).await.expect("it is served");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}: it waited for the others' time-out", began.elapsed());
    // The stuck connections are closed after the handshake timeout.
    let last = stuck.last_mut().expect("a connection");
    last.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    assert!(matches!(last.read(&mut [0; 64]), Ok(0) | Err(_)));
    assert!(began.elapsed() < Duration::from_secs(20), "it was closed by the server");
}

/// A connection with TLS whose client offers these protocols.
async fn encrypted(
    authority: &Authority,
    port: u16,
    protocols: &[&str],
) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
    use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types};
    let mut roots = RootCertStore::empty();
    let certificate = pki_types::pem::PemObject::from_pem_slice(authority.certificate_pem().as_bytes());
    roots.add(certificate.expect("PEM")).expect("a root");
    let mut config = ClientConfig::builder_with_provider(ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let tcp = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.expect("it listens");
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    connector.connect("localhost".try_into().expect("a name"), tcp).await.expect("a handshake")
}

#[tokio::test(flavor = "multi_thread")]
async fn http_1_1_over_tls_gets_its_sentence() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let authority = Authority::new("ours");
    let mut server = Server::with_tls(&authority.sign("server"), &[]);
    for protocols in [&["http/1.1"][..], &[]] {
        let mut connection = encrypted(&authority, server.port(), protocols).await;
        let request = b"POST /camlens.v1.ExplainService/Explain HTTP/1.1\r\nContent-Type: application/json\r\n\r\n";
        connection.write_all(request).await.expect("it reads");
        let mut answer = Vec::new();
        // The server may close without TLS's last word.
        let _ = connection.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 415 Unsupported Media Type\r\n"), "{answer}");
        assert!(answer.contains("application/json is not spoken here"), "{answer}");
    }
    assert!(server.wait_for_log("requests of HTTP/1.1").contains("WARN"));
    ask(&server.url("https"), Some(tls(&authority, None))).await.expect("others are served");
}

#[tokio::test(flavor = "multi_thread")]
async fn plaintext_at_a_port_with_tls_is_answered_and_logged_and_so_is_the_reverse() {
    let authority = Authority::new("ours");
    let mut server = Server::with_tls(&authority.sign("server"), &[]);
    let mut plain = TcpStream::connect(("127.0.0.1", server.port())).expect("it listens");
    plain.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").expect("it is read");
    let mut answer = String::new();
    plain.read_to_string(&mut answer).expect("text, and no reset");
    assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n") && answer.contains("speaks TLS"), "{answer}");
    assert!(server.wait_for_log("without TLS at a port with it").contains("WARN"));
    for _ in 0..6 {
        ask(&server.url("http"), None).await.expect_err("plaintext");
    }
    server.wait_for_log("without TLS at a port with it count=4");
    assert!(!server.log().contains("without TLS at a port with it count=3"), "a client cannot fill the log");

    let mut server = Server::start(&[]);
    ask(&server.url("https"), Some(tls(&authority, None))).await.expect_err("there is no TLS");
    assert!(server.wait_for_log("began TLS at a port without it").contains("WARN"));
}

#[tokio::test(flavor = "multi_thread")]
async fn old_versions_of_tls_are_refused_and_1_2_is_not() {
    use tokio_rustls::rustls::{
        ClientConfig, RootCertStore, crypto::ring, pki_types::CertificateDer, pki_types::pem::PemObject, version,
    };
    let authority = Authority::new("ours");
    let server = Server::with_tls(&authority.sign("server"), &[]);
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes()).expect("PEM")).expect("a root");
    let mut config = ClientConfig::builder_with_provider(ring::default_provider().into())
        .with_protocol_versions(&[&version::TLS12])
        .expect("1.2 is known")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec(), b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let tcp = tokio::net::TcpStream::connect(("127.0.0.1", server.port())).await.expect("it listens");
    let connection = connector.connect("localhost".try_into().expect("a name"), tcp).await.expect("1.2 is spoken");
    assert_eq!(connection.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    // A ClientHello of TLS 1.1, by hand: version 3.2 throughout and one old cipher suite.
    let hello: Vec<u8> = [&[1, 0, 0, 43, 3, 2][..], &[7; 32], &[0, 0, 4, 0xc0, 0x13, 0, 0x2f, 1, 0]].concat();
    let mut old = TcpStream::connect(("127.0.0.1", server.port())).expect("it listens");
    old.write_all(&[&[22, 3, 1, 0, hello.len() as u8][..], &hello].concat()).expect("it is read");
    let mut answer = Vec::new();
    old.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    old.read_to_end(&mut answer).expect("the server closes");
    assert_eq!(answer.first(), Some(&21), "an alert, and no ServerHello: {answer:?}");
}
