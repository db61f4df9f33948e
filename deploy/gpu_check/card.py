"""Memory and utilisation of the card, from outside of camlens."""

import json
import shutil
import statistics
import subprocess
import threading

from .program import run
from .report import CannotRun

PERIOD_S = 0.2


def nvidia_smi(uuid, *fields):
    """Figures of a card in nvidia-smi's units; None where it has none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, f"--id={uuid}", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20)
        return [float(word) for word in done.stdout.strip().split(",")] if done.returncode == 0 else None
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None


class Card:
    """The device that is checked, as `camlens doctor --devices` describes it."""

    def __init__(self, setting, found):
        self.setting, self.found = setting, found
        self.has_smi = not setting.fake and nvidia_smi(found["uuid"], "memory.used", "utilization.gpu") is not None

    def used_bytes(self):
        """Memory in use on the card, by whoever."""
        if self.setting.fake:
            raise CannotRun("each process has a fake device of its own")
        if self.has_smi:
            figures = nvidia_smi(self.found["uuid"], "memory.used")
            if figures:
                return int(figures[0]) << 20
        # The process that asks uses some memory, the same each time.
        devices = json.loads(self._doctor())["cuda"]["devices"]
        (own,) = [device for device in devices if device["uuid"] == self.found["uuid"]]
        return own["memory_bytes"] - own["free_bytes"]

    def _doctor(self):
        libraries = self.setting.device_libraries()
        return run(self.setting, "doctor", "--devices", "--json", "--device-libraries", libraries).stdout


class Utilisation:
    """The card's utilisation while it is open, in percent; no samples where nvidia-smi has none."""

    def __init__(self, card):
        self.card, self.samples = card, []
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        if self.card.has_smi:
            self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        if self.thread.ident:
            self.thread.join()

    def _watch(self):
        while not self.over.wait(PERIOD_S):
            figures = nvidia_smi(self.card.found["uuid"], "utilization.gpu")
            if figures:
                self.samples.append(figures[0])

    def median(self):
        return statistics.median(self.samples) if self.samples else None
