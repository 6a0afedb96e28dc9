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
    box: "np.ndarray"
    """float64 [4], x0 y0 x1 y1 in photo pixels; not clipped to the photo."""
    score: float
    """Objectness of the chosen candidate, 0..1."""
    mask: "np.ndarray"
    """bool [h, w]."""


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
    """Find what a phrase names on a photograph: box, mask and score, and a picture of them.

    \b
    Needs    a run, and the weights of the frozen networks behind its store
             (those of pocket ship with the package)
    Writes   FILE.png the picture, FILE.json the numbers, FILE-mask.png the
             mask (FILE-mask-1.png and so on for several phrases)
    Example  weakmcn predict --run runs/first --image a.jpg --phrase "left dog"

    Boxes are x0 y0 x1 y1 in pixels of the photograph as stored (its EXIF rotation is ignored).
    """
    from ..model.run import Run, device_of
    from ..pipeline.images import Photo
    from ..pipeline.stages import configured
    from ..shards.errors import ConfigError

    picture = out or Path(f"{image.stem}-weakmcn.png")
    if picture.suffix.lower() != ".png":
        raise ConfigError(f"--out {picture}: the picture is a PNG; write {picture.with_suffix('.png')}.")
    if picture.resolve() == image.resolve():
        raise ConfigError(f"--out {picture}: that is the photograph itself; choose another name.")
    opened, where = Run.open(run), str(device_of(device))
    phrases = [_with_words(text) for text in phrase]
    config = configured(opened.columns, checkpoints=_checkpoints(checkpoint or ()))
    photo = Photo.read(KEY, image, side=config.side_px)
    found = answers(opened, photo, phrases, config, where)
    for path in write_answers(found, photo, picture, facts={"image": str(image), "run": str(run)}):
        typer.echo(f"wrote {path}")


def answers(run: "Run", photo: "Photo", phrases: Sequence[str], config: "PipelineConfig", device: str) -> list[Found]:
    """What the run finds on the photo for each phrase, told as it is found.

    config: of the frozen networks; CheckpointError unless they are those that the run was trained behind.
    """
    import numpy as np
    import torch

    from ..model.batch import Batch
    from ..model.loader import columns_of
    from ..model.vocabulary import words_of

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
    )
    predictions: Any = run.network(device=device).predict(batch)  # pyright: ignore[reportCallIssue]
    boxes = photo.letterbox.to_photo(predictions.boxes.cpu().numpy())
    masks = (predictions.mask_logits.sigmoid() > 0.5).cpu().numpy()
    return [
        Found(
            phrase=text,
            unknown_words=[word for word in words_of(text) if word not in vocabulary],
            box=boxes[place],
            score=float(predictions.scores[place]),
            mask=photo.letterbox.mask_to_photo(masks[place]),
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


def write_answers(found: Sequence[Found], photo: "Photo", picture: Path, facts: Mapping[str, str]) -> list[Path]:
    """Print the answers and write the picture, a mask each, and the JSON; the files, the picture first."""
    from ..shards.atomic import write_json
    from ..shards.codec import rle_encode
    from .pictures import Answer, Marks, answer_picture, save_mask, save_picture

    rows, masks = [], []
    for number, each in enumerate(found, start=1):
        corners = [round(float(value), 2) for value in each.box]
        typer.echo(
            f"“{each.phrase}”: box {' '.join(f'{value:.0f}' for value in corners)}, score {each.score:.2f}, "
            f"mask {int(each.mask.sum()):,} px"
        )
        if each.unknown_words:
            typer.echo(f"  not in the run's vocabulary, so without effect: {', '.join(each.unknown_words)}", err=True)
        masks.append(picture.with_name(f"{picture.stem}-mask{f'-{number}' if len(found) > 1 else ''}.png"))
        save_mask(each.mask, masks[-1])
        rows.append(
            {
                "phrase": each.phrase,
                "unknown_words": each.unknown_words,
                "box": corners,
                "score": round(each.score, 4),
                "mask": {"size": list(each.mask.shape), "counts": rle_encode(each.mask)},
                "mask_file": masks[-1].name,
            }
        )
    cells = [
        Answer(
            rgb=photo.rgb,
            expression=each.phrase,
            note=f"score {each.score:.2f}"
            + (f" · unknown: {', '.join(each.unknown_words)}" if each.unknown_words else ""),
            predicted=Marks(box=each.box, mask=each.mask),
        )
        for each in found
    ]
    save_picture(answer_picture(cells), picture)
    numbers = picture.with_suffix(".json")
    write_json(numbers, {**facts, "answers": rows})
    return [picture, numbers, *masks]


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
    for stage in stages:
        made_from = run.columns.get(stage.name)
        if made_from is not None and now[stage.name].fingerprint != made_from["fingerprint"]:
            why = "; ".join(differences(made_from["hashed"], now[stage.name].hashed))
            raise CheckpointError(
                f"{run.path}: trained on {stage.name} columns that cannot be made here: {why}. Name the weights it was "
                f"trained behind: --checkpoint {stage.name}=FILE"
            )
