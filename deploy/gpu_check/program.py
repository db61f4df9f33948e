"""camlens as a process: servers, benches, explained pictures."""

import json
import pathlib
import signal
import subprocess
import tempfile
import time

import numpy as np

from . import distances
from .report import CannotRun, Trouble
from .setting import BINARY

# Longer than any step takes, unless it hangs.
PATIENCE_S = 180
SIGNALS = {int(one): one.name for one in signal.Signals}
REPORT = "report it with these lines"
CANNOT_START, BUILD_IT = "the built program cannot be started", "build it, or set CAMLENS_BINARY"
# Stages in which a frame's batch has the device.
PASS = ("forward", "backward", "fuse")
ON_DEVICE = ("copy_in", *PASS, "copy_out")


def run(setting, *arguments, timeout_s=PATIENCE_S, **variables):
    """camlens with these arguments; the finished process, whatever its exit code."""
    command = [str(BINARY), *map(str, arguments)]
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env=setting.environment(**variables),
        )
    except OSError as error:
        raise Trouble(f"{BINARY}: {error}", CANNOT_START, BUILD_IT) from None
    except subprocess.TimeoutExpired:
        raise Trouble(f"camlens {arguments[0]} did not end within {timeout_s} s", "it hangs", "report it") from None


def ending(code):
    """An exit code in words."""
    return f"ended by {SIGNALS.get(-code, f'signal {-code}')}" if code < 0 else f"ended with exit code {code}"


def last_lines(text, count=4):
    return " | ".join(text.strip().splitlines()[-count:])


class Server:
    """`camlens serve` on a Unix socket; as a context manager it is stopped at the end.

    Raises Trouble if it does not serve, and at the end if it does not stop cleanly."""

    def __init__(self, setting, models, *flags, config="", **variables):
        self.setting = setting
        self.folder = tempfile.TemporaryDirectory(prefix="server-", dir=setting.work)
        folder = pathlib.Path(self.folder.name)
        self.socket, self.log_path = folder / "camlens.sock", folder / "log"
        self.address, self.report_path = f"unix:{self.socket}", folder / "report.json"
        (folder / "camlens.toml").write_text(config)
        self.command = [str(BINARY), "serve", "--config", folder / "camlens.toml", "--models", models]
        self.command += ["--listen", self.address, "--log", "info", *map(str, flags)]
        if setting.fake:
            variables["FAKE_CUDA_REPORT"] = self.report_path
        self.variables = variables

    def start(self):
        with open(self.log_path, "wb") as log:
            try:
                self.process = subprocess.Popen(
                    list(map(str, self.command)),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self.setting.environment(**self.variables),
                )
            except OSError as error:
                raise Trouble(f"{BINARY}: {error}", CANNOT_START, BUILD_IT) from None

    def is_serving(self):
        """Waits until it serves or has ended."""
        deadline = time.monotonic() + PATIENCE_S
        while self.process.poll() is None and "serving address" not in self.log():
            if time.monotonic() > deadline:
                self.kill()
                raise Trouble(f"the server was not ready after {PATIENCE_S} s: {last_lines(self.log())}", "", REPORT)
            time.sleep(0.05)
        return self.process.poll() is None

    def __enter__(self):
        self.start()
        try:
            if not self.is_serving():
                said = last_lines(self.log())
                raise Trouble(
                    f"the server {ending(self.process.returncode)}: {said}",
                    "camlens cannot serve these models on this device",
                    "read the last lines; `camlens doctor` examines a model",
                )
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, kind, *_):
        code = self.stop()
        if kind is None and code != 0:
            raise Trouble(f"the server {ending(code)}: {last_lines(self.log())}", "it did not stop cleanly", REPORT)

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.process.returncode

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def log(self):
        return self.log_path.read_text(errors="replace")

    def fake_report(self):
        """The fake device's counters, once the server has stopped."""
        return json.loads(self.report_path.read_text())

    def bench(self, *flags, seconds=None, timeout_s=PATIENCE_S):
        """The result of `camlens bench`, with its exit code. Raises Trouble if there is none."""
        pace = self.setting.pace
        flags = [*flags, "--duration", seconds or pace.bench_s]
        if "--warm-up" not in flags:
            flags += ["--warm-up", pace.warm_up_s]
        done = run(self.setting, "bench", "--server", self.address, "--json", *flags, timeout_s=timeout_s)
        if not done.stdout.strip():
            raise Trouble(f"camlens bench {ending(done.returncode)}: {last_lines(done.stderr)}", "", REPORT)
        result = json.loads(done.stdout.splitlines()[-1])
        return result | {"exit_code": done.returncode, "said": last_lines(done.stderr)}

    def measure(self, *flags, **more):
        """`bench`; raises Trouble unless every frame was answered and something was measured.

        Raises CannotRun where the fake device is too slow for that."""
        result = self.bench("--overflow", "block", *flags, **more)
        frames = result["frames"]
        if result["exit_code"] or not frames["accounted_for"] or frames["answered"] != frames["sent"]:
            raise Trouble(
                f"not every frame was answered: {frames} {result['said']}",
                "the server lost or refused frames under load",
                "look at the server's log: run `camlens serve` and `camlens bench` by hand",
            )
        if not result["latency_ms"]["count"]:
            if self.setting.fake:
                raise CannotRun("the fake device answers no frame in the measured time")
            raise Trouble("no frame was answered in the measured time", "the device is too slow for it", "wait longer")
        return result

    def explain(self, picture, out, *flags):
        """What `camlens explain --json` says of a picture, whose maps are in the answer's targets by their kind."""
        flags = ["--out", out, "--server", self.address, "--json", *flags]
        for kind in distances.MAPS:
            flags += ["--map", kind.replace("_", "-")]
        done = run(self.setting, "explain", picture, *flags)
        if done.returncode:
            raise Trouble(
                f"camlens explain {ending(done.returncode)}: {last_lines(done.stderr)}",
                "the picture cannot be explained on this device",
                REPORT,
            )
        (answer,) = json.loads(done.stdout)
        for target in answer["targets"]:
            files = {kind: file for kind, file in target["files"].items() if file.endswith(".npy")}
            target["maps"] = {kind: np.load(file) for kind, file in files.items()}
        return answer


def milliseconds(result, stages, statistic="p50"):
    """What these stages of a frame take together."""
    return sum(result["stages_ms"][stage][statistic] for stage in stages)
