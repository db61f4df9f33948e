//! The program in real cgroups, of whichever version the machine has. Where none can be made, nothing is tested.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use super::{camlens, killed_after, run, text};

/// Longer than a change of a limit takes to be seen.
const PATIENCE: Duration = Duration::from_secs(60);

/// A group for one process, in each hierarchy that is needed.
struct Group {
    is_unified: bool,
    processors: PathBuf,
    memory: PathBuf,
}

impl Group {
    /// `None` without the right to make groups.
    fn new(name: &str) -> Option<Self> {
        let root = Path::new("/sys/fs/cgroup");
        let is_unified = root.join("cgroup.controllers").exists();
        let name = format!("camlens-{name}-{}", std::process::id());
        let [processors, memory] = if is_unified {
            [root.join(&name), root.join(&name)]
        } else {
            ["cpu", "memory"].map(|h| root.join(h).join(&name))
        };
        if is_unified {
            fs::write(root.join("cgroup.subtree_control"), "+cpu +memory").ok()?;
        }
        let group = Group { is_unified, processors, memory };
        let made = fs::create_dir(&group.processors).is_ok() && (is_unified || fs::create_dir(&group.memory).is_ok());
        if !made {
            eprintln!("no cgroup can be made here");
        }
        made.then_some(group)
    }

    fn limit_processors(&self, quota_us: u32) {
        match self.is_unified {
            true => fs::write(self.processors.join("cpu.max"), format!("{quota_us} 100000")).unwrap(),
            false => fs::write(self.processors.join("cpu.cfs_quota_us"), quota_us.to_string()).unwrap(),
        }
    }

    fn limit_memory(&self, bytes: u64) {
        let file = if self.is_unified { "memory.max" } else { "memory.limit_in_bytes" };
        fs::write(self.memory.join(file), bytes.to_string()).unwrap();
    }

    /// The command, which enters the group before it begins.
    fn with(&self, command: &Command) -> Command {
        let mut inside = Command::new("sh");
        inside.args(["-c", r#"echo $$ >"$1" && echo $$ >"$2" && shift 2 && exec "$@""#, "sh"]);
        inside.args([&self.processors, &self.memory].map(|folder| folder.join("cgroup.procs")));
        inside.arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
        command.get_envs().filter(|(_, value)| value.is_none()).for_each(|(name, _)| {
            inside.env_remove(name);
        });
        inside
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.processors);
        let _ = fs::remove_dir(&self.memory);
    }
}

#[test]
fn threads_follow_the_quota_of_a_cgroup_while_the_server_runs() {
    let Some(group) = Group::new("quota") else { return };
    group.limit_processors(150_000);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let socket = format!("unix:{}", text(&folder.path().join("camlens.sock")));
    let arguments = ["serve", "--models", "builtin:identity", "--listen", &socket, "--log", "info"];
    let mut server = group.with(&camlens(&arguments)).stderr(Stdio::piped()).spawn().expect("the program starts");
    let _alive = killed_after(PATIENCE, &server);
    let mut log = BufReader::new(server.stderr.take().expect("its log")).lines().map_while(Result::ok);
    let granted = log.find(|line| line.contains("the process may use")).expect("what it may use");
    assert!(granted.contains("quota=1.5"), "{granted}");
    log.find(|line| line.contains("listening")).expect("it serves");
    group.limit_processors(50_000);
    // On one processor the number of threads is the same.
    if thread::available_parallelism().is_ok_and(|processors| processors.get() > 1) {
        let changed = log.find(|line| line.contains("have changed")).expect("the new limit");
        assert!(changed.contains("quota=0.5") && changed.contains("threads=1"), "{changed}");
    }
    server.kill().expect("it runs");
    server.wait().expect("it ends");
}

#[test]
fn a_model_that_does_not_fit_into_its_cgroup_is_refused_with_the_figures() {
    let Some(group) = Group::new("memory") else { return };
    group.limit_memory(120 << 20);
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/models/efficientnet-lite0");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let socket = format!("unix:{}", text(&folder.path().join("camlens.sock")));
    let (code, _, stderr) = run(&mut group.with(&camlens(&["serve", "--models", model, "--listen", &socket])));
    assert_ne!(code, 0);
    for words in ["efficientnet-lite0", "does not fit into the memory", "may use 120 MiB"] {
        assert!(stderr.contains(words), "{stderr}");
    }
}
