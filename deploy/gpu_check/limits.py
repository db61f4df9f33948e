"""Too little memory of the card is an error that says so, and no crash."""

from .models import LITE0
from .program import PATIENCE_S, REPORT, Server, ending, last_lines, run
from .report import Trouble

MEBIBYTE = 2**20
# Less than the weights of the bundled network take.
TOO_LITTLE_MIB = 8
LIMITS_MIB = (4, 16, 64, 128, 256, 512, 1024, 2048, 4096)
REFUSALS = {"RESOURCE_EXHAUSTED", "UNAVAILABLE"}
CRASH = "a process that ends by a signal or a panic takes every stream with it"


def check(found, setting):
    found.attempt("a limit that nothing fits in", too_small, found, setting)
    found.attempt("a limit that one batch fits in", tight, found, setting, setting.networks.main())
    found.attempt("a limit that is none", nonsense, found, setting)


def limited(setting, shelf, mebibytes):
    flags = ["--kernel-timing", "never", "--device-memory-limit", f"{mebibytes}MiB", *setting.on_device()]
    return Server(setting, shelf, *flags, config=f"[limits]\nmax_batch = {setting.pace.batch}\n")


def is_clear(code, said):
    """Whether a server has ended with an error that names memory."""
    return code > 0 and "memory" in said and "panicked" not in said


def too_small(found, setting):
    server = limited(setting, setting.networks.shelf(LITE0), TOO_LITTLE_MIB)
    server.start()
    try:
        serves = server.is_serving()
        code, said = server.stop(), server.log()
    finally:
        server.kill()
    found.demand(
        f"{LITE0} in {TOO_LITTLE_MIB} MiB: an error that names memory",
        not serves and is_clear(code, said),
        f"the server {'serves, and ' if serves else ''}{ending(code)}: {last_lines(said)}",
        "an operator who sets a limit must learn that it is too small; " + CRASH,
        REPORT,
        figures={"said": said.strip().splitlines()[-2:], "exit_code": code},
    )


def tight(found, setting, name):
    """The smallest limit that it starts with, under large batches: each frame has an ending, and it lives on."""
    shelf = setting.networks.shelf(name)
    for mebibytes in LIMITS_MIB:
        server = limited(setting, shelf, mebibytes)
        server.start()
        try:
            if server.is_serving():
                return loaded(found, setting, server, f"{name} in {mebibytes} MiB", mebibytes * MEBIBYTE)
        finally:
            server.kill()
        code, said = server.process.returncode, server.log()
        if not is_clear(code, said):
            raise Trouble(f"in {mebibytes} MiB the server {ending(code)}: {last_lines(said)}", CRASH, REPORT)
    raise Trouble(f"{name} starts with none of {LIMITS_MIB} MiB", "it needs more memory than it should", REPORT)


def loaded(found, setting, server, name, limit_bytes):
    """A server under a limit, with more frames at once than fit."""
    load = ("--payload", "tensor", "--overflow", "block")
    many = ("--streams", 4, "--in-flight", max(2, setting.pace.batch // 2))
    result = server.bench(*load, *many, timeout_s=2 * PATIENCE_S)
    after = server.bench(*load, "--in-flight", 1)
    serves, code = server.process.poll() is None, server.stop()
    frames, later = result["frames"], after["frames"]
    is_accounted = frames["accounted_for"] and set(frames["failed"]) <= REFUSALS
    found.demand(
        f"{name}, under load: endings for all, and it serves on",
        serves and code == 0 and is_accounted and later["answered"] == later["sent"],
        f"under load {frames}, then {later}; the server {ending(code)}: {last_lines(server.log())}",
        "a batch that does not fit must become a smaller one, or a refusal; " + CRASH,
        REPORT,
        figures={"frames": frames, "then": later, "mean_batch": result["batch_size"]["mean"]},
    )
    if setting.fake:
        peak = server.fake_report()["peak_reserved_bytes"]
        found.demand(
            f"{name}: the limit holds",
            peak <= limit_bytes,
            f"{peak} bytes were reserved",
            "the limit does not bound what the allocator takes",
            REPORT,
            value=peak / MEBIBYTE,
            unit="MiB",
        )


def nonsense(found, setting):
    done = run(setting, "serve", "--models", "builtin:identity", "--device-memory-limit", "much", *setting.on_device())
    found.demand(
        "a limit that cannot be read is a usage error",
        done.returncode == 2 and "memory" in done.stderr,
        f"camlens {ending(done.returncode)}: {last_lines(done.stderr)}",
        "a limit that is misread is no limit",
        REPORT,
    )
