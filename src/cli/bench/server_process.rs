//! The server's process, if it runs on this machine, and the processor time that it takes.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use procfs::net::TcpNetEntry;
use procfs::process::{FDTarget, Process, Stat, all_processes};
use tokio_util::sync::CancellationToken;

use crate::client::{Ends, Link};

/// A server's process has this name. A proxy in front of a server has another one.
const NAME: &str = env!("CARGO_PKG_NAME");

/// Another process of this machine, which serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerProcess {
    id: i32,
    /// In clock ticks since the machine's start. It differs from that of a later process with the same `id`.
    started: u64,
}

/// The processor time of a process in a span of time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProcessorTime {
    /// In user and in kernel mode, of all threads.
    pub taken: Duration,
    pub span: Duration,
}

impl ServerProcess {
    /// The process at the other end of all `links`, once it has accepted their connections. `None` if there is none
    /// among the processes of this machine that this one may look at, or if that is this process itself.
    pub fn of(links: &[Link]) -> Option<Self> {
        let connections: Vec<Ends> = links.iter().map(Link::ends).collect::<Option<_>>()?;
        let own = Process::myself().ok()?.pid;
        // A /proc of another PID namespace has other numbers than the ends of Unix sockets.
        if u32::try_from(own) != Ok(std::process::id()) {
            return None;
        }
        let sockets = Sockets::now();
        all_processes().ok()?.filter_map(Result::ok).filter(|process| process.pid != own).find_map(|process| {
            let stat = process.stat().ok().filter(|stat| stat.comm == NAME)?;
            sockets.all_end_in(&connections, &process).then_some(Self::new(&stat))
        })
    }

    fn new(stat: &Stat) -> Self {
        ServerProcess { id: stat.pid, started: stat.starttime }
    }

    /// The processor time that the process takes from `begin` until `end` or until `is_over` is cancelled. `None` if
    /// that is cancelled before `begin`, or if the process has ended meanwhile.
    pub async fn measure(
        self,
        begin: Instant,
        end: Option<Instant>,
        is_over: &CancellationToken,
    ) -> Option<ProcessorTime> {
        is_over.run_until_cancelled(tokio::time::sleep_until(begin.into())).await?;
        let (first, taken_before) = (Instant::now(), self.taken()?);
        match end {
            Some(end) => _ = is_over.run_until_cancelled(tokio::time::sleep_until(end.into())).await,
            None => is_over.cancelled().await,
        }
        let taken = self.taken()?.saturating_sub(taken_before);
        Some(ProcessorTime { taken, span: first.elapsed() })
    }

    /// Processor time since the start of the process. `None` if it has ended.
    fn taken(self) -> Option<Duration> {
        let stat = Process::new(self.id).and_then(|process| process.stat()).ok()?;
        let ticks = (Self::new(&stat) == self).then_some(stat.utime + stat.stime)?;
        Some(Duration::from_secs_f64(ticks as f64 / procfs::ticks_per_second() as f64))
    }
}

impl ProcessorTime {
    /// Milliseconds for each of `frames`. `None` without frames.
    pub fn per_frame_ms(&self, frames: u64) -> Option<f64> {
        (frames > 0).then(|| 1e3 * self.taken.as_secs_f64() / frames as f64)
    }

    /// The mean number of processors in use.
    pub fn processors(&self) -> f64 {
        self.taken.as_secs_f64() / self.span.as_secs_f64()
    }
}

/// The inodes of the TCP sockets in this network namespace, by their own and their peer's address.
struct Sockets(HashMap<(SocketAddr, SocketAddr), u64>);

impl Sockets {
    fn now() -> Self {
        // There is no table of IPv6 on a machine without it.
        let tables = [procfs::net::tcp(), procfs::net::tcp6()];
        Self::new(tables.into_iter().filter_map(Result::ok).flatten())
    }

    fn new(entries: impl Iterator<Item = TcpNetEntry>) -> Self {
        let key = |entry: &TcpNetEntry| (canonical(entry.local_address), canonical(entry.remote_address));
        Sockets(entries.map(|entry| (key(&entry), entry.inode)).collect())
    }

    /// Whether the server's ends of all these connections are in `process`.
    fn all_end_in(&self, connections: &[Ends], process: &Process) -> bool {
        let mut inodes = Vec::new();
        for connection in connections {
            match *connection {
                Ends::Unix { listener } if listener == process.pid => {}
                Ends::Unix { .. } => return false,
                Ends::Tcp { client, server } => match self.0.get(&(canonical(server), canonical(client))) {
                    Some(&inode) => inodes.push(inode),
                    None => return false,
                },
            }
        }
        inodes.is_empty() || {
            let open: HashSet<u64> = sockets_of(process).collect();
            inodes.iter().all(|inode| open.contains(inode))
        }
    }
}

/// The inodes of the sockets that a process has open; none if this process may not look at them.
fn sockets_of(process: &Process) -> impl Iterator<Item = u64> {
    process.fd().into_iter().flatten().filter_map(|descriptor| match descriptor.ok()?.target {
        FDTarget::Socket(inode) => Some(inode),
        _ => None,
    })
}

/// A socket of IPv6 that serves IPv4 has addresses like `::ffff:127.0.0.1`.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn own() -> (Process, ServerProcess) {
        let process = Process::myself().expect("/proc");
        let server = ServerProcess::new(&process.stat().expect("our own"));
        (process, server)
    }

    #[tokio::test]
    async fn processor_time_is_measured_from_the_begin_to_the_end() {
        const WORK: Duration = Duration::from_millis(50);
        let (_, server) = own();
        let (begin, is_over) = (Instant::now(), CancellationToken::new());
        let work_until_it_is_over = std::thread::spawn({
            let is_over = is_over.clone();
            move || while !is_over.is_cancelled() {}
        });
        let end_after_work = async {
            // A later timer on the same thread: `measure` has read the processor time before this one fires.
            tokio::time::sleep(Duration::from_millis(2)).await;
            let before = server.taken().expect("it lives");
            while server.taken().expect("it lives") < before + WORK {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            is_over.cancel();
        };
        let (measured, ()) = tokio::join!(server.measure(begin, None, &is_over), end_after_work);
        let measured = measured.expect("it lives");
        assert!(measured.taken >= WORK && measured.processors() > 0.0, "{measured:?}");
        assert!(measured.span <= begin.elapsed(), "{measured:?}");
        work_until_it_is_over.join().expect("it ends");
        assert_eq!(server.measure(begin, None, &is_over).await, None);
    }

    #[tokio::test]
    async fn processor_time_is_measured_until_an_end_that_was_given() {
        let (_, server) = own();
        let begin = Instant::now();
        let end = begin + Duration::from_millis(20);
        let measured = server.measure(begin, Some(end), &CancellationToken::new()).await.expect("it lives");
        assert!(Instant::now() >= end && measured.span <= begin.elapsed(), "{measured:?}");
    }

    #[test]
    fn a_later_process_with_the_same_number_is_another_one() {
        let (_, server) = own();
        assert!(server.taken().is_some());
        assert_eq!(ServerProcess { started: server.started + 1, ..server }.taken(), None);
    }

    #[test]
    fn a_tcp_connection_ends_in_the_process_that_accepted_it() {
        let (process, _) = own();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let connect = || TcpStream::connect(listener.local_addr().expect("an address")).expect("it listens");
        let (one, other) = (connect(), connect());
        let _accepted = [listener.accept().expect("one"), listener.accept().expect("the other")];
        let ends = |stream: &TcpStream| Ends::Tcp {
            client: stream.local_addr().expect("connected"),
            server: stream.peer_addr().expect("connected"),
        };
        let sockets = Sockets::now();
        assert!(sockets.all_end_in(&[ends(&one), ends(&other)], &process));
        let unknown = Ends::Tcp { client: SocketAddr::from(([127, 0, 0, 1], 1)), server: one.peer_addr().unwrap() };
        assert!(!sockets.all_end_in(&[ends(&one), unknown], &process));
        assert!(!sockets.all_end_in(&[ends(&one)], &Process::new(1).expect("init")));
    }

    #[test]
    fn a_unix_connection_ends_in_the_process_that_listens() {
        let (process, _) = own();
        let none = Sockets(HashMap::new());
        let listener = process.pid;
        assert!(none.all_end_in(&[Ends::Unix { listener }, Ends::Unix { listener }], &process));
        assert!(!none.all_end_in(&[Ends::Unix { listener }, Ends::Unix { listener: 0 }], &process));
    }

    #[test]
    fn addresses_of_both_tables_are_compared_as_ipv4() {
        let mapped: SocketAddr = "[::ffff:127.0.0.1]:80".parse().expect("an address");
        assert_eq!(canonical(mapped), SocketAddr::from(([127, 0, 0, 1], 80)));
    }

    #[test]
    fn without_frames_there_is_no_time_per_frame() {
        let time = ProcessorTime { taken: Duration::from_millis(500), span: Duration::from_secs(2) };
        assert_eq!((time.per_frame_ms(0), time.per_frame_ms(20), time.processors()), (None, Some(25.0), 0.25));
    }
}
