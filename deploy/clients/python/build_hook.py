"""Generates `camlens/v1/` from the proto files when the wheel is built.

Generated code is not committed: it would have to be made again with every change of the protocol, and a stale copy is a
wrong client. The wheel carries it, so that users need no protoc.
"""

import pathlib
import tempfile

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CustomBuildHook(BuildHookInterface):
    def initialize(self, version, build_data):
        here = pathlib.Path(self.root)
        # The repository's own files, or the copy in a source distribution.
        proto = next(path for path in (here / "../../../proto", here / "proto") if (path / "camlens/v1").is_dir())
        self.folder = tempfile.TemporaryDirectory()
        out = pathlib.Path(self.folder.name)
        generate(proto.resolve(), out)
        for file in sorted((out / "camlens/v1").iterdir()):
            build_data["force_include"][str(file)] = f"camlens/v1/{file.name}"

    def finalize(self, version, build_data, artifact_path):
        self.folder.cleanup()


def generate(proto: pathlib.Path, out: pathlib.Path) -> None:
    """Writes modules and type stubs of `camlens.v1` below `out`."""
    from grpc_tools import protoc

    files = sorted(str(path.relative_to(proto)) for path in (proto / "camlens/v1").glob("*.proto"))
    include = pathlib.Path(protoc.__file__).parent / "_proto"
    arguments = ["protoc", f"-I{proto}", f"-I{include}"]
    arguments += [f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}", *files]
    if protoc.main(arguments) != 0:
        raise RuntimeError(f"protoc refused the files in {proto}")
    (out / "camlens/v1/__init__.py").write_text('"""Messages and stubs of the protocol, generated from proto/."""\n')
