"""What every bench does alike: variants in turn in one run, medians, ratios, the machine, a table and a JSON file.

Machines are noisy, so a figure is a ratio of two things measured side by side: each round runs every variant once, one
after the other, after a round that is not counted.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

REPEATS = 5


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What the repeats of one variant took."""

    wall_s: list[float]
    cpu_s: list[float]
    """Processor time of this process, all its threads."""

    @property
    def median_s(self) -> float:
        return median(self.wall_s)

    @property
    def cpu_median_s(self) -> float:
        return median(self.cpu_s)

    @property
    def range_s(self) -> tuple[float, float]:
        return min(self.wall_s), max(self.wall_s)


def in_turn(
    variants: Mapping[str, Callable[[], object]],
    *,
    repeats: int = REPEATS,
    warm: int = 1,
    before: Callable[[], object] = lambda: None,
) -> dict[str, Timing]:
    """Run every variant once a round, `repeats` rounds after `warm` rounds that are not counted.

    before: called ahead of each, not counted. On a GPU a variant must wait for its own work (torch.cuda.synchronize)
    before it returns.
    """
    wall: dict[str, list[float]] = {name: [] for name in variants}
    cpu: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(-warm, repeats):
        for name, work in variants.items():
            before()
            wall_0, cpu_0 = time.perf_counter(), time.process_time()
            work()
            wall_1, cpu_1 = time.perf_counter(), time.process_time()
            if turn >= 0:
                wall[name].append(wall_1 - wall_0)
                cpu[name].append(cpu_1 - cpu_0)
    return {name: Timing(wall_s=wall[name], cpu_s=cpu[name]) for name in variants}


def ratio(slow: Timing, fast: Timing) -> tuple[float, float, float]:
    """How many times `slow` takes of `fast`, round by round: median, smallest, largest."""
    each = [a / b for a, b in zip(slow.wall_s, fast.wall_s, strict=True)]
    return median(each), min(each), max(each)


def machine() -> dict[str, Any]:
    """What the figures were measured on: processor, cores in use, memory, libraries, GPU."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "gpu": gpu,
        **{name: _version(name) for name in ("torch", "numpy", "webdataset", "ray")},
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def told(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, notes: Sequence[str] = ()) -> None:
    """Print one table, its notes, and the machine."""
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row))
    console = Console(highlight=False)
    console.print(table)
    for note in notes:
        console.print(note, soft_wrap=True, markup=False)
    has = machine()
    console.print(
        f"{has['processor']}, {has['cores']} cores, {has['torch_threads']} torch threads, {has['memory_gib']} GiB, "
        f"torch {has['torch']}, {has['gpu'] or 'no GPU'}",
        soft_wrap=True,
        markup=False,
    )


def written(out: Path, name: str, timings: Mapping[str, Timing], **facts: Any) -> None:
    """Write what was measured beside the machine, and say where."""
    record = {
        "bench": name,
        "command": " ".join(["just bench", name, *sys.argv[1:]]),
        "machine": machine(),
        "timings": {variant: asdict(timing) for variant, timing in timings.items()},
        **facts,
    }
    out.write_text(json.dumps(record, indent=2) + "\n")
    Console().print(f"{out}", markup=False)
