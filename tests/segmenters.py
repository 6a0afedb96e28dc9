"""SAM's ViT-B, L and H at their own sizes through `precompute`, and how much memory that takes.

Weights are random. The detector beside them is a thin one: at its own size it is in test_cached_online.py, here it only
proposes the boxes.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os import getpid
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import nn
from weakmcn.pipeline.config import PipelineConfig, preset
from weakmcn.pipeline.encoders.sam import build_sam
from weakmcn.pipeline.encoders.yolov3 import YOLOv3
from weakmcn.pipeline.precompute import precompute
from weakmcn.shards.store import Store


@dataclass(kw_only=True)
class Memory:
    """What the processes that this one started have held, in GiB; its own peak may be an earlier test's."""

    largest: float = 0.0
    """Peak of the hungriest process."""
    together: float = 0.0
    """Sum of all peaks, which is above what was held at any moment."""


def segmenter(size: str, folder: Path, *, images_per_shard: int) -> PipelineConfig:
    """Settings of preset sam-b, sam-l or sam-h with a thin detector; the weights are written into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = preset(f"sam-{size}")
    torch.manual_seed(0)
    sam, detector = build_sam(config.sam), YOLOv3(width=4)
    for name, weight in sam.named_parameters():
        if name.endswith(("pos_embed", "rel_pos_h", "rel_pos_w")):
            nn.init.normal_(weight, std=0.1)
    files = {"sam": folder / "sam.safetensors", "detect": folder / "detect.safetensors"}
    save_file(sam.state_dict(), files["sam"])
    save_file(detector.state_dict(), files["detect"])
    return replace(
        config,
        images_per_shard=images_per_shard,
        sam=replace(config.sam, checkpoint=str(files["sam"])),
        detect=replace(config.detect, checkpoint=str(files["detect"]), width=4, batch=1),
    )


def run(config: PipelineConfig, root: Path, stages: list[str], *, split: str, workers: int) -> Store:
    """The store that Ray workers make of a split of the data in `root`."""
    store = root / f"store-{split}"
    report = precompute(
        config,
        store=store,
        data=root / "data",
        dataset="refcoco",
        splits=[split],
        stages=stages,
        workers=workers,
        console=Console(quiet=True),
    )
    assert report.exit_code == 0, report.failures
    return Store.open(store)


@contextmanager
def watched(every_s: float = 0.25) -> Iterator[Memory]:
    """Follow the memory of this process's descendants while the block runs."""
    memory, peaks = Memory(), dict[int, int]()
    is_over = threading.Event()
    own = Path("/proc/self/cmdline").read_bytes()

    def look() -> None:
        parents, held = {}, {}
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                is_copy = (status.parent / "cmdline").read_bytes() == own  # asked first: exec may come in between
                lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
            except (FileNotFoundError, ProcessLookupError):  # it has just ended
                continue
            pid = int(status.parent.name)
            # Between fork and exec a child is this process, with the peak of all tests before.
            peak_kib = 0 if is_copy else int(lines.get("VmHWM", "0").split()[0])
            parents[pid], held[pid] = int(lines["PPid"]), peak_kib
        for pid, peak_kib in held.items():
            above = parents[pid]
            while above in parents and above != getpid():
                above = parents[above]
            if above == getpid():
                peaks[pid] = max(peaks.get(pid, 0), peak_kib)

    def follow() -> None:
        while not is_over.wait(every_s):
            look()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield memory
    finally:
        look()
        is_over.set()
        thread.join()
        memory.largest = max(peaks.values(), default=0) / 2**20
        memory.together = sum(peaks.values()) / 2**20
