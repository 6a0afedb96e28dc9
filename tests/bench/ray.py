"""What Ray adds to the encoding of 200 photographs: `just bench ray`.

EfficientSAM-Ti at the paper's size goes over the photographs, a shard in this process and the same shard on an actor in
turn, each with one thread; files of both are compared. Starting Ray, its actors and loading the weights are told apart.
Then two actors share the shards, against one.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from weakmcn.pipeline.executor import RayExecutor
from weakmcn.pipeline.tasks import Executor, ShardDone, ShardTask
from weakmcn.pipeline.work import LocalExecutor

from .encoding import digests, make_world, tasks
from .harness import in_turn, ratio, told, written

BATCH = 4


def main(
    images: Annotated[int, typer.Option(help="Photographs.")] = 200,
    shard: Annotated[int, typer.Option(help="Photographs in a shard.")] = 20,
    out: Path = Path("ray.json"),
) -> None:
    """Print seconds an image in this process and on Ray, what Ray adds, and what a second worker gains."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        world = make_world(root, images=images + shard, detector_width=4)  # the first shard is not counted
        places = {name: root / name for name in ("in process", "on Ray", "two workers")}
        work = {name: tasks(world, "sam", place, shard=shard, batch=BATCH) for name, place in places.items()}

        start_up: dict[str, float] = {}
        with (
            _started(LocalExecutor(), "in process", start_up) as local,
            _started(RayExecutor(workers=1), "on Ray", start_up) as ray,
        ):
            turns = {"in process": (local, iter(work["in process"])), "on Ray": (ray, iter(work["on Ray"]))}
            first = {name: _timed(executor, [next(shards)]) for name, (executor, shards) in turns.items()}
            variants = {
                name: lambda executor=executor, shards=shards: _timed(executor, [next(shards)])
                for name, (executor, shards) in turns.items()
            }
            timings = in_turn(variants, repeats=images // shard, warm=0)
        assert digests(places["in process"]) == digests(places["on Ray"])

        with _started(RayExecutor(workers=2), "two workers", start_up) as ray:
            first["two workers"] = _timed(ray, work["two workers"][:2])
            both_s = _timed(ray, work["two workers"][1:])
        assert digests(places["in process"]) == digests(places["two workers"])

    an_image = {name: sum(timing.wall_s) / images for name, timing in timings.items()} | {
        "two workers": both_s / images
    }
    added = ratio(timings["on Ray"], timings["in process"])
    told(
        f"EfficientSAM-Ti at 416 px, {images} photographs, {shard} a shard",
        ("", "ms an image", "of in process", "start, s", "first shard, s"),
        [
            (
                name,
                f"{1000 * seconds:.1f}",
                f"{seconds / an_image['in process']:.3f}",
                f"{start_up[name]:.1f}",
                f"{first[name]:.1f}",
            )
            for name, seconds in an_image.items()
        ],
        notes=[
            f"Ray adds {100 * (added[0] - 1):.1f} % to a shard (median of {images // shard}; range "
            f"{100 * (added[1] - 1):.1f} to {100 * (added[2] - 1):.1f} %); two workers are "
            f"{an_image['on Ray'] / an_image['two workers']:.2f} times as fast as one.",
            "start: Ray and its actors; first shard: libraries and weights are loaded in it. Neither is in the others.",
        ],
    )
    written(
        out, "ray", timings, images=images, shard=shard, start_s=start_up, first_shard_s=first, two_workers_s=both_s
    )


@contextmanager
def _started(executor: LocalExecutor | RayExecutor, name: str, seconds: dict[str, float]) -> Iterator[Executor]:
    started = time.perf_counter()
    with executor as running:
        seconds[name] = time.perf_counter() - started
        yield running


def _timed(executor: Executor, shards: Sequence[ShardTask]) -> float:
    started = time.perf_counter()
    for outcome in executor.run(shards):
        assert isinstance(outcome, ShardDone), outcome
    return time.perf_counter() - started


if __name__ == "__main__":
    typer.run(main)
