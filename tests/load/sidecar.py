"""A server and its load, as processes, and what /proc says of them. Python's standard library alone."""

import argparse
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time

TICKS = os.sysconf("SC_CLK_TCK")
CORES = os.cpu_count()
ROOT = pathlib.Path(__file__).resolve().parents[2]
# Nothing here takes this long unless it hangs.
PATIENCE_S = 60


def arguments(description, *options, threads=1):
    """The campaign's command line: what all have, and its own options as (name, default, help)."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--binary", default=str(ROOT / "target/release/camlens"))
    parser.add_argument("--models", default="builtin:identity", help="what is served [default: builtin:identity]")
    # Operators that run on as many threads as there are cores wait for each other where the cores are shared with a client.
    options = (("threads", threads, "the server's, for one operator; 0: one a core"), *options)
    for name, default, text in options:
        parser.add_argument(f"--{name}", default=default, type=type(default), help=f"{text} [default: {default}]")
    return parser.parse_args()


def resnet50(options):
    """Has ResNet-50 served where nothing else was asked for: the one that the bench of the engine exports."""
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
    """Ours, without what would change camlens."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("CAMLENS_", "OTEL_"))}


class Sidecar:
    """A server that serves; as a context, stopped at its end."""

    def __init__(self, options, *flags, config=""):
        self.binary = options.binary
        self.folder = tempfile.TemporaryDirectory(prefix="camlens-load-")
        folder = pathlib.Path(self.folder.name)
        self.address = f"unix:{folder}/camlens.sock"
        (folder / "camlens.toml").write_text(config)
        self.log = open(folder / "log", "wb")
        command = [self.binary, "serve", "--config", folder / "camlens.toml", "--models", options.models]
        command += ["--listen", self.address, "--threads", str(options.threads), "--log", "warn", *flags]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, env=environment()
        )
        self.began = time.monotonic()
        health = [self.binary, "health", "--server", self.address, "--wait", str(PATIENCE_S)]
        subprocess.run(health, check=True, env=environment(), timeout=2 * PATIENCE_S)
        # Its connection goes.
        time.sleep(0.2)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        """SIGTERM, and the exit code; killed when it does not end."""
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
        """Waits until so many connections came to the `idle` descriptors and the server has worked for them."""
        deadline = time.monotonic() + PATIENCE_S
        busy = None
        while busy is None or self.cpu_s() < busy:
            if busy is None and self.descriptors() >= idle + connections:
                busy = self.cpu_s() + busy_s
            if time.monotonic() > deadline:
                raise TimeoutError(f"the load does not come: {self.descriptors() - idle} of {connections} connections")
            time.sleep(0.01)

    def log_text(self):
        return (pathlib.Path(self.folder.name) / "log").read_text(errors="replace")

    def rss_bytes(self):
        return int(self._status("VmRSS")) * 1024

    def memory(self):
        """Resident memory: the most there has been, what there is, and of that what is no file's."""
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

    def __init__(self, binary, address, *flags):
        self.output = tempfile.TemporaryFile()
        command = [binary, "bench", "--server", address, "--json", *map(str, flags)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self.output, stderr=subprocess.PIPE, env=environment()
        )
        self.began = time.monotonic()

    def result(self, timeout_s):
        """What it measured, with its exit code, what it said and the processor time that it took."""
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
    """Runs `camlens bench` to its end; `server_cpu_s` is what the server took meanwhile."""
    before = sidecar.cpu_s()
    result = Bench(sidecar.binary, address or sidecar.address, *flags).result(timeout_s)
    result["server_cpu_s"] = sidecar.cpu_s() - before
    return result


def measure(sidecar, *flags, address=None):
    """`bench`, where every frame must be answered."""
    result = bench(sidecar, *flags, address=address)
    frames = result["frames"]
    if result["exit_code"] or not frames["accounted_for"] or frames["answered"] != frames["sent"]:
        raise RuntimeError(f"not every frame was answered: {frames} {result['said']}")
    return result


def shares(result):
    """Cores that client and server used on average, of those there are."""
    wall = result["wall_s"]
    return {
        "cores": CORES,
        "client_cores": round(result["cpu_s"] / wall, 3),
        "server_cores": round(result["server_cpu_s"] / wall, 3),
    }


def report(name, passed, **figures):
    """The campaign's line; ends the process."""
    print(json.dumps({"name": name, "pass": bool(passed), **figures}), flush=True)
    sys.exit(0 if passed else 1)


def say(text):
    print(text, file=sys.stderr, flush=True)


def median(values):
    return statistics.median(values)


def quartiles(values):
    """The lower quartile, the median and the upper one."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * list(values)
