"""What a run is about: options, folders, the environment of camlens, and how long each measurement takes."""

import dataclasses
import os
import pathlib

from . import libraries
from .report import CannotRun, Trouble

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(os.environ.get("CAMLENS_BINARY", ROOT / "target/release/camlens")).absolute()
BRIDGE = "libcamlens_cuda.so"
LITE0 = ROOT / "deploy/models/efficientnet-lite0"
PHOTOGRAPHS = ROOT / "deploy/demo-assets/photographs"
FIXTURES = ROOT / "tests/fixtures/conformance"
PROTO = ROOT / "proto"
# They change what the libraries compute.
TF32 = ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")


@dataclasses.dataclass(frozen=True)
class Pace:
    """How much is measured."""

    bench_s: float          # one measurement
    warm_up_s: float
    rounds: int             # in which camlens and the peers take turns
    streams_s: float        # one load of cameras
    pictures: int
    batch: int              # the large batch
    cameras: tuple
    streams: tuple          # fewest and most whose memory is compared, and between
    models: tuple           # how many are served at once
    kernel_timing: str = "at-start"


FULL = Pace(3, 2, 5, 6, 4, 32, (16, 64), (1, 16, 64), (1, 2, 4))
QUICK = Pace(1, 1, 3, 3, 2, 32, (16, 64), (1, 16, 64), (1, 2, 4))
# On the fake device, which computes on the processor.
DRY = Pace(0.5, 0.2, 1, 0.7, 1, 4, (4, 8), (1, 4), (1, 2, 3), "never")


@dataclasses.dataclass
class Setting:
    work: pathlib.Path              # a folder of this run's own
    device: str                     # as `camlens serve --device` takes it
    fake: pathlib.Path | None       # folder of the fake device's libcamlens_cuda.so
    wheels: pathlib.Path | None
    is_quick: bool
    card: object = None             # card.Card, once the environment has been checked
    networks: object = None         # models.Networks
    notes: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        self.folders = libraries.library_folders()
        self.has_torch = bool(self.folders)
        self.pace = DRY if self.fake and self.is_quick else QUICK if self.is_quick else FULL

    @property
    def is_judged(self):
        return self.fake is None

    def on_device(self):
        """Options of `serve` for the card."""
        return ["--device", self.device, "--device-libraries", self.device_libraries()]

    def at_speed(self):
        """The same for a server whose speed is measured."""
        return ["--kernel-timing", self.pace.kernel_timing, *self.on_device()]

    def device_libraries(self):
        return ":".join(map(str, [self.fake] if self.fake else [*self.folders, BINARY.parent]))

    def environment(self, **more):
        """Of camlens: this Python's libraries first, and nothing that configures camlens or rounds to TF32.

        The fake device stands in the place of CUDA's libraries, so that they are left out beside it."""
        dropped = ("CAMLENS_", "OTEL_", "FAKE_CUDA_")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(dropped) and k not in TF32}
        folders = [] if self.fake else self.folders
        searched = [*map(str, folders), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        if searched:
            kept["LD_LIBRARY_PATH"] = ":".join(searched)
        if self.fake:
            # The first violation of order, lifetime or capture ends the process.
            kept["FAKE_CUDA_STRICT"] = "1"
        return kept | {k: str(v) for k, v in more.items()}

    def photographs(self):
        found = sorted(PHOTOGRAPHS.glob("*.*"))[: self.pace.pictures]
        if not found:
            raise Trouble(f"there are no photographs in {PHOTOGRAPHS}", "the archive is incomplete", "make it again")
        return found

    def needs_torch(self, what):
        if not self.has_torch:
            raise CannotRun(f"{what} needs PyTorch, and this Python has none")
