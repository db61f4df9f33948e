"""The archive for a machine without the repository: a part of the tree, with the built program in its place."""

import io
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile

from .setting import BINARY, BRIDGE, ROOT

MOST_BYTES = 60_000_000
TOP = "camlens-gpu-check"
CARRIED = ("deploy/gpu-check", "deploy/gpu_check", "deploy/models/efficientnet-lite0", "deploy/demo-assets/NOTICE",
           "deploy/demo-assets/photographs", "LICENSE")


class PackError(Exception):
    """Why there is no archive."""


def stripped(library, folder):
    """A copy of the file without symbols that only a debugger reads."""
    if not library.exists():
        raise PackError(f"there is no {library}: build camlens first (cargo build --release)")
    copy = pathlib.Path(folder) / library.name
    strip = shutil.which("strip")
    if strip is None:
        raise PackError("strip is missing (Debian, Ubuntu: apt-get install binutils)")
    done = subprocess.run([strip, "-o", copy, library], capture_output=True, text=True)
    if done.returncode:
        raise PackError(f"strip {library}: {done.stderr.strip()}")
    return copy


def is_carried(member):
    """Leaves out what Python and other tools keep beside the sources."""
    name = pathlib.PurePath(member.name).name
    return None if name.startswith((".", "__pycache__")) else member


def pack(out):
    """Writes the archive, compressed with gzip whatever it is called; returns its size, packed and unpacked."""
    whole = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, tarfile.open(fileobj=whole, mode="w:gz") as archive:
        for library in (BINARY, BINARY.parent / BRIDGE):
            archive.add(stripped(library, folder), f"{TOP}/target/release/{library.name}")
        for name in CARRIED:
            if not (ROOT / name).exists():
                raise PackError(f"there is no {ROOT / name}")
            archive.add(ROOT / name, f"{TOP}/{name}", filter=is_carried)
        unpacked = sum(member.size for member in archive.getmembers())
    packed = whole.getbuffer().nbytes
    if packed > MOST_BYTES:
        raise PackError(f"the archive would have {packed / 1e6:.1f} MB; at most {MOST_BYTES / 1e6:.0f} are allowed")
    pathlib.Path(out).write_bytes(whole.getbuffer())
    return packed, unpacked


def main(out):
    try:
        packed, unpacked = pack(out)
    except (PackError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{out}: {packed / 1e6:.1f} MB, {unpacked / 1e6:.1f} MB unpacked. On the machine with the card:")
    print(f"  tar xf {pathlib.Path(out).name} && {TOP}/deploy/gpu-check run")
