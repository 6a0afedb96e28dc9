"""A run with the frozen networks behind it, loaded once: photographs and phrases in, boxes and masks out.

A photograph is encoded once for all its phrases. As many photographs as a stage's batch, or more, are encoded as
`precompute` encodes them, the last batch padded: the columns have the store's own bytes, and an answer is what `eval`
scores. Fewer go as they are, which differs by the rounding of sums and is done sooner.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..model.batch import Batch
from ..model.loader import columns_of
from ..model.run import Run
from ..model.samples import cut_remark
from ..model.vocabulary import words_of
from ..pipeline.config import PipelineConfig
from ..pipeline.images import Photo, shown
from ..pipeline.references import sentence_fault
from ..pipeline.remembered import configured
from ..pipeline.stages import STAGES, Stage, columns_read, differences, load_encoder, recipes
from ..shards.codec import decode, encode, unpack_masks
from ..shards.errors import CheckpointError, InputError, WeakmcnError

KEY = "0" * 12
"""The photographs are in no store; a key is asked for all the same."""
PHOTOS_AT_ONCE = 16
"""Decoded at a time; the largest batch of any preset."""
PHRASES_AT_ONCE = 64
FAINT = 0.05
"""Objectness below which an answer is told to be hardly one."""
HARDLY = "the detector sees hardly anything there"

Columns = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """The answer to one phrase, photo frame."""

    phrase: str
    unknown_words: list[str]
    """Words that it read of the phrase and has never seen. It reads each as the same word, which it has not learned."""
    remark: str
    """What is to be told of the phrase, "" of one that is read as it stands."""
    box: np.ndarray | None
    """float64 [4], x0 y0 x1 y1 in photo pixels; not clipped to the photo. None where the method predicts no boxes."""
    objectness: float | None
    """How sure the frozen detector is that the chosen candidate is an object, 0..1; nothing about the phrase. None
    without a box."""
    mask: np.ndarray | None
    """bool [h, w]; None where the run's method predicts no masks."""

    @property
    def is_faint(self) -> bool:
        """Whether there is hardly anything in the box."""
        return self.objectness is not None and self.objectness < FAINT

    @property
    def told(self) -> str:
        """All that is to be told of the answer, the remark on its phrase first."""
        return "; ".join(filter(None, [self.remark, HARDLY if self.is_faint else ""]))


class Answerer:
    """Answers from a run's newest checkpoint. Not for several threads at once."""

    def __init__(self, run: Run, config: PipelineConfig, device: str) -> None:
        """config: of the frozen networks; CheckpointError unless they are those that the run was trained behind."""
        self._columns = columns_of(run.method.answers_from(run.model))
        self._stages = _with_what_they_read({column.partition(".")[0] for column in self._columns.values()}, config)
        _check_same_columns(run, self._stages, config)
        self._run, self._config, self._device = run, config, device
        self._vocabulary = run.vocabulary
        self._network: Any = run.network(device=device)
        self._encoders = {stage.name: load_encoder(stage, config, device) for stage in self._stages}

    @property
    def side(self) -> int:
        """Edge of the canvas that a photo's letterbox must be for, pixels."""
        return self._config.side_px

    def remark(self, phrase: str) -> str:
        """What is to be told of a phrase that is not read as it stands; "" of any other."""
        told = [cut_remark(phrase, self._run.model.max_tokens)]
        if unknown := self._unknown(phrase):
            is_all = set(unknown) == set(words_of(phrase)[: self._run.model.max_tokens])
            whole = "; it knows no word of this, and its answer means nothing" if is_all else ""
            told.append(f"the run has never seen: {', '.join(unknown)}{whole}")
        return "; ".join(filter(None, told))

    def _unknown(self, phrase: str) -> list[str]:
        """The words that are read of a phrase and that the run has never seen, each once."""
        read = " ".join(words_of(phrase)[: self._run.model.max_tokens])
        return list(dict.fromkeys(self._vocabulary.unknown(read)))

    def see(self, photos: Sequence[Photo], *, of: int | None = None) -> list[Columns]:
        """The columns of each photo as the store would give them, large maps with the codec's rounding.

        of: how many photos there are in all, where they come in several calls.
        """
        seen: list[Columns] = [{} for _ in photos]
        for stage in self._stages:
            encoder, names = self._encoders[stage.name], columns_read(stage, self._config)
            for first in range(0, len(photos), encoder.batch):
                rows = range(first, min(first + encoder.batch, len(photos)))
                surplus = encoder.batch - len(rows) if (of or len(photos)) >= encoder.batch else 0
                padded = [*rows, *[rows[-1]] * surplus]
                inputs = [{name: seen[row][name] for name in names} for row in padded]
                outputs = encoder.encode([photos[row] for row in padded], inputs)
                for row, values in zip(rows, outputs[: len(rows)], strict=True):
                    seen[row] |= self._stored(stage, values)
        return seen

    def answers(self, photo: Photo, columns: Columns, phrases: Sequence[str]) -> list[Found]:
        """What the run finds for each phrase. columns: of the photo, from `see`."""
        found: list[Found] = []
        for first in range(0, len(phrases), PHRASES_AT_ONCE):
            found += self._answers(photo, columns, phrases[first : first + PHRASES_AT_ONCE])
        return found

    def _answers(self, photo: Photo, columns: Columns, phrases: Sequence[str]) -> list[Found]:
        count, max_tokens = len(phrases), self._run.model.max_tokens

        def repeated(column: str) -> torch.Tensor:
            value = torch.from_numpy(in_batch(column, columns, self.side)).to(self._device)
            return value.expand(count, *value.shape)

        tokens = np.stack([self._vocabulary.ids(text, max_tokens) for text in phrases])
        batch = Batch(
            **{name: repeated(column) for name, column in self._columns.items()},
            letterbox=torch.from_numpy(photo.letterbox.info).to(self._device).expand(count, 6),
            tokens=torch.from_numpy(tokens).to(self._device),
            images=torch.zeros(count, dtype=torch.int64, device=self._device),
        )
        predictions = self._network.predict(batch)
        boxes = None if predictions.boxes is None else photo.letterbox.to_photo(predictions.boxes.cpu().numpy())
        if boxes is not None and not np.isfinite(boxes).all():
            raise WeakmcnError(f"{self._run.path}: its network answers with a box that is not finite; train it again.")
        masks = None
        if predictions.mask_logits is not None:
            masks = (predictions.mask_logits.sigmoid() > 0.5).cpu().numpy()
        return [
            Found(
                phrase=text,
                unknown_words=self._unknown(text),
                remark=self.remark(text),
                box=None if boxes is None else boxes[place],
                objectness=None if boxes is None else float(predictions.scores[place]),
                mask=None if masks is None else photo.letterbox.mask_to_photo(masks[place]),
            )
            for place, text in enumerate(phrases)
        ]

    def _stored(self, stage: Stage, values: Mapping[str, np.ndarray]) -> Columns:
        codec = self._config.codec
        return {
            f"{stage.name}.{field.name}": decode(codec, encode(codec, values[field.name]))
            if field.coded
            else np.asarray(values[field.name], field.numpy_dtype)
            for field in stage.fields
        }


def in_batch(column: str, columns: Columns, side: int) -> np.ndarray:
    """One photo's value of a column as batches hold it: cells are indices, masks no frame but packed bits."""
    if column == "masks.bits":
        return unpack_masks(columns[column], len(columns["detect.boxes"]), side)
    return np.array(columns[column], dtype=np.int64 if column == "detect.cells" else None)


def frozen_networks(run: Run, checkpoints: Mapping[str, str]) -> PipelineConfig:
    """The settings of the networks behind a run: those of its columns, or, for a converted run, of its preset.

    checkpoints: stage -> the file of its weights, where that is not the one in the settings. The detector of a
    converted run is its own.
    """
    if (origin := run.converted) is None:
        if not all("preset" in made_from.get("recorded", {}) for made_from in run.columns.values()):
            raise InputError(f"{run.path / 'columns.json'}: damaged (no preset); restore it or train again.")
        return configured(run.columns, checkpoints=checkpoints, store=run.store)
    own = origin.detector_file(run.path)
    kept = {"detect": str(own)} if own is not None and own.is_file() else {}
    return configured({}, preset=origin.preset, checkpoints={**kept, **checkpoints})


def with_words(phrase: str, name: str = "--phrase") -> str:
    """The phrase itself; InputError, with the `name` of where it stands, if it is no text or no word is in it."""
    if fault := sentence_fault(phrase):
        raise InputError(f'{name} {fault}; write what to find, "left dog" for example.')
    if not words_of(phrase):
        raise InputError(f'{name} "{shown(phrase)}": no words in it; write what to find, "left dog" for example.')
    return phrase


def _with_what_they_read(names: set[str], config: PipelineConfig) -> list[Stage]:
    """The stages called `names` and those whose columns their encoders are handed, in table order."""
    wanted = set(names)
    for stage in reversed(STAGES):  # a stage reads only from those above it in the table
        if stage.name in wanted:
            wanted |= {column.partition(".")[0] for column in columns_read(stage, config)}
    return [stage for stage in STAGES if stage.name in wanted]


def _check_same_columns(run: Run, stages: Sequence[Stage], config: PipelineConfig) -> None:
    """CheckpointError unless these settings and weights give the columns that the run was trained on."""
    now = recipes(config, stages)
    if (origin := run.converted) is not None:
        hashed = {name: recipe.hashed for name, recipe in now.items()}
        if (fault := origin.other_network(hashed)) or origin.other_detector(hashed):
            raise CheckpointError(
                f"{run.path}: {fault or f'needs the detector inside {origin.checkpoint}, this is another'}; name the "
                f"checkpoint itself: --checkpoint detect={origin.checkpoint}"
            )
    for stage in stages:
        made_from = run.columns.get(stage.name)
        if made_from is not None and now[stage.name].fingerprint != made_from["fingerprint"]:
            why = "; ".join(differences(made_from["hashed"], now[stage.name].hashed))
            raise CheckpointError(
                f"{run.path}: trained on {stage.name} columns that cannot be made here: {why}; name the weights it was "
                f"trained behind: --checkpoint {stage.name}=FILE"
            )
