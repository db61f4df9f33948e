//! Connections that are slow, or are cut at any byte.

use std::net::SocketAddr;

use camlens::proto::v1;
use camlens::proto::v1::explain_service_client::ExplainServiceClient;
use camlens::proto::v1::explain_stream_request::Message as Request;
use camlens::proto::v1::explain_stream_response::Message as Response;
use camlens::proto::v1::stream_policy::Overflow;
use tonic::transport::Endpoint;

use super::conversation::open;
use super::dice::Dice;
use super::ground::{Ground, alone};
use super::images;
use super::proxy::{Proxy, Script, Step, jitter};
use super::server::PATIENCE;

const FRAMES: u64 = 5;

/// Runs a stream of [`FRAMES`] frames over TCP; returns the explained sequences, and whether the status is OK.
async fn attempt(address: SocketAddr) -> (Vec<u64>, bool) {
    let mut explained = Vec::new();
    let whole = async {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        let mut client = ExplainServiceClient::new(endpoint.connect().await.map_err(|_| ())?);
        let opening = v1::ExplainStreamRequest { message: Some(Request::Open(open(Overflow::Block))) };
        let frames = (1..=FRAMES).map(|n| v1::ExplainStreamRequest { message: Some(Request::Frame(images::frame(n))) });
        let requests = tokio_stream::iter(std::iter::once(opening).chain(frames));
        let mut responses = client.explain_stream(requests).await.map_err(|_| ())?.into_inner();
        while let Some(response) = responses.message().await.map_err(|_| ())? {
            match response.message.expect("a message says something") {
                Response::Opened(_) => {}
                Response::Explanation(explanation) => explained.push(explanation.sequence),
                other => panic!("an explanation, not {other:?}"),
            }
        }
        Ok::<(), ()>(())
    };
    let ended = tokio::time::timeout(PATIENCE, whole).await.expect("it ends, well or not");
    (explained, ended.is_ok())
}

/// The answers of a stream that was cut must be its first ones, in order.
fn is_a_beginning(explained: &[u64]) {
    assert!(explained.iter().copied().eq(1..=explained.len() as u64), "{explained:?}");
}

#[test]
fn a_delay_in_both_directions_changes_nothing_but_the_time() {
    alone(async || {
        let ground = Ground::new().await;
        for seed in 0..4 {
            let script = Script { up: jitter(seed), down: jitter(seed + 100) };
            let proxy = Proxy::start(ground.tcp, script).await;
            let (explained, well) = attempt(proxy.address).await;
            assert!(well && explained.len() as u64 == FRAMES, "{explained:?}");
            is_a_beginning(&explained);
        }
        ground.is_as_before().await;
    });
}

#[test]
fn a_connection_that_is_cut_after_any_number_of_bytes_costs_itself_alone() {
    alone(async || {
        let ground = Ground::new().await;
        let whole = Proxy::start(ground.tcp, Script::default()).await;
        assert!(attempt(whole.address).await.1);
        let (up, down) = whole.recorded();
        drop(whole);
        let mut dice = Dice::new(5);
        let mut cuts = |length: usize| -> Vec<usize> {
            // Every byte around the ends of the preface, the settings and the headers; then random positions.
            let early = (0..60).step_by(3).chain((60..400).step_by(17)).filter(|at| *at < length);
            let late: Vec<usize> = (0..30).map(|_| dice.below(length)).collect();
            early.chain(late).collect()
        };
        let (ups, downs) = (cuts(up.len()), cuts(down.len()));
        for (index, (cut, upward)) in
            ups.iter().map(|at| (*at, true)).chain(downs.iter().map(|at| (*at, false))).enumerate()
        {
            let steps = vec![Step::Pass(cut), if index % 2 == 0 { Step::Reset } else { Step::Close }];
            let script = match upward {
                true => Script { up: steps, ..Script::default() },
                false => Script { down: steps, ..Script::default() },
            };
            let proxy = Proxy::start(ground.tcp, script).await;
            let (explained, well) = attempt(proxy.address).await;
            is_a_beginning(&explained);
            assert!(!well || explained.len() as u64 == FRAMES, "cut after {cut}: {explained:?}");
            if index % 16 == 0 {
                ground.serves().await;
            }
        }
        ground.is_as_before().await;
    });
}
