"""How fast a run answers, measured on this machine: its heads alone, and everything from the JPEG on.

    heads       columns in memory -> box and mask on the canvas
    end_to_end  file of a photograph -> decoding, frozen networks, heads -> box and mask at the photograph's own size

One expression a photograph. Each is timed one at a time (latency: p50 and p95) and in batches (throughput).
"""

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..model.batch import Batch
from ..model.loader import columns_of
from ..model.references import Reference
from ..model.run import Run, device_of
from ..pipeline.images import Photo
from ..pipeline.remembered import configured
from ..pipeline.stages import STAGES, Encoder, Stage, columns_read, load_encoder
from .answering import in_batch

BATCH = 16
SINGLES = 100
"""Most repeats that are timed one at a time."""
FEWEST, ENOUGH_S = 5, 10.0
"""Repeats at least, and the seconds after which there are no more."""
WARM = 3
"""Repeats before, which are not timed."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """One kind of answer, timed."""

    p50_ms: float
    """One at a time: the median, and what 95 of 100 keep below."""
    p95_ms: float
    fps: float
    """One at a time, a second: 1000 over the mean."""
    batch_fps: float
    """A second, in batches of `BATCH`."""


def machine() -> str:
    """What is timed on, in words."""
    name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else platform.processor() or platform.machine()
    if not torch.cuda.is_available() and Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, torch {torch.__version__} on {torch.get_num_threads()} of its threads"


def speeds(
    run: Run, references: Sequence[Reference], photographs: dict[str, Path], *, device: str, most: int = SINGLES
) -> dict[str, Any]:
    """Both kinds, as JSON. references: of one split of the run's store. photographs: the file of each of their images.

    most: repeats that are timed, a tenth of them for batches.
    ImageError or CheckpointError where a photograph or the weights of a frozen network cannot be read.
    """
    with torch.inference_mode():
        answering = _Answering(run, references, photographs, device)
        ways = {"heads": answering.heads, "end_to_end": answering.from_files}
        return {way: asdict(_timed(answer, most)) for way, answer in ways.items()}


def _timed(answer: Callable[[int], Callable[[], object]], most: int) -> Speed:
    """answer: for a number of photographs, what answers for so many, the next ones at every call."""
    singles = _seconds(answer(1), most)
    return Speed(
        p50_ms=1000 * float(np.percentile(singles, 50)),
        p95_ms=1000 * float(np.percentile(singles, 95)),
        fps=1 / float(np.mean(singles)),
        batch_fps=BATCH / float(np.mean(_seconds(answer(BATCH), most // 10))),
    )


def _seconds(work: Callable[[], object], most: int) -> list[float]:
    for _ in range(WARM):
        work()
    seconds: list[float] = []
    while len(seconds) < FEWEST or (len(seconds) < most and sum(seconds) < ENOUGH_S):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return seconds


class _Answering:
    """A run's heads and the frozen networks behind them, ready to answer."""

    def __init__(self, run: Run, references: Sequence[Reference], photographs: dict[str, Path], device: str) -> None:
        self._run, self._device = run, device_of(device)
        self._net = run.network(device=self._device)
        self._references = [reference for reference in references if reference.usable]
        self._files = photographs
        self._config = configured(run.columns, store=run.store)
        self._fields = columns_of(run.method.answers_from(run.model))
        self._stages = self._needed()
        self._next = 0

    def heads(self, count: int) -> Callable[[], object]:
        chosen = self._take(count)
        batch = self._batch(chosen, self._seen(self._photos(chosen), self._encoders(count)))
        return lambda: self._answered(batch)

    def from_files(self, count: int) -> Callable[[], object]:
        encoders = self._encoders(count)

        def answer() -> object:
            chosen = self._take(count)
            photos = self._photos(chosen)
            boxes, masks = self._answered(self._batch(chosen, self._seen(photos, encoders)))
            return [
                (
                    None if boxes is None else photo.letterbox.to_photo(boxes[place]),
                    None if masks is None else photo.letterbox.mask_to_photo(masks[place]),
                )
                for place, photo in enumerate(photos)
            ]

        return answer

    def _needed(self) -> list[Stage]:
        """The stages whose columns are read, and those that they read, in table order."""
        wanted = {column.partition(".")[0] for column in self._fields.values()}
        for stage in reversed(STAGES):
            if stage.name in wanted:
                wanted |= {column.partition(".")[0] for column in columns_read(stage, self._config)}
        return [stage for stage in STAGES if stage.name in wanted]

    def _encoders(self, count: int) -> dict[str, Encoder]:
        found = {}
        for stage in self._stages:
            section = replace(getattr(self._config, stage.section), batch=count)
            config = replace(self._config, **{stage.section: section})
            found[stage.name] = load_encoder(stage, config, str(self._device))
        return found

    def _take(self, count: int) -> list[Reference]:
        chosen = [self._references[(self._next + place) % len(self._references)] for place in range(count)]
        self._next += count
        return chosen

    def _photos(self, chosen: Sequence[Reference]) -> list[Photo]:
        return [Photo.read(each.key, self._files[each.key], side=self._config.side_px) for each in chosen]

    def _seen(self, photos: list[Photo], encoders: dict[str, Encoder]) -> list[dict[str, np.ndarray]]:
        """The columns of each photo."""
        seen: list[dict[str, np.ndarray]] = [{} for _ in photos]
        for stage in self._stages:
            inputs = [{name: values[name] for name in columns_read(stage, self._config)} for values in seen]
            for values, made in zip(seen, encoders[stage.name].encode(photos, inputs), strict=True):
                values.update({f"{stage.name}.{field}": value for field, value in made.items()})
        for values, photo in zip(seen, photos, strict=True):
            values["letterbox"] = photo.letterbox.info
        return seen

    def _batch(self, chosen: Sequence[Reference], seen: Sequence[dict[str, np.ndarray]]) -> Batch:
        side = self._config.side_px

        def stacked(column: str) -> torch.Tensor:
            return torch.from_numpy(np.stack([in_batch(column, values, side) for values in seen])).to(self._device)

        vocabulary, length = self._run.vocabulary, self._run.model.max_tokens
        tokens = [vocabulary.ids(each.sentences[each.usable[0]], length) for each in chosen]
        return Batch(
            **{field: stacked(column) for field, column in self._fields.items()},
            letterbox=torch.from_numpy(np.stack([values["letterbox"] for values in seen])).to(self._device),
            tokens=torch.from_numpy(np.stack(tokens)).to(self._device),
            images=torch.tensor([int(each.key) for each in chosen], device=self._device),
        )

    def _answered(self, batch: Batch) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Boxes [B, 4] and masks [B, S, S] on the host, in the canvas frame; None for what is not predicted."""
        found: Any = self._net.predict(batch)  # pyright: ignore[reportCallIssue]
        masks = None if found.mask_logits is None else (found.mask_logits > 0).to(torch.uint8).cpu().numpy()
        return None if found.boxes is None else found.boxes.cpu().numpy(), masks
