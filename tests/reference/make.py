#!/usr/bin/env python3
"""Writes the committed conformance references, tests/fixtures/conformance.

    $(deploy/python-env reference) tests/reference/make.py [NAME...] [--out DIR]
"""

import argparse
import math
import pathlib

import torch
import write
from cases import CASES

FIXTURES = write.HERE.parent / "fixtures" / "conformance"


def shown(entry):
    right = write.right_peers(entry)
    return f"{entry['name']} {entry['size'][0]}x{entry['size'][1]} reverses {entry['reverses']}" + (
        f" = {', '.join(right)}" if right else ""
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*CASES, []], metavar="NAME", help="cases to write (default: all)")
    parser.add_argument("--out", type=pathlib.Path, default=FIXTURES)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.names or CASES:
        facts = write.write_case(args.out, name, CASES[name])
        size = sum(f.stat().st_size for f in (args.out / name).rglob("*") if f.is_file())
        print(
            f"{name}: {size // 1000} kB, "
            + (
                f"refused: {facts['refused']}"
                if facts["refused"]
                else f"rectifiers {facts['rectifiers']}, margin {facts['margin'] or math.inf:.0e}; "
                + "; ".join(map(shown, facts["layers"]))
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
