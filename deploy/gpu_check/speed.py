"""ResNet-50 on the card: beside Captum and pytorch-grad-cam, in bfloat16, and a whole pass beside its forward run."""

import contextlib
import json
import statistics
import subprocess
import sys

from .models import RESNET50
from .program import ON_DEVICE, PASS, Server, last_lines, milliseconds
from .report import CannotRun, Trouble

PER_SECOND_IN_BFLOAT16 = 2000
MOST_TIMES_FORWARD = 2.3
# Least ratio of a peer's time to camlens's, for one row and for a large batch.
ONE_ROW = {"pytorch-grad-cam": 6, "captum": 4}
MANY_ROWS = {"pytorch-grad-cam": 3, "captum": 3}
SLOW = "the card waits for the processor, or an operator has no fused kernel: look at the stages and at `camlens trace`"
# A single batch of that many frames at a time: nobody waits for another.
ALONE = "[limits]\nmax_batch = {rows}\nmax_batch_delay_ms = 100\n"
TENSOR = ("--payload", "tensor", "--map", "guided-grad-cam", "--target", "7")


def check(found, setting):
    name = setting.networks.main()
    if name != RESNET50:
        found.not_run("speed of ResNet-50", f"it needs PyTorch and a card; the figures below are of {name}")
    for rows in (1, setting.pace.batch):
        found.attempt(f"beside the peers, batch of {rows}", beside_peers, found, setting, name, rows)
        found.attempt(f"reverse beside forward, batch of {rows}", times_forward, found, setting, name, rows)
    found.attempt("frames per second in bfloat16", in_bfloat16, found, setting, name)


def load(rows):
    """Streams and frames in flight that keep two batches of `rows` in work; one frame where `rows` is 1."""
    return ("--in-flight", 1) if rows == 1 else ("--streams", 4, "--connections", 2, "--in-flight", rows // 2)


def alone(rows):
    """Frames in flight for one batch of `rows` at a time."""
    return ("--in-flight", 1) if rows == 1 else ("--streams", 2, "--in-flight", rows // 2)


class Peers:
    """`peers.py` as a process; as a context manager it is ended."""

    def __init__(self, setting, rows):
        if setting.fake:
            raise CannotRun("the peers need a card")
        setting.needs_torch("the comparison with Captum and pytorch-grad-cam")
        command = [sys.executable, "-W", "ignore", "-m", "gpu_check.peers", "--rows", str(rows)]
        command += ["--device", setting.device, "--seconds", "1"]
        more = installed(setting)
        command += ["--more", str(more)] if more else []
        self.errors = open(setting.work / "peers.log", "w+")
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )

    def __enter__(self):
        self.ready = self._answer()
        return self

    def __exit__(self, *_):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.errors.close()

    def seconds(self, run):
        with contextlib.suppress(BrokenPipeError):      # `_answer` says why it ended
            print(run, file=self.process.stdin, flush=True)
        return self._answer()["seconds"]

    def _answer(self):
        for line in self.process.stdout:
            # Libraries print there too.
            if line.startswith("{"):
                return json.loads(line)
        self.errors.seek(0)
        raise Trouble(
            f"the process of the peers ended: {last_lines(self.errors.read())}",
            "PyTorch itself failed on the card",
            "read the last lines",
        )


def installed(setting):
    """A folder with the packages of `--wheels`, installed without network and PyTorch; None without wheels."""
    if setting.wheels is None:
        return None
    folder = setting.work / "packages"
    if folder.is_dir():
        return folder
    brought = ("torch-", "nvidia_", "triton-")
    wheels = [wheel for wheel in sorted(setting.wheels.glob("*.whl")) if not wheel.name.startswith(brought)]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", folder]
    done = subprocess.run([*command, *wheels], capture_output=True, text=True, timeout=600)
    if not wheels or done.returncode:
        raise Trouble(
            f"no package could be installed from {setting.wheels}: {last_lines(done.stderr)}",
            "the peers are compared only if they can be imported",
            "fill the folder on a machine with a network: pip wheel captum grad-cam -w DIR",
        )
    return folder


def batch_ms(result, rows):
    """What a client waits for one frame; or the time that as many frames take as a peer takes at once."""
    return result["latency_ms"]["p50"] if rows == 1 else 1e3 * rows / result["answered_hz"]


def beside_peers(found, setting, name, rows):
    """Rounds in which camlens and the peers take turns; ratios are those of each round."""
    own, ratios, peers_ms = [], {}, {}
    config = f"[limits]\nmax_batch = {rows}\n"
    server = Server(setting, setting.networks.shelf(name), *setting.at_speed(), config=config)
    try:
        with Peers(setting, rows) as peers, server:
            runs = [run + more for run in peers.ready["runs"] for more in ("", "-tf32")]
            for _ in range(setting.pace.rounds):
                result = server.measure(*TENSOR, *load(rows))
                own.append(batch_ms(result, rows))
                for run in runs:
                    peer_ms = 1e3 * peers.seconds(run)
                    peers_ms.setdefault(run, []).append(peer_ms)
                    ratios.setdefault(run, []).append(peer_ms / own[-1])
            cannot = peers.ready["cannot"]
    except CannotRun as reason:
        with server:
            result = server.measure(*TENSOR, *load(rows))
        own = [batch_ms(result, rows)]
        cannot = dict.fromkeys(ONE_ROW, str(reason))
    found.figure(
        f"Guided Grad-CAM of {name}, batch of {rows}",
        statistics.median(own),
        "ms",
        figures={
            "each_round_ms": own,
            "mean_batch": result["batch_size"]["mean"],
            "frames_per_second": result["answered_hz"],
            "on_the_device_ms": milliseconds(result, ON_DEVICE),
            "stages_p50_ms": {stage: figures["p50"] for stage, figures in result["stages_ms"].items()},
        },
    )
    for peer, least in (ONE_ROW if rows == 1 else MANY_ROWS).items():
        if peer in cannot:
            found.not_run(f"times faster than {peer}, batch of {rows}", cannot[peer])
            continue
        rounded = f"{peer}-tf32"
        found.judge(
            f"times faster than {peer}, batch of {rows}",
            statistics.median(ratios[peer]),
            "x",
            least=least,
            meaning="camlens is less far ahead of autograd than it should be, in float32 on both sides",
            advice=SLOW,
            figures={
                "each_round": ratios[peer],
                "peer_ms": statistics.median(peers_ms[peer]),
                "peer_with_tf32_ms": statistics.median(peers_ms[rounded]),
                "ratio_to_peer_with_tf32": statistics.median(ratios[rounded]),
                "eager_forward_ms": statistics.median(peers_ms["forward"]),
            },
        )


def times_forward(found, setting, name, rows):
    """An explained pass beside the forward run of the same plan, on the device's own clock."""
    config = ALONE.format(rows=rows)
    with Server(setting, setting.networks.shelf(name), *setting.at_speed(), config=config) as server:
        whole = server.measure(*TENSOR, *alone(rows))
        forward = server.measure("--payload", "tensor", "--predictions-only", *alone(rows))
    forward_ms, whole_ms = forward["stages_ms"]["forward"]["p50"], milliseconds(whole, PASS)
    found.judge(
        f"an explained pass beside its forward run, batch of {rows}",
        whole_ms / forward_ms,
        "x",
        most=MOST_TIMES_FORWARD,
        meaning="the reverse run costs more than the forward run and a third",
        advice=SLOW,
        figures={
            "forward_ms": forward_ms,
            "pass_ms": whole_ms,
            "mean_batch": [forward["batch_size"]["mean"], whole["batch_size"]["mean"]],
        },
    )


def in_bfloat16(found, setting, name):
    rows = setting.pace.batch
    shelf = setting.networks.shelf(name, precision="bfloat16")
    many = ("--streams", "8", "--connections", "4", "--in-flight", str(max(2, rows // 4)), "--element", "uint8")
    frames = ("--payload", "raw", "--size", "224x224", "--precision", "bfloat16")
    with Server(setting, shelf, "--max-batch", rows, *setting.at_speed()) as server:
        heat = server.measure(*frames, *many, "--map", "grad-cam")
        guided = server.measure(*frames, *many, "--map", "guided-grad-cam")
    found.judge(
        f"{name} in bfloat16, uint8 heat maps of 224 x 224",
        heat["answered_hz"],
        "frames/s",
        least=PER_SECOND_IN_BFLOAT16,
        meaning="the target is that of an H100 or H200; a smaller card, or a host with few cores, answers fewer",
        advice="see in figures.stages_p50_ms whether the card or the host takes the time",
        figures={
            "mean_batch": heat["batch_size"]["mean"],
            "server_cores": (heat["processor"] or {}).get("used"),
            "stages_p50_ms": {stage: figures["p50"] for stage, figures in heat["stages_ms"].items()},
        },
    )
    found.figure(
        f"{name} in bfloat16, uint8 Guided Grad-CAM", guided["answered_hz"], "frames/s",
        figures={"mean_batch": guided["batch_size"]["mean"]},
    )
