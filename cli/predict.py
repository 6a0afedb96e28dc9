"""`weakmcn predict`: photographs and phrases: the frozen networks of the run's store, then the run's heads."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Device, MovedCheckpoints

if TYPE_CHECKING:
    from ..pipeline.images import Photo
    from .answering import Answerer, Found
    from .questions import Question

FOLDER = Path("weakmcn-answers")
"""Where the answers about several photographs go."""


def predict(
    run: Annotated[Path, typer.Option(metavar="RUN", help="Folder of the run.")],
    image: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE|DIR", help="Photographs: JPEG, PNG, GIF or BMP; may be repeated."),
    ] = None,
    phrase: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="What to find on each; may be repeated.")
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(metavar="FILE.jsonl", help='Questions, a line each: {"image": "a.jpg", "phrase": "left dog"}.'),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png|DIR",
            help="The picture of one photograph, or a folder for the answers.",
            show_default="the photograph's name and -weakmcn.png, here; for several, the folder weakmcn-answers",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, and nothing else; write files only where --out says.")
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out photographs that cannot be used; exit code 3 then.")
    ] = False,
    checkpoint: MovedCheckpoints = None,
    device: Device = "auto",
) -> None:
    """Find what phrases name on photographs: boxes and masks, and pictures of them.

    \b
    Needs    a run, and the weights of the frozen networks behind its store
             (those of pocket ship with the package)
    Writes   for one photograph FILE.png the picture, FILE.json the numbers,
             FILE-mask.png the mask (FILE-mask-1.png and so on for several
             phrases); for several a folder with the same and answers.jsonl,
             a line a photograph; no mask from a method without a mask head
    Example  weakmcn predict --run runs/first --image a.jpg --phrase "left dog"
             weakmcn predict --run runs/first --image photos --phrase dog --json

    All photographs are looked at before any work: what cannot be used is listed, exit code 2, or left out with
    --skip-bad. Each is encoded once for all its phrases.

    Boxes are in pixels of the photograph as stored (its EXIF rotation is ignored); they may leave it, as `eval`
    compares them, and are drawn cut to it. Objectness is the detector's, for the chosen box: how sure it is that
    something is there, whatever the phrase.
    """
    from ..model.run import Run, device_of
    from ..pipeline.estimate import counted
    from .answer_files import Output, picture_of
    from .answering import Answerer, frozen_networks
    from .questions import looked_at, questions, require_sound
    from .who_answers import checkpoint_of, tell_notes

    images = image or []
    _require_question(images, phrase or (), pairs)
    is_one = pairs is None and len(images) == 1 and not images[0].is_dir()
    target = out
    if out is None and not as_json:
        target = Path(f"{images[0].stem}-weakmcn.png") if is_one else FOLDER
    picture = picture_of(target, images[0]) if is_one and target is not None else None
    opened, where = Run.open(run), str(device_of(device))
    asked, passed_by = questions(images, phrase or (), pairs)
    if passed_by:
        typer.echo(f"passed by: {counted(passed_by, 'picture')} of earlier answers", err=True)
    output = Output.of(target, picture, asked)
    config = frozen_networks(opened, checkpoints_named(checkpoint or ()))
    bad, remarks = looked_at(asked, side=config.side_px)
    require_sound(bad, len(asked), skip_bad=skip_bad)
    names = _names(asked) if len(asked) > 1 else {}
    answerer = Answerer(opened, config, where)
    tell_notes(opened)
    asked = [each for each in asked if each.image not in bad]
    _tell_before(answerer, asked, bad, remarks)
    facts = {"run": str(run), "checkpoint": checkpoint_of(opened)}
    output.begin()
    rows = []
    for question, photo, found in _answered(answerer, asked):
        rows.append(output.write(question, photo, found, remarks.get(question.image, "")))
        if not as_json:
            _tell(names.get(question.image, ""), found)
    written = output.end(rows, facts)
    if as_json:
        skipped = [{"image": str(path), "reason": reason.removeprefix(f"{path}: ")} for path, reason in bad.items()]
        typer.echo(json.dumps({**facts, "photographs": rows, "skipped": skipped}, indent=2, allow_nan=False))
    else:
        for what in written:
            typer.echo(f"wrote {what}")
    if bad:
        raise typer.Exit(3)


def _answered(answerer: "Answerer", asked: Sequence["Question"]) -> Iterator[tuple["Question", "Photo", list["Found"]]]:
    """The answers of each photograph in turn, with a bar on a terminal."""
    from ..model.progress import counted
    from ..pipeline.images import Photo
    from .answering import KEY, PHOTOS_AT_ONCE

    with counted("answering", len(asked)) as count:
        for first in range(0, len(asked), PHOTOS_AT_ONCE):
            chunk = asked[first : first + PHOTOS_AT_ONCE]
            photos = [Photo.read(KEY, question.image, side=answerer.side) for question in chunk]
            columns = answerer.see(photos, of=len(asked))
            for question, photo, seen in zip(chunk, photos, columns, strict=True):
                yield question, photo, answerer.answers(photo, seen, question.phrases)
                count(1)


def _names(asked: Sequence["Question"]) -> dict[Path, str]:
    """What photographs are called on the screen: as they were typed where two have one name."""
    times = Counter(question.name for question in asked)
    return {each.image: each.name if times[each.name] == 1 else str(each.image) for each in asked}


def _tell(name: str, found: Sequence["Found"]) -> None:
    from ..pipeline.images import shown
    from .answering import HARDLY

    for each in found:
        said = []
        if each.box is not None:
            x0, y0, x1, y1 = (round(float(value)) for value in each.box)
            said.append(f"box {x0} {y0} to {x1} {y1}")
        if each.objectness is not None:
            said.append(f"objectness {each.objectness:.2f}{f' ({HARDLY})' if each.is_faint else ''}")
        if each.mask is not None:
            said.append(f"mask {each.mask.sum():,} px" if each.mask.any() else "mask empty")
        typer.echo((f"{shown(name)} " if name else "") + f"“{shown(each.phrase)}”: {', '.join(said)}")


def _tell_before(
    answerer: "Answerer", asked: Sequence["Question"], bad: Mapping[Path, str], remarks: Mapping[Path, str]
) -> None:
    """What a user should know of the questions: words that the run has never seen, photographs left out, remarks."""
    from ..pipeline.images import shown

    for text in dict.fromkeys(text for question in asked for text in question.phrases):
        if remark := answerer.remark(text):
            typer.echo(f"“{shown(text)}”: {shown(remark)}", err=True)
    for reason in bad.values():
        typer.echo(f"left out: {reason}", err=True)
    told: dict[str, list[str]] = {}
    for question in asked:
        if remark := remarks.get(question.image):
            told.setdefault(remark, []).append(shown(question.image))
    for remark, names in told.items():
        more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
        typer.echo(f"{names[0]}{more}: {remark}", err=True)


def _require_question(images: Sequence[Path], phrases: Sequence[str], pairs: Path | None) -> None:
    from ..shards.errors import ConfigError

    if not images and pairs is None:
        raise ConfigError("missing option '--image' or '--pairs'; see weakmcn predict --help.")
    if images and not phrases:
        raise ConfigError("missing option '--phrase', or --pairs in place of --image; see weakmcn predict --help.")
    if phrases and not images:
        raise ConfigError("--phrase is for photographs of --image, those of --pairs have their own; leave it out.")


def checkpoints_named(texts: Sequence[str]) -> dict[str, str]:
    """Stage -> file, of the words STAGE=FILE behind --checkpoint."""
    from ..shards.errors import ConfigError

    pairs = [text.partition("=") for text in texts]
    if wrong := [text for text, (stage, _, file) in zip(texts, pairs, strict=True) if not (stage and file)]:
        raise ConfigError(f"--checkpoint {wrong[0]}: write STAGE=FILE, sam=sam_vit_b_01ec64.pth for example.")
    return {stage: file for stage, _, file in pairs}
