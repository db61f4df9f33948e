#!/usr/bin/env python3
"""Checks the tree's own rules, those that no compiler knows; prints what breaks them and exits with 1.

    tests/house/check.py            every check
    tests/house/check.py columns    only the named ones

`rooms.py` holds the table of rooms; `test_check.py` plants a violation of every rule and sees it found.
"""

import glob
import os
import pathlib
import re
import subprocess
import sys

import imports
import rooms

MOST_COLUMNS = 120
MOST_MEGABYTES = 40
TOP_LEVEL = {"Cargo.toml", "Cargo.lock", "proto", "src", "build.rs", "deploy", "tests", "README.md", "LICENSE",
             "CHANGELOG.md", "rust-toolchain.toml", "rustfmt.toml", "clippy.toml", "deny.toml", "buf.yaml"}
WRITTEN = (".rs", ".cpp", ".h", ".py", ".sh", ".md", ".proto", ".toml", ".yaml", ".yml", ".js", ".ts", ".css", ".html")
FOLDERS = r"(?:src|tests|deploy|proto|\.github|\.ci|\.cargo)"
# A path from the top of the tree, wherever it stands: `deploy/demo`, `src/{frame,render}/`, `proto/camlens/v1/*.proto`.
FROM_TOP = re.compile(rf"(?<![\w./-]){FOLDERS}/[\w./{{}},*-]*[\w/}}*]")
LINK = re.compile(r"\]\(([^)#\s]+)")
CODE_SPAN = re.compile(r"`([^`\n]+)`")
SOURCE = re.compile(r"[\w{},*-]+(?:/[\w{},.*-]+)*(?:\.(?:rs|cpp|h|py|sh|proto)|/)")


class Tree:
    """The tracked files below `root`."""

    def __init__(self, root, files=None):
        self.root = pathlib.Path(root)
        if files is None:
            listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=root, text=True)
            files = [name for name in listed.split("\0") if name and (self.root / name).is_file()]
        self.files = files

    def text(self, name):
        return (self.root / name).read_text(encoding="utf-8")

    def sources(self):
        """Rust source by its path below `src/`."""
        names = [name for name in self.files if name.startswith("src/") and name.endswith(".rs")]
        return {name.removeprefix("src/"): self.text(name) for name in names}

    def is_written(self, name):
        """Whether people write this file line by line."""
        if name.endswith(WRITTEN):
            return True
        if "." in name.rpartition("/")[2]:
            return False
        with open(self.root / name, "rb") as file:
            return file.read(2) == b"#!"


def is_in(path, folders):
    """Whether a path below `src/` belongs to one of these rooms or folders."""
    return any(path == f"{folder}.rs" or path.startswith(f"{folder}/") for folder in folders)


def is_test(path):
    return re.search(r"(^|[/_])tests?(\.rs|/|_)|(^|/)simulation/", path) is not None


def lines_of_code(text, tests=True):
    """Numbered lines without comments and the contents of literals."""
    blank = imports.code(text)
    return enumerate((blank if tests else imports.without_tests(blank)).split("\n"), 1)


# ------------------------------------------------------------------------------------------------------- the checks
def columns(tree):
    """A line has at most 120 columns. Tables, web addresses and output that is quoted in Markdown may have more."""
    for name in tree.files:
        if not tree.is_written(name):
            continue
        output = False
        for number, line in enumerate(tree.text(name).split("\n"), 1):
            if name.endswith(".md"):
                if line.lstrip().startswith("```"):
                    output = not output and line.strip() in ("```", "```text")
                if output or line.startswith(("|", "![")):
                    continue
            if len(line) > MOST_COLUMNS and not re.search(r"https?://\S{60}", line):
                yield f"{name}:{number}: {len(line)} columns; at most {MOST_COLUMNS}"


def rooms_and_arrows(tree):
    """A room imports only the rooms in its row of `rooms.py`, all of them below it; `src/lib.rs` has the same rooms."""
    order = list(rooms.ROOMS)
    for room, row in rooms.ROOMS.items():
        for other in row.split():
            if other not in order[order.index(room) + 1:]:
                yield f"tests/house/rooms.py: {room} may import {other}, which is not below it"
    for path, text in tree.sources().items():
        room = path.split("/")[0].removesuffix(".rs")
        if room in ("lib", "main"):
            continue
        if room not in rooms.ROOMS:
            yield f"src/{path}: the room {room} is not in tests/house/rooms.py"
            continue
        allowed = {room, *rooms.ROOMS[room].split()}
        for folder, more in rooms.FOLDERS.items():
            allowed |= set(more.split()) if is_in(path, [folder]) else set()
        for number, line in lines_of_code(text):
            for other in re.findall(r"\bcrate::(\w+)", line):
                if other in rooms.ROOMS and other not in allowed:
                    yield f"src/{path}:{number}: {room} must not import {other} (tests/house/rooms.py)"
            if re.search(r"\bcrate::\{", line):
                yield f"src/{path}:{number}: write one `use crate::ROOM` for each room"


def the_map(tree):
    """The map in `src/lib.rs` declares the rooms of the table and says of each where it stands."""
    text = tree.text("src/lib.rs")
    declared = set(re.findall(r"^(?:pub(?:\(crate\))? )?mod (\w+);", text, flags=re.M))
    for room in sorted(declared ^ set(rooms.ROOMS)):
        yield f"src/lib.rs: the room {room} is not both declared there and listed in tests/house/rooms.py"
    described = set(re.findall(r"^//!.*", text, flags=re.M))
    for room in sorted(declared):
        if not any(f"[`{room}`]" in line for line in described):
            yield f"src/lib.rs: the map does not mention [`{room}`]"


def purity(tree):
    """Pure rooms use no async runtime, no transport and no telemetry; some of them have no clock and no threads."""
    for path, text in tree.sources().items():
        for number, line in lines_of_code(text):
            found = re.search(r"\b(tokio|tonic|opentelemetry\w*|tracing)::", line)
            if found and is_in(path, rooms.PURE):
                yield f"src/{path}:{number}: {found[1]} in a pure room"
        if is_test(path) or not is_in(path, rooms.TIMELESS):
            continue
        for number, line in lines_of_code(text, tests=False):
            found = re.search(r"\b(Instant::now|SystemTime|thread::\w+)", line)
            if found:
                yield f"src/{path}:{number}: {found[1]}, where time is passed in"


def unsafe_code(tree):
    """Unsafe code stands where `rooms.py` says."""
    for path, text in tree.sources().items():
        for number, line in lines_of_code(text):
            if re.search(r"\bunsafe\s*(\{|fn|impl|extern)", line) and not is_in(path, rooms.UNSAFE):
                yield f"src/{path}:{number}: unsafe code is in {' and '.join(rooms.UNSAFE)} alone"


def module_style(tree):
    """A module with children is a folder with `mod.rs`: there is no `x.rs` beside `x/`."""
    folders = {str(parent) for name in tree.files for parent in pathlib.PurePosixPath(name).parents}
    for name in tree.files:
        if name.endswith(".rs") and name.removesuffix(".rs") in folders:
            yield f"{name}: move it to {name.removesuffix('.rs')}/mod.rs"


def circles(tree):
    """Files import each other in one direction."""
    for group in imports.Crate(tree.sources()).circles():
        yield "src: these files import each other in a circle: " + ", ".join(group)


def paths_in_prose(tree):
    """Files and folders that the documents name exist."""
    for name in tree.files:
        if not name.endswith(".md") or name == "CHANGELOG.md":
            continue
        folder = (tree.root / name).parent
        for number, line in enumerate(tree.text(name).split("\n"), 1):
            named = [([folder], link) for link in LINK.findall(line) if "://" not in link]
            named += [([tree.root], path) for path in FROM_TOP.findall(LINK.sub("](", line))]
            if name.startswith("src/"):
                named += [([folder, tree.root], span) for span in CODE_SPAN.findall(line)
                          if SOURCE.fullmatch(span) and not FROM_TOP.match(span)]
            for bases, path in named:
                for one in alternatives(path):
                    if not any(glob.glob(os.path.join(glob.escape(base), one)) for base in bases):
                        yield f"{name}:{number}: there is no {one}"



def alternatives(path):
    """`a/{b,c}` -> `[a/b, a/c]`."""
    found = re.search(r"\{([^{}]*)\}", path)
    if not found:
        return [path.rstrip(".,")]
    options = found[1].split(",")
    return [one for option in options for one in alternatives(path[:found.start()] + option + path[found.end():])]


def the_tree(tree):
    """The tracked tree is small, and nothing new lies at its top."""
    size = sum((tree.root / name).lstat().st_size for name in tree.files) / 1e6
    if size >= MOST_MEGABYTES:
        yield f"the tracked tree has {size:.0f} MB; less than {MOST_MEGABYTES} are allowed"
    for entry in sorted({name.split("/")[0] for name in tree.files}):
        if entry not in TOP_LEVEL and not entry.startswith("."):
            yield f"{entry} does not belong at the top level"


CHECKS = {check.__name__: check for check in (columns, rooms_and_arrows, the_map, purity, unsafe_code, module_style,
                                              circles, paths_in_prose, the_tree)}


def main(names):
    unknown = [name for name in names if name not in CHECKS]
    if unknown:
        sys.exit(f"unknown check {unknown[0]}: there are {', '.join(CHECKS)}")
    tree = Tree(pathlib.Path(__file__).resolve().parents[2])
    failed = 0
    for name in names or CHECKS:
        found = list(CHECKS[name](tree))
        failed += len(found)
        if found:
            print(f"{name}: {CHECKS[name].__doc__}", *(f"  {line}" for line in found), sep="\n", file=sys.stderr)
    if failed:
        sys.exit(f"error: {failed} violations of the tree's own rules")


if __name__ == "__main__":
    main(sys.argv[1:])
