#!/usr/bin/env python3
"""Packs and unpacks the fuzz targets' corpora, tests/fuzz/corpus/TARGET.zip.

    tests/fuzz/corpus.py unpack TARGET FOLDER     writes every input of the archive into FOLDER
    tests/fuzz/corpus.py add TARGET FILE...       adds inputs to the archive; one of the same name is replaced
    tests/fuzz/corpus.py remove TARGET NAME...    takes inputs out of the archive
    tests/fuzz/corpus.py list TARGET              names the inputs and their sizes in bytes

The same inputs give the same archive, with one zlib byte for byte: they are sorted by name and have a fixed date.
"""

import pathlib
import sys
import zipfile

CORPUS = pathlib.Path(__file__).resolve().parent / "corpus"


def read(archive):
    """The archive's inputs by name; none if there is no archive."""
    if not archive.exists():
        return {}
    with zipfile.ZipFile(archive) as packed:
        return {name: packed.read(name) for name in packed.namelist()}


def write(archive, inputs):
    """Replaces the archive. The new file takes the old one's name only when it is complete."""
    archive.parent.mkdir(exist_ok=True)
    made = archive.with_suffix(".new")
    with zipfile.ZipFile(made, "w") as packed:
        for name in sorted(inputs):
            packed.writestr(zipfile.ZipInfo(name), inputs[name], zipfile.ZIP_DEFLATED, compresslevel=9)
    made.replace(archive)


def main():
    command, target, *names = sys.argv[1:] if len(sys.argv) > 2 else sys.exit(__doc__)
    archive = CORPUS / f"{target}.zip"
    inputs = read(archive)
    if command == "unpack" and len(names) == 1:
        folder = pathlib.Path(names[0])
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in inputs.items():
            (folder / name).write_bytes(data)
    elif command == "add" and names:
        write(archive, inputs | {pathlib.Path(name).name: pathlib.Path(name).read_bytes() for name in names})
    elif command == "remove" and names:
        if unknown := set(names) - inputs.keys():
            sys.exit(f"error: {archive.name} has no {', '.join(sorted(unknown))}")
        write(archive, {name: data for name, data in inputs.items() if name not in names})
    elif command == "list" and not names:
        for name, data in inputs.items():
            print(f"{len(data):8} {name}")
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
