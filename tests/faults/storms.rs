//! Many connections and calls that are ended right after they have begun.

use std::net::SocketAddr;
use std::sync::Arc;

use camlens::proto::v1;
use camlens::proto::v1::explain_service_client::ExplainServiceClient;
use camlens::proto::v1::stream_policy::Overflow;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

use super::conversation::{Conversation, open};
use super::dice::Dice;
use super::ground::{Ground, alone};
use super::half_open;
use super::proxy::{Proxy, Script};

/// The bytes that a client sends in a conversation of a few frames.
async fn recorded(server: SocketAddr) -> Vec<u8> {
    let proxy = Proxy::start(server, Script::default()).await;
    let (mut stream, _) = Conversation::open(&mut half_open::client(&proxy).await, open(Overflow::Block)).await;
    for sequence in 1..=4 {
        stream.frame(sequence).await;
    }
    for sequence in 1..=4 {
        assert_eq!(stream.explanation().await.sequence, sequence);
    }
    proxy.recorded().0
}

#[test]
fn a_storm_of_connections_that_reset_in_the_middle_of_something_leaves_nothing_behind() {
    alone(async || {
        let ground = Ground::new().await;
        let said = Arc::new(recorded(ground.tcp).await);
        let mut dice = Dice::new(11);
        for wave in 0..10 {
            let mut connections = JoinSet::new();
            for _ in 0..40 {
                let (said, tcp, listens) = (Arc::clone(&said), ground.tcp, dice.below(2) == 0);
                // Half of them end within the preface, the settings or the request headers.
                let end = if dice.below(2) == 0 { dice.below(400) } else { dice.below(said.len()) };
                connections.spawn(async move {
                    let mut connection = TcpStream::connect(tcp).await.expect("the server listens");
                    // The server may have closed the connection already.
                    let _ = connection.write_all(&said[..end]).await;
                    if listens && end > 24 {
                        let _ = connection.read(&mut [0; 9]).await;
                    }
                    connection.set_zero_linger().expect("TCP");
                });
            }
            if wave % 3 == 0 {
                ground.serves().await;
            }
            while let Some(ended) = connections.join_next().await {
                ended.expect("no panic");
            }
        }
        ground.is_as_before().await;
    });
}

#[test]
fn a_storm_of_calls_that_are_cancelled_at_once_leaves_nothing_behind() {
    alone(async || {
        let ground = Ground::new().await;
        let endpoint = Endpoint::from_shared(format!("http://{}", ground.tcp)).expect("an address");
        for _ in 0..3 {
            // The server may end a connection that does this: CVE-2023-44487.
            let mut client = ExplainServiceClient::new(endpoint.connect().await.expect("the server listens"));
            for number in 0..300 {
                let request = v1::ExplainStreamRequest {
                    message: Some(v1::explain_stream_request::Message::Open(open(Overflow::Block))),
                };
                // The requests must end with the call: while they go on, the client's HTTP/2 keeps it open.
                let (say, requests) = mpsc::channel(1);
                say.send(request).await.expect("room");
                let requests = ReceiverStream::new(requests);
                let call = client.explain_stream(requests);
                tokio::select! {
                    biased;
                    _ = call => {}
                    () = some_turns(number % 7) => {}
                }
            }
            ground.serves().await;
        }
        ground.is_as_before().await;
    });
}

/// Lets other tasks run for a moment.
async fn some_turns(count: usize) {
    for _ in 0..=count {
        tokio::task::yield_now().await;
    }
}
