//! A server that times kernels while it serves, and the cache of what it found.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Sender;
use std::time::Duration;

use super::{camlens, killed_after, run, text};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/models/efficientnet-lite0");
/// Longer than all kernels of the model take, beside other programs too.
const PATIENCE: Duration = Duration::from_secs(300);

/// A server that is killed with it.
struct Server {
    process: Child,
    log: Box<dyn Iterator<Item = String>>,
    _alive: Sender<()>,
}

impl Server {
    fn start(socket: &str, cache: &Path) -> Self {
        let arguments = ["serve", "--models", MODEL, "--listen", socket, "--cache", text(cache), "--log", "info"];
        let mut process = camlens(&arguments).stderr(Stdio::piped()).spawn().expect("the program starts");
        let alive = killed_after(PATIENCE, &process);
        let log = BufReader::new(process.stderr.take().expect("its log")).lines().map_while(Result::ok);
        Server { process, log: Box::new(log), _alive: alive }
    }

    /// Reads the log up to a line with `words`.
    fn says(&mut self, words: &str) -> String {
        self.log.find(|line| line.contains(words)).unwrap_or_else(|| panic!("its log lacks {words:?}"))
    }

    /// Ends it by SIGTERM.
    fn stop(mut self) {
        assert!(Command::new("kill").arg(self.process.id().to_string()).status().expect("kill").success());
        self.log.by_ref().for_each(drop);
        assert!(self.process.wait().expect("it ends").success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn explain(socket: &str, out: &Path) {
    let picture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/preprocessing/444.jpg");
    let (code, _, stderr) = run(&mut camlens(&["explain", picture, "--server", socket, "--out", text(out)]));
    assert_eq!((code, stderr.as_str()), (0, ""));
}

#[test]
fn kernels_are_timed_after_the_start_and_the_next_start_knows_them() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let socket = format!("unix:{}", text(&folder.path().join("camlens.sock")));
    let cache = folder.path().join("cache");

    let mut first = Server::start(&socket, &cache);
    assert!(first.says("known from earlier starts").contains("operations=0"));
    first.says("serving");
    // Frames are answered meanwhile.
    explain(&socket, &folder.path().join("early"));
    first.says("the fastest kernels are known");
    explain(&socket, &folder.path().join("late"));
    first.stop();
    let files: Vec<_> = fs::read_dir(&cache).expect("the cache").map(|entry| entry.expect("a file").path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");

    let mut second = Server::start(&socket, &cache);
    assert!(!second.says("known from earlier starts").contains("operations=0"));
    second.says("serving");
    explain(&socket, &folder.path().join("again"));
    second.stop();
}

#[test]
fn a_cache_that_cannot_be_used_is_no_reason_not_to_serve() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let socket = format!("unix:{}", text(&folder.path().join("camlens.sock")));
    let file = folder.path().join("file");
    fs::write(&file, "no folder").expect("a small file");
    let mut server = Server::start(&socket, &file);
    assert!(server.says("device.cache cannot be used").contains(text(&file)));
    server.says("serving");
    explain(&socket, folder.path());
    server.stop();
}
