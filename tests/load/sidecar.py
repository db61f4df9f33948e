"""A server and its load as processes, and their use of resources from /proc. Needs only Python's standard library."""

import argparse
import json
import os
import pathlib
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

TICKS = os.sysconf("SC_CLK_TCK")
CORES = os.cpu_count()
ROOT = pathlib.Path(__file__).resolve().parents[2]
# Longer than any step takes, unless it hangs.
PATIENCE_S = 60


def arguments(description, *options, threads=1):
    """The campaign's command line: common options, and its own as (name, default, help)."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--binary", default=str(ROOT / "target/release/camlens"))
    parser.add_argument("--models", default="builtin:identity", help="what is served [default: builtin:identity]")
    # With as many threads as cores, the threads of an operator wait for each other if a client uses a core as well.
    options = (("threads", threads, "the server's, for one operator; 0: one a core"), *options)
    for name, default, text in options:
        parser.add_argument(f"--{name}", default=default, type=type(default), help=f"{text} [default: {default}]")
    return parser.parse_args()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def resnet50(options):
    """Serves ResNet-50, which the bench of the engine exports, unless --models names something else."""
    if options.models != "builtin:identity":
        return
    exported = ROOT / "target/tmp/bench/resnet50"
    if not (exported / "1/model.pt2").exists():
        say("error: there is no ResNet-50; one of these makes it:")
        say("  tests/bench/run.sh --models resnet50 --rows 1 --rounds 1")
        say("  deploy/export torchvision:resnet50 --out models/resnet50/1     and then: --models models/resnet50")
        sys.exit(2)
    options.models = str(exported)


def environment():
    """The environment, without variables that configure camlens. Kernels are timed before the first frame."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CAMLENS_", "OTEL_"))}
    return {**kept, "CAMLENS_KERNEL_TIMING": "at-start"}


class Sidecar:
    """A running server. As a context manager, it is stopped at the end. `enter` is called in its process first."""

    def __init__(self, options, *flags, config="", enter=None):
        self.binary = options.binary
        self.folder = tempfile.TemporaryDirectory(prefix="camlens-load-")
        folder = pathlib.Path(self.folder.name)
        self.address = f"unix:{folder}/camlens.sock"
        (folder / "camlens.toml").write_text(config)
        self.log = open(folder / "log", "wb")
        command = [self.binary, "serve", "--config", folder / "camlens.toml", "--models", options.models]
        command += ["--listen", self.address, "--threads", str(options.threads), "--log", "warn", *flags]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, env=environment(), preexec_fn=enter
        )
        self.began = time.monotonic()
        health = [self.binary, "health", "--server", self.address, "--wait", str(PATIENCE_S)]
        subprocess.run(health, check=True, env=environment(), timeout=2 * PATIENCE_S)
        # The connection of the health check is closed.
        time.sleep(0.2)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        """Sends SIGTERM and returns the exit code; kills the server if it does not exit."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.ended()

    def ended(self):
        try:
            code = self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            code = None
        self.log.close()
        return code

    def await_load(self, idle, connections, busy_s):
        """Waits until there are `connections` descriptors more than `idle`, and the server has worked for them."""
        deadline = time.monotonic() + PATIENCE_S
        busy = None
        while busy is None or self.cpu_s() < busy:
            if busy is None and self.descriptors() >= idle + connections:
                busy = self.cpu_s() + busy_s
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"not all connections were opened: {self.descriptors() - idle} of {connections} connections"
                )
            time.sleep(0.01)

    def log_text(self):
        return (pathlib.Path(self.folder.name) / "log").read_text(errors="replace")

    def rss_bytes(self):
        return int(self._status("VmRSS")) * 1024

    def memory(self):
        """Resident memory: the peak, the current value, and the part of it that is not mapped from files."""
        keys = {"peak": "VmHWM", "now": "VmRSS", "anonymous": "RssAnon"}
        return {f"{name}_bytes": int(self._status(key)) * 1024 for name, key in keys.items()}

    def threads(self):
        return int(self._status("Threads"))

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def cpu_s(self):
        """User and system time since the start."""
        stat = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text()
        fields = stat.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def state(self):
        return {"rss_bytes": self.rss_bytes(), "threads": self.threads(), "descriptors": self.descriptors()}

    def _status(self, key):
        for line in pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return line.split()[1]
        raise KeyError(key)


class Bench:
    """`camlens bench` as a process."""

    def __init__(self, binary, address, *flags, enter=None):
        self.output = tempfile.TemporaryFile()
        command = [binary, "bench", "--server", address, "--json", *map(str, flags)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=subprocess.PIPE,
            env=environment(),
            preexec_fn=enter,
        )
        self.began = time.monotonic()

    def result(self, timeout_s):
        """Its results, with its exit code, its error output and its processor time."""
        deadline = self.began + timeout_s
        while True:
            pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"camlens bench did not end within {timeout_s} s")
            time.sleep(0.02)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self.output.seek(0)
        text = self.output.read().decode()
        said = self.process.stderr.read().decode()
        self.process.stderr.close()
        self.output.close()
        if not text.strip():
            raise RuntimeError(f"camlens bench measured nothing: {said}")
        result = json.loads(text.splitlines()[-1])
        result["exit_code"], result["said"] = self.process.returncode, said.strip()
        result["cpu_s"], result["wall_s"] = usage.ru_utime + usage.ru_stime, time.monotonic() - self.began
        return result

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()
        self.output.close()


def bench(sidecar, *flags, timeout_s=300, address=None):
    """Runs `camlens bench`; `server_cpu_s` is the processor time of the server meanwhile."""
    before = sidecar.cpu_s()
    result = Bench(sidecar.binary, address or sidecar.address, *flags).result(timeout_s)
    result["server_cpu_s"] = sidecar.cpu_s() - before
    return result


def measure(sidecar, *flags, address=None):
    """`bench`; raises an error unless every frame was answered."""
    result = bench(sidecar, *flags, address=address)
    frames = result["frames"]
    if result["exit_code"] or not frames["accounted_for"] or frames["answered"] != frames["sent"]:
        raise RuntimeError(f"not every frame was answered: {frames} {result['said']}")
    return result


class Peer:
    """A peer's forward run (peer.py), started with the Python of `deploy/python-env bench`."""

    def __init__(self, kind, model, threads, enter=None):
        python = subprocess.run([ROOT / "deploy/python-env", "bench"], check=True, capture_output=True, text=True)
        command = [python.stdout.strip(), "-W", "ignore", ROOT / "tests/load/peer.py", kind, model, str(threads)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            preexec_fn=enter,
        )
        self._answer()

    def ask(self, *command):
        print(*command, file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self):
        # Libraries print there too.
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"the peer ended: {self.process.args}")

    def stop(self):
        self.process.stdin.close()
        self.process.wait(PATIENCE_S)


class Group:
    """A cgroup of its own for processor time, version 1 or 2.

    Raises OSError where none can be made."""

    PERIOD_US = 100_000

    def __init__(self, name):
        unified, separate = pathlib.Path("/sys/fs/cgroup"), pathlib.Path("/sys/fs/cgroup/cpu")
        self.is_unified = (unified / "cgroup.controllers").exists()
        self.folder = (unified if self.is_unified else separate) / f"camlens-{name}-{os.getpid()}"
        if self.is_unified:
            (unified / "cgroup.subtree_control").write_text("+cpu")
        self.folder.mkdir()

    def limit(self, processors):
        """Sets the quota, in processors; None lifts it."""
        quota = None if processors is None else round(processors * self.PERIOD_US)
        if self.is_unified:
            (self.folder / "cpu.max").write_text(f"{quota or 'max'} {self.PERIOD_US}")
        else:
            (self.folder / "cpu.cfs_period_us").write_text(str(self.PERIOD_US))
            (self.folder / "cpu.cfs_quota_us").write_text(str(quota or -1))

    def share(self, shares, weight):
        """Sets the share of a busy machine, as versions 1 and 2 count it."""
        name, value = ("cpu.weight", weight) if self.is_unified else ("cpu.shares", shares)
        (self.folder / name).write_text(str(value))

    def enter(self):
        """Moves the calling process into the group."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def remove(self):
        self.folder.rmdir()


class BusyLoops:
    """Processes that compute and do nothing else, while it is open."""

    def __init__(self, count):
        self.count = count

    def __enter__(self):
        command = [sys.executable, "-S", "-c", "while True: pass"]
        self.processes = [subprocess.Popen(command) for _ in range(self.count)]
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()


def exported(name):
    """The folder of a network as camlens serves it. EfficientNet-Lite0 is in the tree; others are exported once."""
    bundled = ROOT / "deploy/models" / name
    if bundled.is_dir():
        return bundled
    folder = ROOT / "target/tmp/load" / name
    if not (folder / "1/model.pt2").exists():
        say(f"exporting {name}")
        python = subprocess.run([ROOT / "deploy/python-env", "bench"], check=True, capture_output=True, text=True)
        script = (
            "import sys, torch, torchvision; torch.manual_seed(0)\n"
            "m = torchvision.models.get_model(sys.argv[1], weights=None).eval()\n"
            "d = ({0: torch.export.Dim.AUTO},)\n"
            "torch.export.save(torch.export.export(m, (torch.randn(2, 3, 224, 224),), dynamic_shapes=d), sys.argv[2])"
        )
        (folder / "1").mkdir(parents=True, exist_ok=True)
        part = folder / "1/part.pt2"
        subprocess.run([python.stdout.strip(), "-W", "ignore", "-c", script, name, part], check=True)
        part.rename(folder / "1/model.pt2")
    return folder


def processor():
    """The processor's name."""
    text = pathlib.Path("/proc/cpuinfo").read_text()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else "unknown"


def spread(values):
    """The median and the quartiles, rounded."""
    low, middle, high = quartiles(values)
    return {"median": round(middle, 3), "quartiles": [round(low, 3), round(high, 3)]}


def shares(result):
    """The number of cores, and how many of them client and server used on average."""
    wall = result["wall_s"]
    return {
        "cores": CORES,
        "client_cores": round(result["cpu_s"] / wall, 3),
        "server_cores": round(result["server_cpu_s"] / wall, 3),
    }


def report(name, passed, **figures):
    """Prints the result of the campaign and exits."""
    print(json.dumps({"name": name, "pass": bool(passed), **figures}), flush=True)
    sys.exit(0 if passed else 1)


def say(text):
    print(text, file=sys.stderr, flush=True)


def median(values):
    return statistics.median(values)


def quartiles(values):
    """The lower quartile, the median and the upper one."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * list(values)
