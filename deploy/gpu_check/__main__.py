"""The command line of `deploy/gpu-check`, and the order of the checks."""

import argparse
import importlib.util
import json
import pathlib
import signal
import sys
import tempfile
import time

from . import pack, report

RUN = """Checks camlens on a card, in this order: environment, conformance, speed, streams, overlap, memory, limits. A
check that fails says what failed, what that means and what to do; the next ones still run. What cannot be run
here is listed with the reason. Exit code: 0 if everything that could run has passed, 1 if not, 2 for invalid usage."""
SCHEMA = """
The table goes to standard error, one JSON document to standard output or to FILE:
  schema       "camlens.gpu-check/1"
  passed       whether the exit code is 0
  seconds      what the run took
  options      device, fake, quick
  host         camlens, torch, torch_cuda, driver_cuda, devices: as far as known
  findings     how many there are of each status
  checks       in order; of each:
    name, status, seconds
    findings   in order; of each, as far as there is something to say:
      name
      status   "passed", "failed", "not run" (with the reason in `what`), or "not judged" (a figure without a
               target; on the fake device every figure of speed and memory)
      value, unit, target    the figure, and what is wanted of it
      what, meaning, advice  what failed, what it means, what to do
      figures  what the value was made of

Wheels of the peers, for a machine without a network: pip wheel captum grad-cam -w DIR
CAMLENS_BINARY names another program than target/release/camlens; libcamlens_cuda.so is beside it."""
NAMES = ("environment", "conformance", "speed", "streams", "overlap", "memory", "limits")


def some_of(text):
    names = text.split(",")
    for name in names:
        if name not in NAMES:
            raise argparse.ArgumentTypeError(f"there is no check {name!r}; there are {', '.join(NAMES)}")
    return names


def folder(text):
    path = pathlib.Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is no folder")
    return path.absolute()


def arguments():
    parser = argparse.ArgumentParser(prog="deploy/gpu-check")
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="make the archive for the machine with the card")
    packing.add_argument("out", metavar="OUT.tar", help="compressed with gzip; `tar xf` unpacks it")
    running = commands.add_parser(
        "run", description=RUN, epilog=SCHEMA, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = running.add_argument
    add("--wheels", type=folder, metavar="DIR", help="wheels of Captum, pytorch-grad-cam and what they need")
    add("--fake", type=folder, metavar="DIR", help="folder of the fake device's libcamlens_cuda.so: a dry run")
    add("--quick", action="store_true", help="fewer pictures, shorter measurements")
    add("--only", type=some_of, default=NAMES, metavar="NAME,…", help="these checks, after environment")
    add("--device", default="cuda:0", metavar="cuda:N", help="the card [default: cuda:0]")
    add("--json", type=pathlib.Path, metavar="FILE", help="write the JSON document there")
    return parser.parse_args()


def run(args, checks):
    """Makes the checks, one after the other, and appends each to `checks`; returns what is known about the machine.

    An interrupt ends the check that it meets, and the others are not run."""
    # They need NumPy.
    from . import conformance, environment, limits, memory, models, overlap, setting, speed, streams
    modules = (environment, conformance, speed, streams, overlap, memory, limits)
    interrupted = False
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as work:
        about = setting.Setting(pathlib.Path(work), args.device, args.fake, args.wheels, args.quick)
        about.networks = models.Networks(about)
        for name, module in zip(NAMES, modules, strict=True):
            if name not in args.only and name != "environment":
                continue
            check = report.Check(name, about.is_judged)
            checks.append(check)
            if interrupted:
                check.not_run(name, "the run was interrupted")
            elif about.card is None and name != "environment":
                check.not_run(name, "no card can be used: see the check `environment`")
            else:
                try:
                    check.attempt(name, module.check, check, about)
                except KeyboardInterrupt:
                    interrupted = True
                    check.failed(name, "the run was interrupted", advice="run it again, with --quick or --only")
            check.close()
            print(report.table(check), file=sys.stderr, flush=True)
        return about.notes


def interrupt(*_):
    raise KeyboardInterrupt


def main():
    args = arguments()
    if args.command == "pack":
        return pack.main(args.out)
    if importlib.util.find_spec("numpy") is None:
        sys.exit(f"error: {sys.executable} has no NumPy: install it, or name another interpreter with PYTHON")
    signal.signal(signal.SIGTERM, interrupt)
    began, checks = time.monotonic(), []
    host = run(args, checks)
    options = {"device": args.device, "fake": args.fake is not None, "quick": args.quick}
    seconds = round(time.monotonic() - began, 1)
    document = report.document(checks, seconds=seconds, options=options, host=host)
    text = json.dumps(document, indent=2)
    if args.json:
        args.json.write_text(text + "\n")
    else:
        print(text)
    counts = ", ".join(f"{count} {status}" for status, count in document["findings"].items())
    print(f"{'passed' if document['passed'] else 'FAILED'} in {seconds:.0f} s: {counts}", file=sys.stderr)
    sys.exit(0 if document["passed"] else 1)


if __name__ == "__main__":
    main()
