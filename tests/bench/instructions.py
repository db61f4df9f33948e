#!/usr/bin/env python3
"""Counts instructions and allocations of the work on a frame besides the model, and compares with instructions.json.

    tests/bench/instructions.py            fails if a case takes 3 % more instructions or any more allocations
    tests/bench/instructions.py --accept   records the counts: for a change that is meant to cost more, or that saves

Needs valgrind (Debian, Ubuntu: apt-get install valgrind); without it, prints that nothing was compared.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
BASELINE = ROOT / "tests/bench/instructions.json"
ALLOWED = 1.03


def binary():
    command = ["cargo", "bench", "--locked", "--no-run", "--bench", "instructions", "--message-format", "json"]
    built = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    messages = [json.loads(line) for line in built.splitlines() if line.startswith("{")]
    (found,) = [m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "instructions"]
    return found


def cases():
    text = (ROOT / "tests/bench/instructions.rs").read_text()
    return re.search(r"^cases! \{(.*?)^\}", text, re.M | re.S).group(1).split()


def count(program, names):
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/callgrind.out"
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", "--collect-atstart=no"]
        command += [f"--toggle-collect=instructions::{name}" for name in names]
        # libtorch starts no threads here, and those of OpenMP would only wait.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "LD_LIBRARY_PATH": str(ROOT / ".libtorch/lib")}
        ran = subprocess.run([*command, program], env=environment, capture_output=True, text=True)
        if ran.returncode:
            sys.exit(f"{program} does not run under valgrind:\n{ran.stderr}")
        told = subprocess.run(["callgrind_annotate", "--inclusive=yes", "--threshold=100", out], check=True,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    found = {}
    for line in told.splitlines():
        match = re.match(r"\s*([\d,]+)\b.*?:instructions::(\w+)", line)
        if match and match.group(2) in names:
            found.setdefault(match.group(2), {"instructions": int(match.group(1).replace(",", ""))})
    for name, allocations in (line.split() for line in ran.stdout.splitlines()):
        if name in found:
            found[name]["allocations"] = int(allocations)
    return found


def main():
    if not shutil.which("valgrind"):
        print("instructions are not counted: there is no valgrind here (Debian, Ubuntu: apt-get install valgrind)")
        return 0
    names = cases()
    found = count(binary(), names)
    if missing := [name for name in names if name not in found]:
        print(f"callgrind does not know {', '.join(missing)}")
        return 1
    if sys.argv[1:] == ["--accept"]:
        BASELINE.write_text(json.dumps(found, indent=2) + "\n")
        return 0
    written, worse = json.loads(BASELINE.read_text()), []
    for name in names:
        now, before = found[name], written.get(name, {"instructions": 0, "allocations": 0})
        print(f"{name:<28}{now['instructions']:>12,} instructions of {before['instructions']:,}, "
              f"{now['allocations']} allocations of {before['allocations']}")
        if now["instructions"] > ALLOWED * before["instructions"] or now["allocations"] > before["allocations"]:
            worse.append(name)
    if worse:
        print(f"more than is written down: {', '.join(worse)}. If that is meant: tests/bench/instructions.py --accept")
    if gone := sorted(set(written) - set(names)):
        print(
            f"recorded, but no longer a case: {', '.join(gone)}. If intended: tests/bench/instructions.py --accept"
        )
    return 1 if worse or gone else 0


if __name__ == "__main__":
    sys.exit(main())
