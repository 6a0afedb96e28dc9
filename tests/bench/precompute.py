"""Reading, encoding and writing at once against one after the other: `just bench precompute`.

The same shards go the way of a worker (pipeline/work.py) and through a loop that does the three in turn on one thread,
each with one thread for arithmetic; files of both are compared. Times wander where cores share a processor, so the part
in which nothing is encoded is told beside them. Two stages: EfficientSAM-Ti at the paper's size, where little is
written for much arithmetic, and a thin detector, where much is written for little.
"""

import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from weakmcn.pipeline.images import Photo
from weakmcn.pipeline.overlap import Stopwatch, Writing
from weakmcn.pipeline.stages import Encoder, load_encoder, stage_named
from weakmcn.pipeline.tasks import ShardTask, Spent
from weakmcn.pipeline.trail import Trail
from weakmcn.pipeline.work import InputColumns, Worker, encoded
from weakmcn.shards.writer import Record, write_shard

from .encoding import World, digests, make_world, tasks
from .harness import Timing, in_turn, ratio, told, written

STAGES = {"sam": "EfficientSAM-Ti", "detect": "detector of width 8"}


def main(
    images: Annotated[int, typer.Option(help="Photographs in a shard; a round encodes one of every stage.")] = 24,
    repeats: Annotated[int, typer.Option(help="Rounds.")] = 5,
    batch: Annotated[int, typer.Option(help="Photographs in a batch.")] = 4,
    out: Path = Path("precompute.json"),
) -> None:
    """Print seconds an image both ways, how much is gained, and what the encoder waited for."""
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        world = make_world(root, images=images, detector_width=8)
        rows, gains, timings = [], [], {}
        for stage, name in STAGES.items():
            both, in_order, at_once, size = _measured(world, stage, root, images, batch, repeats, device)
            timings |= {f"{stage}, {how}": timing for how, timing in both.items()}
            gain = ratio(both["in turn"], both["at once"])
            gains.append(f"{name}: at once {gain[0]:.2f} times as fast (range {gain[1]:.2f} to {gain[2]:.2f})")
            rows.append(
                (
                    name,
                    f"{size / images / 1e6:.2f}",
                    *(f"{1000 * both[how].median_s / images:.0f}" for how in ("in turn", "at once")),
                    f"{100 * in_order.idle:.1f} %",
                    f"{100 * at_once.idle:.1f} %",
                    f"{100 * at_once.photos_s / at_once.total_s:.1f} + {100 * at_once.disk_s / at_once.total_s:.1f}",
                )
            )
    told(
        f"{images} photographs a shard, batches of {batch}, {device}",
        ("stage", "MB", "ms in turn", "at once", "idle in turn", "at once", "photos + disk"),
        rows,
        notes=[
            *gains,
            f"MB and ms an image, medians of {repeats} rounds; idle: part of all rounds in which nothing is encoded, "
            "at once split into waiting for photographs and for the disk.",
        ],
    )
    written(out, "precompute", timings, images=images, batch=batch, rows=rows)


def _measured(
    world: World, stage: str, root: Path, images: int, batch: int, repeats: int, device: str
) -> tuple[dict[str, Timing], Spent, Spent, int]:
    """Timings of both ways, where the encoder's time went in turn and at once, bytes of the shard."""
    (at_once,) = tasks(world, stage, root / stage / "at-once", shard=images, batch=batch)
    (in_order,) = tasks(world, stage, root / stage / "in-turn", shard=images, batch=batch)
    Worker(device)  # makes this process's arithmetic like a worker's
    encoder = load_encoder(stage_named(stage), in_order.config, device)  # one: where weights lie in memory shows
    spent: dict[str, list[Spent]] = {"in turn": [], "at once": []}
    variants = {
        "in turn": lambda: spent["in turn"].append(_one_after_the_other(in_order, encoder)),
        "at once": lambda: spent["at once"].append(_at_once(at_once, encoder)),
    }
    both = in_turn(variants, repeats=repeats)
    assert digests(at_once.folder) == digests(in_order.folder)
    size = (at_once.folder / "000000.tar").stat().st_size
    one, other = (sum(each[-repeats:], Spent()) for each in spent.values())
    return both, one, other, size


def _at_once(task: ShardTask, encoder: Encoder) -> Spent:
    """What a worker does."""
    watch = Stopwatch()
    with Trail(task.folder, task.shard) as trail:
        made = encoded(task, encoder, InputColumns(task, ()), trail, watch)
        with closing(made), Writing(partial(_publish, task), watch) as writing:
            for records in made:
                writing.put(records)
            writing.end()
    return watch.spent


def _one_after_the_other(task: ShardTask, encoder: Encoder) -> Spent:
    """The same on one thread; what is not encoding counts as waiting for the disk."""
    watch, started = Stopwatch(), time.perf_counter()

    def records() -> Iterator[Record]:
        for first in range(0, len(task.images), encoder.batch):
            rows = task.images[first : first + encoder.batch]
            photos = [Photo.read(row.key, row.path, side=task.config.side_px) for row in rows]
            surplus = encoder.batch - len(rows)
            with watch.on("encode_s"):
                outputs = encoder.encode(photos + photos[-1:] * surplus, [{}] * encoder.batch)
            for row, values in zip(rows, outputs[: len(rows)], strict=True):
                yield Record(key=row.key, values=values, image_sha256=row.sha256)

    _publish(task, records())
    return replace(watch.spent, disk_s=time.perf_counter() - started - watch.spent.encode_s)


def _publish(task: ShardTask, records: Iterable[Record]) -> None:
    fields = stage_named(task.stage).fields
    write_shard(task.folder, task.shard, records, fingerprint=task.fingerprint, codec=task.config.codec, fields=fields)


if __name__ == "__main__":
    typer.run(main)
