"""Where this Python keeps libtorch and CUDA's libraries, found without importing PyTorch."""

import importlib.metadata
import importlib.util
import pathlib


def folder_of(package):
    """The folders of a package; none if it is not installed."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return []
    return [pathlib.Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []


def torch_folder():
    """`torch/lib`, or None where this Python has no PyTorch."""
    found = [folder / "lib" for folder in folder_of("torch") if (folder / "lib" / "libtorch_cpu.so").exists()]
    return found[0] if found else None


def torch_version():
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None


def library_folders():
    """`torch/lib` and the folders of NVIDIA's wheels, in the order in which they are to be searched."""
    torch = torch_folder()
    if torch is None:
        return []
    return [torch, *sorted(lib for folder in folder_of("nvidia") for lib in folder.glob("*/lib") if lib.is_dir())]
