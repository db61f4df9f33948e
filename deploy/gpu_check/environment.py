"""Driver, cards, PyTorch, libraries: what everything else stands on."""

import json
import re
import subprocess
import sys

from . import libraries
from .card import Card
from .program import REPORT, ending, last_lines, run
from .report import Trouble
from .setting import BINARY, BRIDGE

TORCH, CUDA = "2.11", "13"
# What PyTorch's build for CUDA 13 is compiled for begins here.
LEAST_CAPABILITY = (7, 5)


def check(found, setting):
    found.attempt("the program starts", program_starts, found, setting)
    found.attempt("PyTorch", pytorch, found, setting)
    found.attempt("a card can be used", card_is_there, found, setting)


def program_starts(found, setting):
    done = run(setting, "--version")
    if done.returncode:
        raise Trouble(
            f"camlens {ending(done.returncode)}: {last_lines(done.stderr)}",
            "the dynamic linker does not find what the program needs: libtorch of this Python, or a C library that is "
            "as new as that of the machine that built camlens",
            f"install PyTorch {TORCH} for this Python; if GLIBC or GLIBCXX is named, build camlens on an older system",
        )
    setting.notes["camlens"] = done.stdout.strip()
    found.passed("the program starts", what=done.stdout.strip())


def pytorch(found, setting):
    name = f"PyTorch {TORCH} for CUDA {CUDA}"
    if not setting.has_torch:
        if setting.fake:
            return found.not_run(name, "this Python has no PyTorch; what needs it is left out below, by name")
        raise Trouble(
            f"{sys.executable} has no PyTorch",
            "camlens computes with the libraries of that installation",
            f"install PyTorch {TORCH}, or name the interpreter that has it: PYTHON=/path/to/python3",
        )
    version, cuda = libraries.torch_version(), cuda_of_torch()
    setting.notes |= {"torch": version, "torch_cuda": cuda}
    found.demand(
        name,
        re.match(rf"{re.escape(TORCH)}(\.|$)", version or "") and (cuda or "").split(".")[0] == CUDA,
        f"this Python has PyTorch {version} for CUDA {cuda}",
        "camlens calls libtorch's C++ functions, which change from version to version",
        f"install PyTorch {TORCH} for CUDA {CUDA}, or build camlens for the version that is there",
        figures={"version": version, "cuda": cuda, "folders": [str(folder) for folder in setting.folders]},
    )


def cuda_of_torch():
    """The version of CUDA that PyTorch was built for, read from its `version.py`; None for a build without CUDA."""
    (folder, *_) = libraries.folder_of("torch")
    text = (folder / "version.py").read_text()
    stated = re.search(r"^cuda\b[^=]*=\s*'([\d.]+)'", text, flags=re.MULTILINE)
    return stated[1] if stated else None


def card_is_there(found, setting):
    if not setting.fake and not (BINARY.parent / BRIDGE).exists():
        raise Trouble(f"{BRIDGE} is not beside {BINARY}", "camlens was built without CUDA", "build it with CUDA")
    done = run(setting, "doctor", "--devices", "--json", "--device-libraries", setting.device_libraries())
    if done.returncode:
        raise Trouble(f"camlens doctor {ending(done.returncode)}: {last_lines(done.stderr)}", "", REPORT)
    cuda = json.loads(done.stdout)["cuda"]
    problem = cuda.get("problem")
    if problem:
        raise Trouble(problem, *diagnosis(problem, cuda.get("advice"), setting))
    setting.notes |= {"driver_cuda": cuda["driver"], "devices": cuda["devices"]}
    found.passed("the driver and the libraries load", value=cuda["driver"] / 1000, unit="CUDA")
    own = [device for device in cuda["devices"] if device["name"] == setting.device]
    if not own:
        names = ", ".join(device["name"] for device in cuda["devices"])
        raise Trouble(f"there is no {setting.device}", f"there are: {names}", "choose one with --device")
    device = own[0]
    if device["problem"]:
        raise Trouble(f"{device['name']}: {device['problem']}", *diagnosis(device["problem"], None, setting))
    figures = {k: device[k] for k in ("model", "uuid", "memory_bytes", "free_bytes", "multiprocessors", "mig", "mps")}
    capability = tuple(map(int, device["compute_capability"].split(".")))
    found.demand(
        f"compute capability of {device['model']}",
        capability >= LEAST_CAPABILITY,
        f"compute capability {device['compute_capability']}",
        f"PyTorch {TORCH} for CUDA {CUDA} has no kernels for this card",
        "use a card of compute capability 7.5 or more",
        value=float(device["compute_capability"]),
        figures=figures,
    )
    setting.card = Card(setting, device)
    found.figure("memory of the card, free", device["free_bytes"] / 2**30, "GiB")


def diagnosis(problem, advice, setting):
    """What a problem that camlens names means, and what to do."""
    if "libtorch_cuda.so is not in" in problem:
        return "this PyTorch is a build without CUDA, or there is none", f"install PyTorch {TORCH} for CUDA {CUDA}"
    if "no NVIDIA driver" in problem or "driver version is insufficient" in problem:
        return (
            f"this process does not reach a driver that is new enough for CUDA {CUDA}; PyTorch says: {asked(setting)}",
            advice or "install the driver (580 or newer); in a container, start it with the card (--gpus all)",
        )
    if "finds no device" in problem:
        return "the driver hides its cards", advice or "look at CUDA_VISIBLE_DEVICES and at the container's devices"
    if "another version" in problem:
        return f"{BRIDGE} and camlens come from different builds", "copy both from one build"
    if "cannot be loaded" in problem:
        return "a library that it needs is missing, or is another version", f"reinstall PyTorch {TORCH} with its wheels"
    return f"CUDA cannot be used; PyTorch says: {asked(setting)}", advice or REPORT


def asked(setting):
    """Whether PyTorch itself can use a card, in its own words."""
    if not setting.has_torch:
        return "nothing, it is not installed"
    script = "import torch; torch.cuda.init(); print(torch.cuda.device_count(), 'devices')"
    command = [sys.executable, "-W", "ignore", "-c", script]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    except subprocess.TimeoutExpired:
        return "nothing for three minutes"
    return last_lines(done.stdout or done.stderr, 1)
