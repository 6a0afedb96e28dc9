"""SAM at its own sizes: seconds an image and memory of ViT-B, L and H, for the docs: `just bench real_sizes --size h`.

Photographs go through `precompute` on Ray workers, stages detect (a thin network), sam and masks; weights are random.
Time counts from the start of a stage to its end, starting Ray and loading the network included.
"""

import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from .. import paper, segmenters
from ..tiny import write_data


def main(
    size: Annotated[str, typer.Option(help="b, l or h.")] = "b",
    images: Annotated[int, typer.Option(help="Photographs.")] = 8,
    workers: int = 2,
) -> None:
    """Print seconds an image of every stage, and the peaks of its hungriest process and of all its processes."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_data(root / "data", images=images, val=0, size=paper.photo_size)
        config = segmenters.segmenter(size, root / "weights", images_per_shard=-(-images // workers))
        typer.echo(f"sam-{size}, {images} photographs, {workers} workers")
        for stage in ("detect", "sam", "masks"):
            started = time.monotonic()
            with segmenters.watched() as memory:
                segmenters.run(config, root, [stage], split="train", workers=workers)
            seconds = time.monotonic() - started
            typer.echo(
                f"{stage}: {seconds:.0f} s, {seconds / images:.1f} s an image; "
                f"{memory.largest:.1f} GiB the largest process, {memory.together:.1f} GiB all together"
            )


if __name__ == "__main__":
    typer.run(main)
