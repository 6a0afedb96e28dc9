"""What is not large maps, and what believing nothing costs: `just bench side`.

Images of the paper's sizes in a store of our own writer. Side data is everything but the five large maps; masks come
back bit for bit, from the store's frames and from those that are kept once a frame was expanded. Verification compares
checksums when a member is first touched, so in the first epoch of a run alone; its share is that of processor time, of
it and of training steps of `refcoco` on the same images.
"""

import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import typer
from weakmcn.model.loader import Loader
from weakmcn.model.methods import method_of, recipe
from weakmcn.model.vocabulary import Vocabulary
from weakmcn.shards.codec import unpack_masks
from weakmcn.shards.quick import QuickFrames
from weakmcn.shards.reader import Reader
from weakmcn.shards.store import Store

from .harness import REPEATS, in_turn, told, written
from .paper_store import CANDIDATES, MAPS, SIDE, keys_of, make_store

IMAGES, BATCH = 16, 4


def main(repeats: int = REPEATS, out: Path = Path("side.json")) -> None:
    """Print bytes, the time until an image's masks are there, and the share of checksums in an epoch."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="weakmcn-bench-") as folder:
        paths = {codec: Path(folder) / codec for codec in ("f16", "u8")}
        stores = {
            codec: Store.open(make_store(path, images=IMAGES, shards=2, codec=codec)) for codec, path in paths.items()
        }
        large = {codec: _bytes(store, [*MAPS]) for codec, store in stores.items()}
        side = _bytes(stores["f16"], [name for name in stores["f16"].columns if name not in MAPS])
        errors = _errors(stores)
        timings = in_turn(_variants(stores["f16"]), repeats=repeats)
    per_image = {name: 1e3 * timing.cpu_median_s / IMAGES for name, timing in timings.items()}
    checks = per_image["first touch"] - per_image["touched"]
    share = checks / (checks + per_image["a training step, a reference"])
    told(
        f"{IMAGES} images of the paper's sizes",
        ("", ""),
        [
            ("large maps, f16", f"{large['f16']:,.0f} bytes an image"),
            ("side data", f"{side:,.0f} bytes, {side / (side + large['f16']):.2%} of the record"),
            ("u8", f"{large['u8']:,.0f} bytes, {large['u8'] / large['f16']:.3f} of f16's"),
            ("u8, relative L2 error", ", ".join(f"{name} {error:.4f}" for name, error in errors.items())),
            (f"{CANDIDATES} masks from a frame of the store", f"{per_image['masks, from the store']:.3f} ms"),
            (f"{CANDIDATES} masks again, compressed", f"{per_image['masks, again']:.3f} ms"),
            (f"{CANDIDATES} masks again, as they are", f"{per_image['masks, kept as they are']:.3f} ms"),
            ("checksums at first touch", f"{checks:.2f} ms an image"),
            ("a training step, a reference", f"{per_image['a training step, a reference']:.0f} ms"),
            ("verification, share of a first epoch", f"{share:.2%}"),
        ],
    )
    written(
        out, "side", timings, bytes_f16=large["f16"], bytes_u8=large["u8"], bytes_side=side, errors=errors, share=share
    )


def _bytes(store: Store, columns: Sequence[str]) -> float:
    """In the tars, an image."""
    return Reader(store, columns).stored_bytes(store.keys) / IMAGES


def _errors(stores: dict[str, Store]) -> dict[str, float]:
    """Relative L2 of each large map in 8 bits, over all images."""
    errors = {}
    for name in MAPS:
        wanted, found = (np.stack([store[key][name] for key in store.keys]) for store in stores.values())
        wanted = wanted.astype(np.float32)
        errors[name] = float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
    return errors


def _variants(store: Store) -> dict[str, Callable[[], object]]:
    columns = [*MAPS, "detect.cells", "detect.boxes", "masks.bits"]
    frames = [store[key]["masks.bits"] for key in store.keys]
    quick, plain = QuickFrames(), QuickFrames(plain_bytes=1 << 40)
    row = np.empty((CANDIDATES, SIDE, SIDE // 8), np.uint8)
    for place, frame in enumerate(frames):
        masks = unpack_masks(frame, CANDIDATES, SIDE)
        for kept in (quick, plain):
            kept.keep(place, masks.reshape(-1))
            if not kept.fill(place, row.reshape(-1)) or not np.array_equal(row, masks):
                raise RuntimeError("masks did not come back bit for bit")

    def from_store() -> None:
        for frame in frames:
            row[:] = unpack_masks(frame, CANDIDATES, SIDE)

    def again(kept: QuickFrames) -> None:
        for place in range(IMAGES):
            kept.fill(place, row.reshape(-1))

    touched = Reader(store, columns, access="mmap", threads=1)
    return {
        "masks, from the store": from_store,
        "masks, again": partial(again, quick),
        "masks, kept as they are": partial(again, plain),
        "first touch": lambda: _epoch(Reader(store, columns, access="mmap", threads=1)),
        "touched": lambda: _epoch(touched),
        "a training step, a reference": _steps(store),
    }


def _epoch(reader: Reader) -> None:
    keys = keys_of(IMAGES)
    for start in range(0, IMAGES, BATCH):
        reader.gather(keys[start : start + BATCH])


def _steps(store: Store) -> Callable[[], object]:
    """Forward and backward of `refcoco`, all losses, on every image once."""
    config, _ = recipe("weakmcn", "refcoco")
    method, words = method_of("weakmcn"), Vocabulary.build(["the red cup on the left"])
    loader = Loader(store, method.fields(config))
    net = method.build(config, words, None).train()
    tokens = np.stack([words.ids("the red cup", config.max_tokens)] * BATCH)
    keys = keys_of(IMAGES)

    def steps() -> None:
        for start in range(0, IMAGES, BATCH):
            batch = loader.batch(keys[start : start + BATCH], tokens)
            net.losses(batch, config.warm_epochs).total.backward()  # pyright: ignore[reportCallIssue]

    return steps


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # pyright: ignore[reportAttributeAccessIssue]
    typer.run(main)
