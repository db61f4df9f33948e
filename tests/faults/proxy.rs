//! A scripted proxy between a client and the server.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

use super::dice::Dice;
use super::server::PATIENCE;

/// One step of the script for one direction of a connection.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    /// Forward the next bytes.
    Pass(usize),
    Pause(Duration),
    /// Close both sides of the connection with RST.
    Reset,
    /// Close both sides of the connection with FIN.
    Close,
    /// Discard everything from now on; the connection stays open.
    Swallow,
    /// Stop reading; the connection stays open, and windows fill.
    Stall,
}

/// The script of every connection; after the last step, everything is forwarded.
#[derive(Debug, Clone, Default)]
pub struct Script {
    /// To the server.
    pub up: Vec<Step>,
    /// To the client.
    pub down: Vec<Step>,
}

/// Forwards small pieces with pauses between them.
pub fn jitter(seed: u64) -> Vec<Step> {
    let mut dice = Dice::new(seed);
    (0..80)
        .flat_map(|_| {
            let pause = Duration::from_micros(dice.below(4000) as u64);
            [Step::Pass(1 + dice.below(1200)), Step::Pause(pause)]
        })
        .collect()
}

/// The running proxy. Dropping it ends its connections.
pub struct Proxy {
    pub address: SocketAddr,
    accepting: JoinHandle<()>,
    server_closed: mpsc::UnboundedReceiver<()>,
    upward: Arc<Mutex<Vec<u8>>>,
    downward: Arc<Mutex<Vec<u8>>>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Proxy {
    pub async fn start(server: SocketAddr, script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let (closed, server_closed) = mpsc::unbounded_channel();
        let log = Log::default();
        let (upward, downward) = log.clone();
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let (script, closed, log) = (script.clone(), closed.clone(), log.clone());
                connections.spawn(async move {
                    let server = TcpStream::connect(server).await.expect("the server listens");
                    connection(client, server, script, closed, log).await;
                });
            }
        });
        Proxy { address, accepting, server_closed, upward, downward }
    }

    /// Waits until the server has closed a connection on which it receives nothing more.
    pub async fn server_closed(&mut self) {
        let closed = tokio::time::timeout(PATIENCE, self.server_closed.recv()).await;
        closed.expect("the server gives the connection up").expect("the proxy lives");
    }

    /// Bytes forwarded: to the server, and to the client.
    pub fn recorded(&self) -> (Vec<u8>, Vec<u8>) {
        let copy = |log: &Mutex<Vec<u8>>| log.lock().expect("no panic").clone();
        (copy(&self.upward), copy(&self.downward))
    }
}

/// How one direction ended.
enum End {
    /// The sender has closed it.
    Finished,
    Reset,
    Closed,
}

/// Bytes forwarded to the server, and to the client.
type Log = (Arc<Mutex<Vec<u8>>>, Arc<Mutex<Vec<u8>>>);

async fn connection(
    client: TcpStream,
    server: TcpStream,
    script: Script,
    closed: mpsc::UnboundedSender<()>,
    (upward, downward): Log,
) {
    for side in [&client, &server] {
        side.set_nodelay(true).expect("TCP");
    }
    let ((client_read, mut client_write), (server_read, mut server_write)) = (client.into_split(), server.into_split());
    let end = {
        let up = async {
            let end = carry(client_read, &mut server_write, &script.up, &upward).await;
            if let End::Finished = end {
                // The other direction may continue.
                let _ = server_write.shutdown().await;
            }
            end
        };
        let down = async {
            let end = carry(server_read, &mut client_write, &script.down, &downward).await;
            if let End::Finished = end {
                // The receiver is gone if the test does not wait.
                let _ = closed.send(());
                let _ = client_write.shutdown().await;
            }
            end
        };
        tokio::pin!(up, down);
        tokio::select! {
            end = &mut up => match end { End::Finished => down.await, other => other },
            end = &mut down => match end { End::Finished => up.await, other => other },
        }
    };
    if let End::Reset = end {
        for side in [client_write, server_write] {
            let _ = side.as_ref().set_zero_linger();
        }
    }
}

async fn carry(mut from: OwnedReadHalf, to: &mut OwnedWriteHalf, script: &[Step], log: &Mutex<Vec<u8>>) -> End {
    for step in script {
        match *step {
            Step::Pass(count) => {
                if !pass(&mut from, to, count, log).await {
                    return End::Finished;
                }
            }
            Step::Pause(time) => tokio::time::sleep(time).await,
            Step::Reset => return End::Reset,
            Step::Close => return End::Closed,
            Step::Swallow => {
                let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
                return End::Finished;
            }
            Step::Stall => std::future::pending().await,
        }
    }
    while pass(&mut from, to, 1 << 16, log).await {}
    End::Finished
}

/// `false` if one of the two sides has closed.
async fn pass(from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf, count: usize, log: &Mutex<Vec<u8>>) -> bool {
    let mut left = count;
    let mut buffer = vec![0; count.min(1 << 14)];
    while left > 0 {
        let room = left.min(buffer.len());
        match from.read(&mut buffer[..room]).await {
            Ok(read) if read > 0 => {
                log.lock().expect("no panic").extend(&buffer[..read]);
                if to.write_all(&buffer[..read]).await.is_err() {
                    return false;
                }
                left -= read;
            }
            _ => return false,
        }
    }
    true
}
