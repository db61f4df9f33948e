//! Bytes that are not HTTP/2, or stop being it.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::dice::Dice;
use super::ground::{Ground, alone};
use super::server::PATIENCE;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: u8 = 4;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Sends bytes; returns what the server sends until it closes the connection, which it must.
async fn say(server: SocketAddr, bytes: &[u8], half_close: bool) -> Vec<u8> {
    let mut connection = TcpStream::connect(server).await.expect("the server listens");
    let mut answer = Vec::new();
    let whole = async {
        // The server may have closed the connection before it has received all bytes.
        let _ = connection.write_all(bytes).await;
        if half_close {
            let _ = connection.shutdown().await;
        }
        let _ = connection.read_to_end(&mut answer).await;
    };
    tokio::time::timeout(PATIENCE, whole).await.expect("the server closes the connection");
    answer
}

/// The first message of a TLS client: a handshake record with arbitrary content.
fn tls_hello() -> Vec<u8> {
    let mut dice = Dice::new(3);
    let body = [&[3, 3][..], &dice.bytes(32), &[0, 0, 2, 0x13, 1, 1, 0, 0, 0]].concat();
    let hello = [&[1, 0, 0, body.len() as u8][..], &body].concat();
    [&[0x16, 3, 1, 0, hello.len() as u8][..], &hello].concat()
}

#[test]
fn those_who_speak_another_protocol_are_shown_the_door() {
    alone(async || {
        let ground = Ground::new().await;
        let get = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n".to_vec();
        for said in [tls_hello(), get, vec![0; 1000], b"\r\n".repeat(50)] {
            let answer = say(ground.tcp, &said, false).await;
            assert!(answer.len() < 1000, "{} bytes", answer.len());
        }
        ground.is_as_before().await;
    });
}

#[test]
fn random_bytes_before_or_after_the_preface_end_the_connection() {
    alone(async || {
        let ground = Ground::new().await;
        let mut dice = Dice::new(1);
        for round in 0..150 {
            let count = 1 + dice.below(4000);
            let bytes = dice.bytes(count);
            let said = match round % 3 {
                0 => bytes,
                1 => [PREFACE, &frame(SETTINGS, 0, 0, &[]), &bytes].concat(),
                // Frames of any type with a correct length.
                _ => {
                    let frames: Vec<Vec<u8>> = bytes
                        .chunks(200)
                        .map(|payload| frame(dice.below(12) as u8, dice.roll() as u8, dice.below(5) as u32, payload))
                        .collect();
                    [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frames.concat()].concat()
                }
            };
            say(ground.tcp, &said, true).await;
            if round % 30 == 0 {
                ground.serves().await;
            }
        }
        ground.is_as_before().await;
    });
}

#[test]
fn a_head_that_goes_on_for_ever_is_cut_off() {
    alone(async || {
        let ground = Ground::new().await;
        let mut connection = TcpStream::connect(ground.tcp).await.expect("the server listens");
        // A header without indexing: a name and a value of 100 bytes each. The flags say that more headers follow.
        let header = [&[0, 100][..], &[b'a'; 100], &[100], &[b'b'; 100]].concat();
        let block = header.repeat(80);
        let begin = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(HEADERS, 0, 1, &block)].concat();
        connection.write_all(&begin).await.expect("the server listens");
        let more = frame(CONTINUATION, 0, 1, &block);
        let flood = async {
            for sent in 0..4000 {
                if connection.write_all(&more).await.is_err() {
                    return sent;
                }
            }
            4000
        };
        let frames = tokio::time::timeout(PATIENCE, flood).await.expect("the server reads or closes");
        assert!(frames < 4000, "64 MB of a head were taken");
        drop(connection);
        ground.is_as_before().await;
    });
}

#[test]
fn a_peer_that_falls_silent_after_its_first_words_is_given_up() {
    alone(async || {
        let ground = Ground::new().await;
        let settings = frame(SETTINGS, 0, 0, &[]);
        for said in [[PREFACE, &settings].concat(), [PREFACE, &settings, &frame(HEADERS, 0, 1, &[0x82])].concat()] {
            say(ground.tcp, &said, false).await;
        }
        ground.is_as_before().await;
    });
}

#[test]
fn a_peer_that_says_nothing_at_all_is_given_up() {
    alone(async || {
        let ground = Ground::new().await;
        for said in [&[][..], &PREFACE[..10], PREFACE, b"G", b"GET / HTTP/1.1\r\nHost: localhost\r\n"] {
            say(ground.tcp, said, false).await;
        }
        ground.is_as_before().await;
    });
}

#[test]
fn a_head_of_http_1_1_that_never_ends_is_given_up() {
    alone(async || {
        let ground = Ground::new().await;
        let mut slow = Vec::new();
        for _ in 0..20 {
            let connection = TcpStream::connect(ground.tcp).await.expect("the server listens");
            slow.push(tokio::spawn(async move {
                let (mut reads, mut writes) = connection.into_split();
                let talks = async {
                    while writes.write_all(b"GET / HTTP/1.1\r\nX: ").await.is_ok() {
                        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                    }
                };
                let mut answer = Vec::new();
                tokio::select! {
                    () = talks => {}
                    _ = reads.read_to_end(&mut answer) => {}
                }
            }));
        }
        for one in slow {
            tokio::time::timeout(PATIENCE, one).await.expect("the server closes").expect("no panic");
        }
        ground.is_as_before().await;
    });
}
