"""A photograph that takes all memory: Ray ends its worker, the photograph is left out by name, all others are encoded.

As a program, with one line of JSON:  python -m tests.soak.memory FOLDER COUNT SEED
"""

import json
import os
import sys
from pathlib import Path

from rich.console import Console
from weakmcn.pipeline.precompute import precompute
from weakmcn.shards import faults

from ..tiny import IMAGES, write_data, write_weights

LIMIT = "0.35"
"""Share of the machine's memory at which Ray ends a worker here: soon, and before anything else on it suffers."""


def exhaust(folder: Path, key: str) -> list[str]:
    """Encode the photographs, one of which takes memory without end; what went wrong."""
    os.environ |= {"RAY_memory_usage_threshold": LIMIT, "RAY_memory_monitor_refresh_ms": "100"}
    os.environ[faults.VARIABLE] = f"memory@encode:{key}"
    report = precompute(
        write_weights(folder / "weights"),
        store=folder / "store",
        data=write_data(folder / "data"),
        dataset="refcoco",
        splits=["train", "val"],
        stages=["dino"],
        executor="ray",
        workers=1,
        skip_bad=True,
        console=Console(quiet=True),
    )
    wrong = [f"shard {failure.shard} failed: {failure.reason}" for failure in report.failures]
    if list(report.left_out) != [key] or "lack of memory" not in report.left_out[key]:
        wrong.append(f"left out: {report.left_out}")
    if report.images != {"dino": IMAGES - 1}:
        wrong.append(f"encoded: {report.images}")
    return wrong


if __name__ == "__main__":
    number = 1 + int(sys.argv[3]) % IMAGES
    sys.stdout.write(json.dumps({"kills": 1, "faults": exhaust(Path(sys.argv[1]), f"{number:012d}")}) + "\n")
