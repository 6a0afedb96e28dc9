"""Stage 1's answers as stage 2's lessons: a pseudo mask of every training reference, made once.

They are kept in the run folder, in the form of a checkpoint: labels/, one tensor `labels`, uint8 [R, S/4, S/32], packed
as masks are. run.json names the weights of stage 1 that made them, so a run goes on with its own labels only.
Axes: R references, J captions of one, H W rows and columns of stage 1's maps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..shards.errors import CheckpointError, ConfigError
from ..shards.records import read_json
from . import checkpoint, tris_refine
from .batch import Batch
from .calibration import TrisLessons, candidate_masks, masked_view
from .lessons import Material
from .loader import Loader
from .losses import unpack_bits
from .progress import counted, tell
from .sampler import Draw
from .standardise import MeasuredFirst
from .wrec import pick

if TYPE_CHECKING:
    from .run import Run
    from .tris_segmenter import SegmenterConfig

FIRST = "tris-c"
"""The method that stage 2 goes on from."""
SAME = ("word_dim", "text_dim", "text_heads", "text_layers", "text_ff_dim", "text_flat_dim", "max_tokens", "side_px")
"""Settings that both stages share: the sentence encoder is handed over."""
CHUNK = 16
"""References labelled at a time."""


class SegmenterLessons(MeasuredFirst):
    """Statistics of the channels, stage 1's sentence encoder to start from, and a pseudo mask for every reference.

    ConfigError unless a finished run of stage 1 on the same samples is named; a run that has its labels and a
    checkpoint needs it no more.
    """

    goes_on = True

    def __init__(self, material: Material) -> None:
        super().__init__(material)
        self._run = material.first_stage
        if self._run is not None:
            _check_first_stage(self._run, material)
        elif not material.remembered:
            raise ConfigError(f"tris-c2 goes on from a finished run of {FIRST}; name it: --from RUN")
        self._labels = torch.empty(0)

    @property
    def facts(self) -> Mapping[str, Any]:
        if self._run is None:
            return {"first_stage": self.material.remembered}
        newest, _ = checkpoint.newest(self._run.checkpoints)
        assert newest is not None  # it is finished
        sha256 = read_json(newest.path.with_suffix(".json"))["sha256"]
        return {"first_stage": {"run": str(self._run.path), "weights": sha256}}

    def ready(self) -> None:
        folder = self.material.out / "labels"
        kept, _ = checkpoint.newest(folder)
        if kept is None:
            if self._run is None:
                raise CheckpointError(f"{folder}: the pseudo masks are gone; make them again: --from {FIRST}'s run")
            tensors = {"labels": pseudo_labels(self._run, self.material)}
            checkpoint.save(folder, tensors, _NOWHERE)
            self._labels = tensors["labels"]
            share = unpack_bits(self._labels).float().mean()
            tell(f"{len(self._labels):,} pseudo masks made, {100 * share:.1f} % of the canvas each in the mean.")
            return
        self._labels = kept.tensors["labels"]

    def begin(self, net: nn.Module) -> None:
        super().begin(net)
        assert self._run is not None  # it has not begun, so it was looked for
        text = self._run.network(device=self.material.device).get_submodule("text")
        net.get_submodule("text").load_state_dict(text.state_dict())

    def of(self, drawn: Sequence[Draw], epoch: int) -> Mapping[str, Tensor]:
        return {"pseudo": self._labels[[reference for reference, _ in drawn]].to(self.material.device)}


_NOWHERE = checkpoint.Position(epoch=0, batch=0, step=0, metrics_bytes=0, window_steps=0)


def _check_first_stage(run: "Run", material: Material) -> None:
    """ConfigError unless it is a finished one of stage 1 on the same samples and sizes."""
    path = run.path
    if run.facts["method"] != FIRST:
        raise ConfigError(f"{path}: a run of {run.facts['method']}; tris-c2 goes on from one of {FIRST}.")
    if not run.finished:
        raise ConfigError(f"{path}: not finished; run its `weakmcn train` command again first.")
    run.check_columns(material.store)
    has, asked = run.facts["samples"], material.samples.digests
    differing = [name for name in asked if has.get(name) != asked[name]]
    if differing:
        raise ConfigError(
            f"{path}: trained on other {' and '.join(differing)} than those of {material.dataset} {material.split}; "
            "say the same data set and --shuffle-captions as there."
        )
    ours, theirs = asdict(material.model), asdict(run.model)
    for name in SAME:
        if ours[name] != theirs[name]:
            raise ConfigError(
                f"model.{name}={ours[name]!r}, {path} has {theirs[name]!r}; its sentence encoder is handed over, so "
                f"--set model.{name}={theirs[name]}"
            )


@torch.no_grad()
def pseudo_labels(run: "Run", material: Material) -> Tensor:
    """The pseudo mask of every reference, by the finished run of stage 1: uint8 [R, S/4, S/32], on the host."""
    samples, settings = material.samples, cast("SegmenterConfig", material.model)
    net: Any = run.network(device=material.device)
    spoken = TrisLessons(replace(material, model=run.model, first_stage=None))
    fields = (*run.method.fields(run.model), "dino", *(("masks",) if settings.refine == "sam" else ()))
    loader = Loader(material.store, dict.fromkeys(fields), device=material.device)
    labels = np.zeros((len(samples.keys), settings.side_px // 4, settings.side_px // 32), np.uint8)
    order = sorted(range(len(samples.keys)), key=lambda reference: samples.keys[reference])
    with counted("labelling", len(order)) as count:
        for start in range(0, len(order), CHUNK):
            chunk = order[start : start + CHUNK]
            captions = [(reference, place) for reference in chunk for place in samples.usable[reference]]
            batch = loader.batch(
                [samples.keys[reference] for reference, _ in captions],
                np.stack([samples.tokens[reference][place] for reference, place in captions]),
            )
            maps = tris_refine.normalised(net.responses(batch))  # [captions, H, W]
            rows, first = [], 0
            for reference in chunk:
                own = slice(first, first + len(samples.usable[reference]))
                rows.append(first + _chosen(maps[own], reference, own, batch, run, spoken))
                first = own.stop
            labels[chunk] = _packed(_masks(maps[rows], batch, rows, settings))
            count(len(chunk))
    return torch.from_numpy(labels)


def _chosen(maps: Tensor, reference: int, rows: slice, batch: Batch, run: "Run", spoken: TrisLessons) -> int:
    """Whose map, of one reference's captions, stands for all: CLIP's choice where stage 1 saw CLIP, else the medoid."""
    mode: str = run.model.calibration  # pyright: ignore[reportAttributeAccessIssue]
    if mode == "none":
        return tris_refine.medoid(maps)
    samples = spoken.material.samples
    said = spoken.vectors([samples.sentences[reference][place] for place in samples.usable[reference]]).to(maps)
    seen = masked_view(maps, batch.rows(rows), mode)  # [J, D]
    return int((seen @ F.normalize(said, dim=-1).T).sum(dim=1).argmax())


def _masks(maps: Tensor, batch: Batch, rows: Sequence[int], settings: "SegmenterConfig") -> Tensor:
    """bool [n, S/4, S/4] of R [n, H, W]; rows: of the batch, one for each."""
    size = (settings.side_px // 4, settings.side_px // 4)
    if settings.refine == "sam":
        assert batch.masks is not None
        masks = batch.masks[rows]
        chosen = tris_refine.best_candidate(maps, candidate_masks(masks, maps.shape[-2:]))
        return F.adaptive_avg_pool2d(unpack_bits(pick(masks, chosen)).float(), size) >= 0.5
    if settings.refine == "none":
        return tris_refine.cut(maps > 0, size, 0.5)
    assert batch.dino is not None
    maps = tris_refine.walked(maps, tris_refine.transitions(batch.dino[rows]))
    return tris_refine.cut(maps, size, settings.cut)


def _packed(masks: Tensor) -> np.ndarray:
    return np.packbits(masks.cpu().numpy(), axis=-1)
