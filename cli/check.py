"""`weakmcn check`: what a folder of data sets holds, before anything is computed from it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import completion
from .options import AsJson

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.table import Table

    from ..pipeline.check import DataCheck, DatasetCheck, Told
    from ..pipeline.datasets import Counts

SHOWN = 5
"""Photographs that are named of each kind of fault; `--json` has all."""
SIZES = ("images", "references", "sentences")


@dataclass(frozen=True, kw_only=True)
class WordCheck:
    """The words of one data set, over all its splits."""

    words: int
    """Different ones; its word table has three rows more."""
    expressions: int
    longest: int
    """Words of the longest expression."""
    cut: int
    """Expressions longer than the network reads."""
    blank: int
    """Expressions without a word."""
    covered: int | None = None
    """Words that have a vector in the file; None where no file was named."""


def check(
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="Folder of the data sets.")],
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Only this one, and it must be there; may be repeated.",
            show_default="all that are there",
            autocompletion=completion.datasets,
        ),
    ] = None,
    decode: Annotated[
        bool, typer.Option("--decode", help="Decode every photograph whole; without it their headers must do.")
    ] = False,
    words: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Word vectors, as train takes them: how many words have one."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look at a folder of data sets: what is there, what is missing, what is broken, what to beware of.

    \b
    Needs    annotations in REFER's or SimREC's layout, photographs
    Writes   nothing
    Example  weakmcn check data
             weakmcn check data --dataset refcoco --decode --words glove.6B.zip

    Counts are compared with the published ones; where they differ, the published one stands beside in brackets. That,
    photographs that one data set trains on and another measures on, and a detector that may know the photographs of a
    test split, are told and are no fault.

    Exit code 2 if anything is missing or broken that precompute needs.
    """
    from rich.console import Console

    from ..pipeline.check import check_data
    from ..pipeline.plain_table import plain_console

    with _told(Console(stderr=True)) as told:
        found = check_data(root, datasets=dataset, decoded=decode, told=told)
    spoken, problems = _check_words(found.datasets, words)
    problems = [*found.problems, *problems]
    if as_json:
        typer.echo(json.dumps(_facts(found, spoken, problems), indent=2))
    else:
        _show(plain_console(), found, spoken, problems, words)
    if problems:
        raise typer.Exit(2)


@contextmanager
def _told(console: "Console") -> Iterator["Told"]:
    """A bar on a terminal, nothing elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        row = progress.add_task("", total=None)
        yield lambda what, done, total: progress.update(row, description=what, completed=done, total=total or None)


def _check_words(checks: Sequence["DatasetCheck"], file: Path | None) -> tuple[dict[str, WordCheck], list[str]]:
    """The words of each data set, and what is wrong with the file of vectors."""
    from ..model.config import ModelConfig
    from ..model.vocabulary import Vocabulary, words_of
    from ..shards.errors import ConfigError

    found, rows = {}, {}
    for each in checks:
        if each.fault:
            continue
        sentences = [words_of(sentence) for split in each.sentences.values() for sentence in split]
        rows[each.name] = Vocabulary.build(sentence for split in each.sentences.values() for sentence in split).rows
        lengths = [len(sentence) for sentence in sentences]
        found[each.name] = WordCheck(
            words=len({word for sentence in sentences for word in sentence}),
            expressions=len(lengths),
            longest=max(lengths, default=0),
            cut=sum(length > ModelConfig.max_tokens for length in lengths),
            blank=lengths.count(0),
        )
    if file is None or not found:
        return found, []
    from ..model.words import read_words  # brings in torch

    everything = Vocabulary(tuple(dict.fromkeys(word for own in rows.values() for word in own)))
    try:
        missing = set(read_words(file, everything, ModelConfig.word_dim).missing)
    except ConfigError as error:
        return found, [str(error).removesuffix(".")]
    return {
        name: replace(each, covered=each.words - len(missing.intersection(rows[name]))) for name, each in found.items()
    }, []


def _facts(found: "DataCheck", spoken: Mapping[str, WordCheck], problems: Sequence[str]) -> dict[str, Any]:
    from ..pipeline.layouts import names_to_look_for

    def splits(each: "DatasetCheck") -> dict[str, Any]:
        return {
            split: asdict(counts)
            | (
                {"published": asdict(each.spec.counts[split])}
                if each.is_published and split in each.spec.counts
                else {}
            )
            for split, counts in each.counts.items()
        }

    photos = found.photos
    return {
        "root": str(found.root),
        "datasets": {
            each.name: {
                "file": each.file,
                "unread": list(each.unread),
                "fault": each.fault,
                "source": each.source,
                "splits": splits(each),
                "words": asdict(spoken[each.name]) if each.name in spoken else None,
            }
            for each in found.datasets
        },
        "absent": {spec.name: names_to_look_for(spec) for spec in found.absent},
        "photographs": asdict(photos),
        "shared": [asdict(each) for each in found.shared],
        "coco_photographs_evaluated": found.coco_evaluated,
        "notes": list(found.notes),
        "problems": list(problems),
    }


def _show(
    console: "Console",
    found: "DataCheck",
    spoken: Mapping[str, WordCheck],
    problems: Sequence[str],
    words: Path | None,
) -> None:
    def say(text: str, style: str = "") -> None:
        console.print(text, markup=False, style=style)

    if found.datasets:
        console.print(_counts_table(found))
        console.print()
        for each in found.datasets:
            others = f"; not read, though it is there: {', '.join(each.unread)}" if each.unread else ""
            say(f"{each.name} from {each.file}{others}")
    if spoken:
        console.print()
        console.print(_words_table(spoken, words))
    if found.datasets:
        console.print()
        _show_photos(console, found)
    if found.shared:
        console.print()
        console.print(_shared_table(found))
    if found.absent and found.datasets:
        console.print()
        console.print(_absent_table(found))
    for note in found.notes:
        console.print()
        say(f"note: {note}.", style="yellow")
    console.print()
    for problem in problems:
        say(problem, style="red")
    if not problems:
        say("All that is needed is there." if found.photos.decoded else "All that is needed is there, by its headers.")


def _counts_table(found: "DataCheck") -> "Group":
    from ..pipeline.datasets import Counts
    from ..pipeline.plain_table import with_words

    told = ["a pocket world"] if found.is_pocket else []
    told += [f"pseudo labels that {found.labels_of} predicted"] if found.labels_of is not None else []
    table = _table("data set", "split", *SIZES)
    for each in found.datasets:
        if each.fault:
            table.add_row(each.name, "[red]cannot be used[/]")
        none = Counts(0, 0, 0)
        published = each.spec.counts if each.is_published else {}
        for place, split in enumerate(dict.fromkeys([*each.counts, *published]) if not each.fault else ()):
            cells = (_count(each.counts.get(split, none), published.get(split), what) for what in SIZES)
            table.add_row(each.name if place == 0 else "", split, *cells)
        table.add_section()
    return with_words(table, above=", ".join([f"{found.root}", *told]))


def _count(here: "Counts", published: "Counts | None", what: str) -> str:
    number, expected = getattr(here, what), getattr(published, what, None)
    if expected is None:
        return f"{number:,}"
    return f"[green]{number:,}[/]" if number == expected else f"[yellow]{number:,} ({expected:,})[/]"


def _words_table(spoken: Mapping[str, WordCheck], file: Path | None) -> "Table":
    from ..model.config import ModelConfig

    vectors = ["with a vector"] if file else []
    longer = f"longer than {ModelConfig.max_tokens}"
    table = _table("words of", "different", *vectors, "expressions", longer, "longest", "empty")
    for name, each in spoken.items():
        covered = [f"{each.covered:,}" if each.covered is not None else "?"] if file else []
        numbers = (each.expressions, each.cut, each.longest, each.blank)
        table.add_row(name, f"{each.words:,}", *covered, *(f"{number:,}" for number in numbers))
    return table


def _shared_table(found: "DataCheck") -> "Table":
    table = _table("who trains on", "and measures on", "knows photographs")
    for each in found.shared:
        table.add_row(each.train, f"{each.evaluated} {each.split}", f"{each.images:,}")
    table.columns[1].justify = "left"
    return table


def _absent_table(found: "DataCheck") -> "Group":
    from ..pipeline.layouts import BESIDE, names_to_look_for
    from ..pipeline.plain_table import with_words

    table = _table("not here", "what to look for")
    table.columns[1].justify = "left"
    for spec in found.absent:
        table.add_row(spec.name, names_to_look_for(spec), style="dim")
    return with_words(table, below=BESIDE)


def _table(*heads: str) -> "Table":
    from ..pipeline.plain_table import plain_table

    table = plain_table(gap=1)
    table.add_column(heads[0], no_wrap=True)
    for head in heads[1:]:
        table.add_column(head, justify="left" if head == "split" else "right", no_wrap=True)
    return table


def _show_photos(console: "Console", found: "DataCheck") -> None:
    photos = found.photos
    where = ", ".join(f"{folder} ({files:,} files)" for folder, files in photos.folders.items()) or "none"
    how = "decoded" if photos.decoded else "headers read; --decode reads them whole"
    sound = photos.total - len(photos.missing) - len(photos.broken)
    if not photos.folders:
        sound = 0
    console.print(f"photographs: {sound:,} of {photos.total:,} can be used ({how})", markup=False)
    console.print(f"folders: {where}", markup=False)
    for kind, names in (("missing", photos.missing), ("broken", photos.broken)):
        for name in names[:SHOWN]:
            console.print(f"{kind}: {name}", markup=False, style="red", soft_wrap=True)
        if len(names) > SHOWN:
            console.print(f"and {len(names) - SHOWN:,} more; --json has them all", style="red")
