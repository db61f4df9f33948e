//! A client that never reads.

use std::time::{Duration, Instant};

use camlens::proto::v1;
use camlens::proto::v1::stream_policy::Overflow;

use super::conversation::{Conversation, open};
use super::ground::{Ground, Residue, alone};
use super::half_open::client;
use super::images;
use super::proxy::{Proxy, Script, Step};
use camlens::proto::v1::explain_stream_request::Message as Request;

/// Asks for maps: at least 33 × 33 × 3 floats for each frame.
fn with_maps(overflow: Overflow) -> v1::Open {
    v1::Open { options: None, ..open(overflow) }
}

#[test]
fn a_client_whose_window_is_full_holds_up_nobody_else() {
    alone(async || {
        let ground = Ground::new().await;
        for overflow in [Overflow::Latest, Overflow::Block] {
            let narrow = ground.server.channel_with(|endpoint| endpoint.initial_stream_window_size(65_535)).await;
            let mut slow = v1::explain_service_client::ExplainServiceClient::new(narrow);
            let (stream, _) = Conversation::open(&mut slow, with_maps(overflow)).await;
            for sequence in 1..=40 {
                // Under BLOCK the window to the server fills as well: the remaining frames stay with the client.
                let send = stream.send(Request::Frame(images::frame(sequence)));
                let _ = tokio::time::timeout(Duration::from_millis(50), send).await;
                if sequence % 10 == 0 {
                    ground.serves().await;
                }
            }
            drop((stream, slow));
            ground.is_as_before().await;
        }
    });
}

#[test]
fn a_connection_that_takes_nothing_more_is_given_up_and_holds_up_nobody_else() {
    alone(async || {
        let ground = Ground::new().await;
        let script = Script { down: vec![Step::Pass(4000), Step::Stall], ..Script::default() };
        let proxy = Proxy::start(ground.tcp, script).await;
        let (stream, _) = Conversation::open(&mut client(&proxy).await, with_maps(Overflow::Block)).await;
        let all_open = Residue::now().descriptors;
        for sequence in 1..=8 {
            stream.frame(sequence).await;
        }
        ground.serves().await;
        let start = Instant::now();
        while Residue::now().descriptors >= all_open {
            assert!(start.elapsed() < Duration::from_secs(10), "keep_alive_s is 1");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        drop((stream, proxy));
        ground.is_as_before().await;
    });
}
