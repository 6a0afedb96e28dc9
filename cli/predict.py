"""`weakmcn predict`: one photograph, some phrases: the frozen networks of the run's store, then the run's heads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import numpy as np

    from ..model.run import Run
    from ..pipeline.config import PipelineConfig
    from ..pipeline.images import Photo
    from ..pipeline.stages import Stage

KEY = "0" * 12
"""The photograph is in no store; a key is asked for all the same."""
UNUSED_BY_PREDICTION = ("masks",)
"""Fields of a batch that only training reads."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """The answer to one phrase, photo frame."""

    phrase: str
    unknown_words: list[str]
    """Words of the phrase that the run has never seen; it answers from the others."""
    box: "np.ndarray | None"
    """float64 [4], x0 y0 x1 y1 in photo pixels; not clipped to the photo. None where the method predicts no boxes."""
    objectness: float | None
    """How sure the frozen detector is that the chosen candidate is an object, 0..1; nothing about the phrase. None
    without a box."""
    mask: "np.ndarray | None"
    """bool [h, w]; None where the run's method predicts no masks."""


def predict(
    run: Annotated[Path, typer.Option(metavar="RUN", help="Folder of the run.")],
    image: Annotated[Path, typer.Option(metavar="FILE", help="The photograph: JPEG, PNG, GIF or BMP.")],
    phrase: Annotated[list[str], typer.Option(metavar="TEXT", help="What to find; may be repeated.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png", help="The picture.", show_default="the photograph's name and -weakmcn.png, here"
        ),
    ] = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(metavar="STAGE=FILE", help="Where the weights of a frozen network are now; may be repeated."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …; auto is the GPU where there is one.")] = "auto",
) -> None:
    """Find what a phrase names on a photograph: box and mask, and a picture of them.

    \b
    Needs    a run, and the weights of the frozen networks behind its store
             (those of pocket ship with the package)
    Writes   FILE.png the picture, FILE.json the numbers, FILE-mask.png the
             mask (FILE-mask-1.png and so on for several phrases); no mask
             from a method without a mask head
    Example  weakmcn predict --run runs/first --image a.jpg --phrase "left dog"

    Boxes are x0 y0 x1 y1 in pixels of the photograph as stored (its EXIF rotation is ignored); they may leave it a
    little, as `eval` compares them, and are drawn cut to it. Objectness is the detector's, for the chosen box: how sure
    it is that something is there, whatever the phrase.
    """
    from ..model import checkpoint as checkpoints_of_run
    from ..model.run import Run, device_of
    from ..pipeline.images import Photo
    from ..shards.errors import ConfigError

    picture = out or Path(f"{image.stem}-weakmcn.png")
    if picture.suffix.lower() != ".png":
        raise ConfigError(f"--out {picture}: the picture is a PNG; write {picture.with_suffix('.png')}.")
    if picture.resolve() == image.resolve():
        raise ConfigError(f"--out {picture}: that is the photograph itself; choose another name.")
    _refuse_strangers(picture, len(phrase))
    opened, where = Run.open(run), str(device_of(device))
    phrases = [_with_words(text) for text in phrase]
    config = frozen_networks(opened, _checkpoints(checkpoint or ()))
    photo = Photo.read(KEY, image, side=config.side_px)
    found = answers(opened, photo, phrases, config, where)
    facts: dict[str, Any] = {"image": str(image), "run": str(run)}
    saved, faults = checkpoints_of_run.newest(opened.checkpoints)
    for fault in faults:
        typer.echo(f"note: {fault}", err=True)
    if saved is not None:
        facts["checkpoint"] = {"file": saved.path.name, "step": saved.position.step, "weights": "ema"}
    for path in write_answers(found, photo, picture, facts):
        typer.echo(f"wrote {path}")


def frozen_networks(run: "Run", checkpoints: Mapping[str, str]) -> "PipelineConfig":
    """The settings of the networks behind a run: those of its columns, or, for a converted run, of its preset.

    checkpoints: stage -> the file of its weights, where that is not the one in the settings. The detector of a
    converted run is its own.
    """
    from ..pipeline.remembered import configured
    from ..shards.errors import InputError

    if (origin := run.converted) is None:
        if not all("preset" in made_from.get("recorded", {}) for made_from in run.columns.values()):
            raise InputError(f"{run.path / 'columns.json'}: damaged (no preset); restore it or train again.")
        return configured(run.columns, checkpoints=checkpoints, store=run.store)
    own = origin.detector_file(run.path)
    kept = {"detect": str(own)} if own is not None and own.is_file() else {}
    return configured({}, preset=origin.preset, checkpoints={**kept, **checkpoints})


def answers(run: "Run", photo: "Photo", phrases: Sequence[str], config: "PipelineConfig", device: str) -> list[Found]:
    """What the run finds on the photo for each phrase, told as it is found.

    config: of the frozen networks; CheckpointError unless they are those that the run was trained behind.
    """
    import numpy as np
    import torch

    from ..model.batch import Batch
    from ..model.loader import columns_of
    from ..model.vocabulary import words_of
    from ..shards.errors import WeakmcnError

    fields = [name for name in run.method.fields(run.model) if name not in UNUSED_BY_PREDICTION]
    sources = columns_of(fields)
    seen = columns_of_photo(photo, list(sources.values()), run, config, device)
    vocabulary, count = run.vocabulary, len(phrases)

    def repeated(column: str) -> torch.Tensor:
        value = torch.from_numpy(np.ascontiguousarray(seen[column])).to(device)
        value = value.long() if column == "detect.cells" else value
        return value.expand(count, *value.shape)

    batch = Batch(
        **{name: repeated(column) for name, column in sources.items()},
        letterbox=torch.from_numpy(photo.letterbox.info).to(device).expand(count, 6),
        tokens=torch.from_numpy(np.stack([vocabulary.ids(text, run.model.max_tokens) for text in phrases])).to(device),
        images=torch.zeros(count, dtype=torch.int64, device=device),
    )
    predictions: Any = run.network(device=device).predict(batch)  # pyright: ignore[reportCallIssue]
    boxes = None if predictions.boxes is None else photo.letterbox.to_photo(predictions.boxes.cpu().numpy())
    if boxes is not None and not np.isfinite(boxes).all():
        raise WeakmcnError(f"{run.path}: its network answers with a box that is not finite; train it again.")
    masks = None
    if predictions.mask_logits is not None:
        masks = (predictions.mask_logits.sigmoid() > 0.5).cpu().numpy()
    return [
        Found(
            phrase=text,
            unknown_words=[word for word in words_of(text) if word not in vocabulary],
            box=None if boxes is None else boxes[place],
            objectness=None if boxes is None else float(predictions.scores[place]),
            mask=None if masks is None else photo.letterbox.mask_to_photo(masks[place]),
        )
        for place, text in enumerate(phrases)
    ]


def columns_of_photo(
    photo: "Photo", columns: Sequence[str], run: "Run", config: "PipelineConfig", device: str
) -> dict[str, "np.ndarray"]:
    """The columns of one photo as the store would give them, large maps with the codec's rounding.

    Raises CheckpointError unless the networks and settings are those that made the run's columns.
    """
    from ..pipeline.stages import columns_read, load_encoder
    from ..shards.codec import decode, encode

    wanted = _with_what_they_read({column.partition(".")[0] for column in columns}, config)
    _check_same_columns(run, wanted, config)
    seen: dict[str, np.ndarray] = {}
    for stage in wanted:
        alone = replace(config, **{stage.section: replace(getattr(config, stage.section), batch=1)})
        inputs = {column: seen[column] for column in columns_read(stage, config)}
        (values,) = load_encoder(stage, alone, device).encode([photo], [inputs])
        for field in stage.fields:
            value = values[field.name]
            seen[f"{stage.name}.{field.name}"] = (
                decode(config.codec, encode(config.codec, value)) if field.coded else value
            )
    return seen


def write_answers(found: Sequence[Found], photo: "Photo", picture: Path, facts: Mapping[str, Any]) -> list[Path]:
    """Print the answers and write the picture, a mask each, and the JSON; the files, the picture first."""
    from ..shards.atomic import write_json
    from ..shards.codec import rle_encode
    from .pictures import Answer, Marks, answer_picture, save_mask, save_picture

    rows, masks = [], []
    for mask_file, each in zip(_mask_files(picture, len(found)), found, strict=True):
        said, row = [], {"phrase": each.phrase, "unknown_words": each.unknown_words}
        if each.box is not None:
            row["box"] = [round(float(value), 2) for value in each.box]
            said.append(f"box {' '.join(f'{value:.0f}' for value in row['box'])}")
        if each.objectness is not None:
            row["objectness"] = round(each.objectness, 4)
            said.append(f"objectness {each.objectness:.2f}")
        if each.mask is not None:
            said.append(f"mask {int(each.mask.sum()):,} px")
        typer.echo(f"“{each.phrase}”: {', '.join(said)}")
        if each.unknown_words:
            typer.echo(f"  not in the run's vocabulary, so without effect: {', '.join(each.unknown_words)}", err=True)
        if each.mask is not None:
            masks.append(mask_file)
            save_mask(each.mask, mask_file)
            row["mask"] = {"size": list(each.mask.shape), "counts": rle_encode(each.mask)}
            row["mask_file"] = mask_file.name
        rows.append(row)
    cells = [
        Answer(
            rgb=photo.rgb,
            expression=each.phrase,
            note=" · ".join(
                [
                    *([] if each.objectness is None else [f"objectness {each.objectness:.2f}"]),
                    *([f"unknown: {', '.join(each.unknown_words)}"] if each.unknown_words else []),
                ]
            ),
            predicted=Marks(box=None if each.box is None else _cut_to(photo, each.box), mask=each.mask),
        )
        for each in found
    ]
    save_picture(answer_picture(cells), picture)
    numbers = picture.with_suffix(".json")
    write_json(numbers, {**facts, "answers": rows})
    return [picture, numbers, *masks]


def _cut_to(photo: "Photo", box: "np.ndarray") -> "np.ndarray | None":
    """The part of a box x0 y0 x1 y1 that lies on the photo; None where none does."""
    height, width = photo.rgb.shape[:2]
    cut = box.clip(0, [width, height, width, height])
    return cut if (cut[2:] > cut[:2]).all() else None


def _mask_files(picture: Path, count: int) -> list[Path]:
    """Where the masks of so many phrases go."""
    numbers = [f"-{number}" for number in range(1, count + 1)] if count > 1 else [""]
    return [picture.with_name(f"{picture.stem}-mask{number}.png") for number in numbers]


def _refuse_strangers(picture: Path, count: int) -> None:
    """ConfigError where a file that nobody named would be written over, unless an earlier answer wrote it."""
    from ..shards.errors import ConfigError
    from ..shards.records import read_json

    numbers = picture.with_suffix(".json")
    ours: set[str] = set()
    try:
        earlier = read_json(numbers)
        ours = {numbers.name, *(row["mask_file"] for row in earlier["answers"] if "mask_file" in row)}
    except (OSError, ValueError, KeyError, TypeError):  # absent, or somebody else's
        pass
    strangers = [file for file in (numbers, *_mask_files(picture, count)) if file.exists() and file.name not in ours]
    if strangers:
        raise ConfigError(
            f"--out {picture}: {strangers[0]} would be written too, it is there and no earlier answer; choose another "
            "name, or move it away."
        )


def _with_words(phrase: str) -> str:
    from ..model.vocabulary import words_of
    from ..shards.errors import InputError

    if not words_of(phrase):
        raise InputError(f'--phrase "{phrase}": no words in it; write what to find, "left dog" for example.')
    return phrase


def _checkpoints(texts: Sequence[str]) -> dict[str, str]:
    from ..shards.errors import ConfigError

    pairs = [text.partition("=") for text in texts]
    if wrong := [text for text, (stage, _, file) in zip(texts, pairs, strict=True) if not (stage and file)]:
        raise ConfigError(f"--checkpoint {wrong[0]}: write STAGE=FILE, sam=sam_vit_b_01ec64.pth for example.")
    return {stage: file for stage, _, file in pairs}


def _with_what_they_read(names: set[str], config: "PipelineConfig") -> list["Stage"]:
    """The stages called `names` and those whose columns their encoders are handed, in table order."""
    from ..pipeline.stages import STAGES, columns_read

    wanted = set(names)
    for stage in reversed(STAGES):  # a stage reads only from those above it in the table
        if stage.name in wanted:
            wanted |= {column.partition(".")[0] for column in columns_read(stage, config)}
    return [stage for stage in STAGES if stage.name in wanted]


def _check_same_columns(run: "Run", stages: Sequence["Stage"], config: "PipelineConfig") -> None:
    """CheckpointError unless these settings and weights give the columns that the run was trained on."""
    from ..pipeline.stages import differences, recipes
    from ..shards.errors import CheckpointError

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
