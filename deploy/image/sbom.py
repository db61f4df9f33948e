"""Prints the SBOM of an image's root folder: CycloneDX 1.6, as JSON.

    "$(deploy/python-env deploy)" deploy/image/sbom.py ROOT cpu|cuda

It lists the crates that are linked (of Cargo.lock), the libraries beside the binary with their SHA-256, and Debian's
packages, and is checked against the schema of CycloneDX. It has neither time nor random number: the same files give the
same bytes.
"""

import hashlib
import json
import pathlib
import re
import subprocess
import sys

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

TOP = pathlib.Path(__file__).resolve().parents[2]


def crates():
    """The packages of crates.io that the program links, as `cargo metadata` resolves them; and camlens's version."""
    target = ["--filter-platform", "x86_64-unknown-linux-gnu"]
    command = ["cargo", "metadata", "--format-version", "1", "--locked", *target]
    metadata = json.loads(subprocess.check_output(command, cwd=TOP))
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    root = metadata["resolve"]["root"]
    linked, waiting = set(), [root]
    while waiting:
        for dependency in nodes[waiting.pop()]["deps"]:
            normal = any(kind["kind"] is None for kind in dependency["dep_kinds"])
            if normal and dependency["pkg"] not in linked:
                linked.add(dependency["pkg"])
                waiting.append(dependency["pkg"])
    lock = (TOP / "Cargo.lock").read_text()
    sums = dict(((name, version), digest) for name, version, digest in re.findall(
        r'name = "(.+)"\nversion = "(.+)"\nsource = ".+"\nchecksum = "(.+)"', lock))
    return packages[root], sorted((crate(packages[one], sums) for one in linked), key=lambda c: c["bom-ref"])


def crate(package, sums):
    purl = f"pkg:cargo/{package['name']}@{package['version']}"
    made = {"type": "library", "bom-ref": purl, "name": package["name"], "version": package["version"], "purl": purl}
    if digest := sums.get((package["name"], package["version"])):
        made["hashes"] = [{"alg": "SHA-256", "content": digest}]
    if package["license"]:
        made["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
    return made


def libraries(root):
    """The shared libraries of the wheels, and the C++ that is camlens's own."""
    torch = re.search(r"^torch_version=(.+)$", (TOP / "deploy/libtorch").read_text(), re.M)[1]
    for file in sorted((root / "usr/local/lib").iterdir()):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        made = {"type": "library", "bom-ref": f"file:{file.name}", "name": file.name,
                "hashes": [{"alg": "SHA-256", "content": digest}]}
        if file.name.startswith(("libtorch", "libc10")):
            made |= {"version": torch, "purl": f"pkg:pypi/torch@{torch}", "licenses": [{"expression": "BSD-3-Clause"}]}
        elif file.name.startswith("libgomp"):
            made["licenses"] = [{"expression": "GPL-3.0-or-later WITH GCC-exception-3.1"}]
        elif file.name.startswith("libcamlens"):
            made["licenses"] = [{"expression": "Apache-2.0 OR MIT"}]
        else:
            made["licenses"] = [{"license": {"name": "NVIDIA Software License Agreement"}}]
        yield made


def debian(root):
    """The packages whose files are in the image, as their control files say."""
    for file in sorted((root / "var/lib/dpkg/status.d").iterdir()):
        fields = dict(line.split(": ", 1) for line in file.read_text().split("\n") if re.match(r"[\w-]+: ", line))
        name, version, machine = fields["Package"], fields["Version"], fields["Architecture"]
        purl = f"pkg:deb/debian/{name}@{version.replace('+', '%2B')}?arch={machine}"
        yield {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def main():
    root, device = pathlib.Path(sys.argv[1]), sys.argv[2]
    package, linked = crates()
    binary = hashlib.sha256((root / "usr/local/bin/camlens").read_bytes()).hexdigest()
    camlens = {"type": "application", "bom-ref": "camlens", "name": "camlens", "version": package["version"],
               "licenses": [{"expression": package["license"]}],
               "hashes": [{"alg": "SHA-256", "content": binary}],
               "properties": [{"name": "camlens:device", "value": device}]}
    components = [*linked, *libraries(root), *debian(root)]
    document = {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "metadata": {"component": camlens},
                "components": components,
                "dependencies": [{"ref": "camlens", "dependsOn": [one["bom-ref"] for one in components]}]}
    text = json.dumps(document, indent=1, ensure_ascii=False)
    if (wrong := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)) is not None:
        sys.exit(f"error: the SBOM is not valid: {wrong}")
    print(text)


if __name__ == "__main__":
    main()
