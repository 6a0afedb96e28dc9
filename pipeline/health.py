"""What this machine has for the work: libraries, devices, memory, disk, Ray, and the weights that are there.

Nothing here raises for what is missing or broken: that is what it is asked for, and is told in words. Nothing is
fetched and nothing is written.
"""

import importlib
import json
import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..shards.errors import WeakmcnError
from ..shards.fingerprint import file_sha256
from .config import PRESETS
from .encoders.published import PUBLISHED, Verification
from .encoders.weights import SHIPPED_FOLDER

LIBRARIES = (
    *("torch", "torchvision", "timm", "segment-anything", "ray", "webdataset", "pyarrow", "safetensors"),
    *("numpy", "opencv-python", "pillow", "pycocotools", "typer", "rich"),
)
"""What `pip install weakmcn` brings."""
STAND_INS = {"opencv-python": "opencv-python-headless"}
"""Another package that brings the same module."""
IMPORTED = {
    "cv2": "opencv-python",
    "torchvision": "torchvision",
    "timm": "timm",
    "segment_anything": "segment-anything",
}
"""Modules that a build for another system or another torch cannot be loaded of -> their package."""
_MENDS = {"libGL": "install the system library: apt-get install libgl1", "torchvision::": "reinstall it beside torch"}
CHECKPOINT_SUFFIXES = (".pth", ".pt", ".zip", ".safetensors", ".ckpt", ".bin")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Libraries and devices. Sizes in bytes."""

    python: str
    system: str
    versions: dict[str, str | None]
    """Library -> version; None where it is not installed."""
    import_faults: dict[str, str]
    """Module that cannot be imported -> why."""
    gpus: list[str]
    """Each CUDA device, with its memory."""
    cores: int
    memory: int | None
    memory_free: int | None
    disk_free: int
    shared_memory_free: int | None
    """Of /dev/shm, where Ray keeps its object store; None where there is none."""


def machine(folder: Path = Path()) -> Machine:
    """Look at this machine. folder: whose disk is measured."""
    faults = {module: fault for module in IMPORTED if (fault := import_fault(module))}
    shared = Path("/dev/shm")
    return Machine(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        versions={name: _version(name) or _version(STAND_INS.get(name, name)) for name in LIBRARIES},
        import_faults=faults,
        gpus=_gpus(),
        cores=len(os.sched_getaffinity(0)),
        memory=_memory("MemTotal"),
        memory_free=_memory("MemAvailable"),
        disk_free=shutil.disk_usage(folder).free,
        shared_memory_free=shutil.disk_usage(shared).free if shared.is_dir() else None,
    )


def import_fault(module: str) -> str | None:
    """Why a module cannot be imported, and the mend where it is known; None where it can."""
    try:
        importlib.import_module(module)
    except Exception as fault:  # a shared library of another build fails in its own ways
        said = " ".join(str(fault).split())[:120]
        package = IMPORTED.get(module, module)
        mend = next((mend for sign, mend in _MENDS.items() if sign in said), f"pip install {package}")
        return f"{said or type(fault).__name__}; {mend}"
    return None


def ray_fault() -> str | None:
    """Start Ray with one actor and stop it again; why that failed, or None."""
    from .executor import RayExecutor

    try:
        with RayExecutor(workers=1):
            return None
    except WeakmcnError as fault:
        return str(fault)


def shipped_faults(folder: Path = SHIPPED_FOLDER) -> tuple[int, list[str]]:
    """How many pocket weights ship with the package, and what is wrong with them, a line each."""
    try:
        records = json.loads((folder / "weights.json").read_text("utf-8"))
        digests = {name: record["sha256"] for name, record in records.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0, [f"{folder / 'weights.json'}: cannot be read; install weakmcn again"]
    faults = []
    for name, digest in digests.items():
        path = folder / f"{name}.safetensors"
        if not path.is_file():
            faults.append(f"{path}: missing; install weakmcn again")
        elif file_sha256(path) != digest:
            faults.append(f"{path}: differs from what was shipped; install weakmcn again")
    return len(digests), faults


def checkpoint_files(folder: Path) -> list[Path]:
    """The published files as they would lie in `folder`, then whatever else there looks like a checkpoint."""
    published = [folder / name for name in PUBLISHED]
    others = folder.iterdir() if folder.is_dir() else ()
    return published + sorted(
        path for path in others if path.name not in PUBLISHED and path.suffix in CHECKPOINT_SUFFIXES and path.is_file()
    )


def presets_of(seen: Verification) -> list[str]:
    """The presets whose default networks include this published file."""
    if seen.published is None:
        return []
    file, section = seen.published.file, seen.published.stage
    return [name for name, config in PRESETS.items() if Path(getattr(config, section).checkpoint).name == file]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _gpus() -> list[str]:
    import torch

    if not torch.cuda.is_available():
        return []
    devices = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return [f"{device.name}, {device.total_memory / 1e9:.0f} GB" for device in devices]


def _memory(name: str) -> int | None:
    """A line of /proc/meminfo, in bytes; None on systems without it."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
    except (OSError, StopIteration):
        return None
