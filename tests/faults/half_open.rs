//! Peers that vanish without closing: the server's keep-alive, one second here, notices.

use std::time::{Duration, Instant};

use camlens::proto::v1::explain_service_client::ExplainServiceClient;
use camlens::proto::v1::stream_policy::Overflow;
use tonic::transport::{Channel, Endpoint};

use super::conversation::{Conversation, open};
use super::ground::{Ground, alone};
use super::proxy::{Proxy, Script, Step};

pub async fn client(proxy: &Proxy) -> ExplainServiceClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{}", proxy.address)).expect("an address");
    ExplainServiceClient::new(endpoint.connect().await.expect("the proxy listens"))
}

/// Bytes to the server: the connection's setup and `Open`, but no complete frame.
const BEFORE_A_FRAME: usize = 1000;

#[test]
fn a_peer_that_vanishes_without_closing_is_given_up_with_its_frames() {
    alone(async || {
        let ground = Ground::new().await;
        // Right after `Open`; in the middle of the first frame; in the middle of the third.
        for (bytes, answered) in [(BEFORE_A_FRAME, 0), (2 * BEFORE_A_FRAME, 0), (9 * BEFORE_A_FRAME, 2)] {
            let script = Script { up: vec![Step::Pass(bytes), Step::Swallow], ..Script::default() };
            let mut proxy = Proxy::start(ground.tcp, script).await;
            let start = Instant::now();
            let (mut stream, _) = Conversation::open(&mut client(&proxy).await, open(Overflow::Block)).await;
            for sequence in 1..=answered {
                stream.frame(sequence).await;
                assert_eq!(stream.explanation().await.sequence, sequence);
            }
            for sequence in 1..=2 {
                stream.frame(answered + sequence).await;
            }
            proxy.server_closed().await;
            let took = start.elapsed();
            assert!(took < Duration::from_secs(10), "keep_alive_s is 1, and it took {took:?}");
            ground.serves().await;
        }
        ground.is_as_before().await;
    });
}

#[test]
fn a_peer_that_hears_nothing_more_is_given_up_though_it_talks_on() {
    alone(async || {
        let ground = Ground::new().await;
        // Keep-alive pings are discarded like everything else that the server sends.
        let script = Script { down: vec![Step::Pass(200), Step::Swallow], ..Script::default() };
        let mut proxy = Proxy::start(ground.tcp, script).await;
        let mut client = client(&proxy).await;
        let stream = Conversation::silent(&mut client);
        // The response's headers may be among the discarded bytes.
        let _ = tokio::time::timeout(Duration::from_millis(500), stream).await;
        proxy.server_closed().await;
        drop((client, proxy));
        ground.is_as_before().await;
    });
}
