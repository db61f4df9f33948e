//! A server on loopback TCP for faulty clients and on a Unix socket for correct ones; checks that nothing leaked.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use camlens::config::Config;
use camlens::config::ListenAddress;
use camlens::proto::v1::stream_policy::Overflow;
use tonic::Code;

use super::conversation::{Conversation, open};
use super::server::TestServer;

/// A correct client is served within this time, whatever the others do: a hundred times what it needs.
const PROMPT: Duration = Duration::from_secs(5);

/// Within this time everything must be released. A peer that vanished is noticed within two keep-alive periods.
const SETTLED: Duration = Duration::from_secs(15);

/// Runs one test at a time, each in a runtime of its own: file descriptors belong to the whole process.
pub fn alone<F: Future>(test: impl FnOnce() -> F) -> F::Output {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("threads start").block_on(test())
}

pub struct Ground {
    pub server: TestServer,
    /// The address for faulty clients.
    pub tcp: SocketAddr,
    before: Residue,
}

/// Resources that a leaked connection would hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Residue {
    pub descriptors: usize,
    tasks: usize,
}

impl Residue {
    pub fn now() -> Self {
        let descriptors = std::fs::read_dir("/proc/self/fd").expect("Linux").count();
        Residue { descriptors, tasks: tokio::runtime::Handle::current().metrics().num_alive_tasks() }
    }

    /// The counts, once they have not changed for a while.
    async fn settled() -> Self {
        let (mut last, mut since) = (Residue::now(), Instant::now());
        while since.elapsed() < Duration::from_millis(200) {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let now = Residue::now();
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
        last
    }
}

impl Ground {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let server = TestServer::start_with(|config| {
            config.server.listen.push(ListenAddress::Tcp("127.0.0.1:0".to_owned()));
            config.server.keep_alive_s = 1;
            // A frame of `images::frame` takes all of it.
            config.limits.queued_bytes = 3 << 10;
            change(config);
        })
        .await;
        let tcp = server.addresses.iter().find_map(|address| match address {
            ListenAddress::Tcp(address) => address.parse().ok(),
            ListenAddress::Unix(_) => None,
        });
        let ground = Ground { server, tcp: tcp.expect("a port"), before: Residue { descriptors: 0, tasks: 0 } };
        // Open now what stays open for the whole process.
        ground.serves().await;
        Ground { before: Residue::settled().await, ..ground }
    }

    /// A correct client is served completely, in order, and within [`PROMPT`].
    pub async fn serves(&self) {
        let served = async {
            let (mut stream, _) = Conversation::open(&mut self.server.explain().await, open(Overflow::Block)).await;
            for sequence in 1..=3 {
                stream.frame(sequence).await;
            }
            stream.half_close();
            for sequence in 1..=3 {
                assert_eq!(stream.explanation().await.sequence, sequence);
            }
            assert_eq!(stream.status().await.code(), Code::Ok);
        };
        tokio::time::timeout(PROMPT, served).await.expect("a harmless client is served promptly");
    }

    /// Nothing of the faulty clients is left, and a correct one is served.
    pub async fn is_as_before(&self) {
        let start = Instant::now();
        loop {
            let now = Residue::now();
            if now.descriptors <= self.before.descriptors && now.tasks <= self.before.tasks {
                break;
            }
            assert!(start.elapsed() < SETTLED, "before: {:?}, now: {now:?}", self.before);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.serves().await;
    }
}
