//! Answers a connection that does not begin with HTTP/2's preface, and closes it.
//!
//! Only the head of the first request is read, up to [`MAX_HEAD_BYTES`], and what is sent does not depend on more than
//! its path and its content type.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tonic::codegen::http::StatusCode;

use super::{Answers, Asked, TEXT};

/// The most bytes of a request's head.
const MAX_HEAD_BYTES: usize = 16 << 10;

/// First byte of a TLS record with a handshake.
const TLS_HANDSHAKE: u8 = 22;

/// What a connection turned out to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server) enum Spoken {
    Http1,
    Tls,
    /// Neither, or nothing whole.
    Unknown,
}

/// Reads the first request, of which `begun` has been read, and answers it. The caller bounds the time, and closes the
/// connection.
pub(in crate::server) async fn answer(
    connection: &mut (impl AsyncRead + AsyncWrite + Unpin),
    begun: Vec<u8>,
    answers: &Answers,
) -> io::Result<Spoken> {
    let mut bytes = begun;
    // Not HTTP at all: there is no head to wait for.
    let begins_a_request = bytes.first().is_none_or(u8::is_ascii_uppercase);
    let mut end = head_end(&bytes, 0);
    while begins_a_request && end.is_none() && bytes.len() < MAX_HEAD_BYTES {
        let (before, left) = (bytes.len(), MAX_HEAD_BYTES - bytes.len());
        if (&mut *connection).take(left as u64).read_buf(&mut bytes).await? == 0 {
            break;
        }
        end = head_end(&bytes, before);
    }
    let spoken = match bytes.first() {
        Some(&TLS_HANDSHAKE) => Spoken::Tls,
        _ => Spoken::Unknown,
    };
    let (spoken, status, sentence, has_body) = match end.map(|end| Head::parse(&bytes[..end])) {
        Some(Some(head)) => {
            let asked = Asked { path: &head.path, content_type: head.content_type.as_deref(), is_http2: false };
            let (status, sentence) = answers.to(asked);
            tracing::debug!(path = %head.path, content_type = head.content_type, "a request of HTTP/1.1");
            (Spoken::Http1, status, sentence, head.method != "HEAD")
        }
        None if bytes.len() >= MAX_HEAD_BYTES && begins_a_request => {
            let sentence = format!("the request's head has more than {MAX_HEAD_BYTES} bytes\n");
            (Spoken::Http1, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, sentence, true)
        }
        _ => {
            let sentence = "this is no HTTP: this port speaks gRPC over HTTP/2 alone\n".to_owned();
            (spoken, StatusCode::BAD_REQUEST, sentence, true)
        }
    };
    connection.write_all(response(status, &sentence, has_body).as_bytes()).await?;
    connection.flush().await?;
    Ok(spoken)
}

/// A whole response, after which the connection is closed.
pub(in crate::server) fn response(status: StatusCode, sentence: &str, has_body: bool) -> String {
    let upgrade = match status {
        StatusCode::UPGRADE_REQUIRED => "Connection: close, Upgrade\r\nUpgrade: HTTP/2.0\r\n",
        _ => "Connection: close\r\n",
    };
    let (length, body) = (sentence.len(), if has_body { sentence } else { "" });
    format!("HTTP/1.1 {status}\r\nContent-Type: {TEXT}\r\nContent-Length: {length}\r\n{upgrade}\r\n{body}")
}

/// What is read of a request's head.
struct Head {
    method: String,
    path: String,
    content_type: Option<String>,
}

impl Head {
    /// `None`: it is no request of HTTP/1.
    fn parse(head: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(head);
        let mut lines = text.lines();
        let mut request = lines.next()?.split(' ');
        let (method, target, version) = (request.next()?, request.next()?, request.next()?);
        if !version.starts_with("HTTP/1.") || request.next().is_some() {
            return None;
        }
        let content_type = lines
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-type"))
            .map(|(_, value)| value.trim().to_owned());
        // A proxy's client names the whole URL.
        let path = match target.split_once("://") {
            Some((_, rest)) => rest.find('/').map_or("/", |at| &rest[at..]),
            None => target,
        };
        Some(Head { method: method.to_owned(), path: path.to_owned(), content_type })
    }
}

/// Where the empty line after a head ends, if it does not lie in the first `before` bytes. Lines may end without a
/// carriage return.
fn head_end(bytes: &[u8], before: usize) -> Option<usize> {
    let from = before.saturating_sub(3);
    let ends =
        |end: &[u8]| bytes[from..].windows(end.len()).position(|window| window == end).map(|at| from + at + end.len());
    [ends(b"\r\n\r\n"), ends(b"\n\n")].into_iter().flatten().min()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is answered to bytes that come in pieces, and then no more.
    async fn answered(said: &[u8], piece: usize) -> (Spoken, String) {
        let (mut client, mut server) = tokio::io::duplex(64);
        let (said, begun) = (said.to_vec(), said[..said.len().min(3)].to_vec());
        let rest = said[begun.len()..].to_vec();
        let talking = tokio::spawn(async move {
            for part in rest.chunks(piece) {
                // The server may have stopped to read.
                if client.write_all(part).await.is_err() {
                    break;
                }
            }
            client.shutdown().await.expect("it is open");
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.expect("text");
            answer
        });
        let answers = Answers { admin: None, probes: None };
        let spoken = answer(&mut server, begun, &answers).await.expect("the client reads");
        drop(server);
        (spoken, talking.await.expect("no panic"))
    }

    #[tokio::test]
    async fn a_request_is_answered_however_it_is_cut() {
        for piece in [1, 5, 1000] {
            let get = b"GET http://host:80/metrics HTTP/1.1\r\nHost: host:80\r\n\r\n";
            let (spoken, answer) = answered(get, piece).await;
            assert_eq!(spoken, Spoken::Http1);
            assert!(answer.starts_with("HTTP/1.1 404 Not Found\r\n"), "{answer}");
            let post = b"POST /x HTTP/1.0\ncontent-Type:application/json\n\n{}";
            let (_, answer) = answered(post, piece).await;
            assert!(answer.starts_with("HTTP/1.1 415 Unsupported Media Type\r\n"), "{answer}");
            let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
            assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{answer}");
            let (_, answer) = answered(b"HEAD / HTTP/1.1\r\n\r\n", piece).await;
            assert!(answer.starts_with("HTTP/1.1 426 Upgrade Required\r\n"), "{answer}");
            assert!(answer.contains("Upgrade: HTTP/2.0\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
        }
    }

    #[tokio::test]
    async fn what_is_no_request_is_told_so() {
        let long = [b"GET / HTTP/1.1\r\nX: ".as_slice(), &vec![b'x'; MAX_HEAD_BYTES]].concat();
        for (said, spoken, status) in [
            (&b"\x16\x03\x01\x00\x05hello"[..], Spoken::Tls, "400"),
            (b"\0\0\0\0\0\0", Spoken::Unknown, "400"),
            (b"\r\n\r\n\r\n", Spoken::Unknown, "400"),
            (b"GET /\r\n\r\n", Spoken::Unknown, "400"),
            (b"SSH-2.0-OpenSSH_9.2\r\n", Spoken::Unknown, "400"),
            (b"PRI * HTTP/2.0\r\n\r\nno", Spoken::Unknown, "400"),
            (&long, Spoken::Http1, "431"),
        ] {
            let (was, answer) = answered(said, 1000).await;
            assert_eq!(was, spoken, "{answer}");
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        }
    }
}
