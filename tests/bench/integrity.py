"""What believing nothing costs beside reading, for the docs: `just bench integrity`.

A store of random values at the paper's sizes. Processor time of one core, so that other work on the machine counts
little: hashing for `weakmcn store verify`, and what a precompute looks at when it begins. What comparing checksums at
first touch costs a training is told by `just bench side`.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from weakmcn.shards.family import Family
from weakmcn.shards.store import Store

from .paper_store import make_store

IMAGES = 64


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="weakmcn-bench-") as folder:
        store = Store.open(make_store(Path(folder) / "store", images=IMAGES, shards=1))
        mb = sum(file.stat().st_size for file in store.path.rglob("*.tar")) / 1e6
        verified_s = _cpu_s(store.verify)
        folders = [family.folder for family in store.families.values()]
        opened_s = _cpu_s(lambda: [Family.open(each).finished() for each in folders])
    sys.stdout.write(
        f"{IMAGES} images, {mb / IMAGES:.1f} MB each\n"
        f"store verify: {mb / verified_s:,.0f} MB a second\n"
        f"what is finished, at the start of a precompute: {1e3 * opened_s:.0f} ms\n"
    )


def _cpu_s(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    main()
