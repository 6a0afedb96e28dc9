"""Word vectors from a file in a run: what learns, what travels, what is refused.

The expressions of the toy world are "the COLOUR square" and "COLOUR one".
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from weakmcn.cli.settings import explained
from weakmcn.model.evaluate import evaluate_run
from weakmcn.model.run import Run
from weakmcn.model.state import TrainState
from weakmcn.model.train import train
from weakmcn.model.train_settings import TrainSettings
from weakmcn.model.words import read_words
from weakmcn.shards.errors import ConfigError

from .worlds import COLOURS, DATASET, RECIPE, TINY, make_store

FROZEN = replace(TINY, train_words=False)
BRIEF = replace(RECIPE, epochs=2)
"""Six steps, a checkpoint after three."""
TEXT = "".join(
    f"{word} {' '.join(f'{math.sin(7 * place + i):.4f}' for i in range(TINY.word_dim))}\n"
    for place, word in enumerate(("the", "square", *COLOURS))
)
"""All words but "one"."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("world") / "store")


@pytest.fixture
def glove(tmp_path: Path) -> Path:
    path = tmp_path / "toy.8d.txt"
    path.write_text(TEXT)
    return path


def settings(store: Path, out: Path, words: Path | None, **more) -> TrainSettings:
    values = {"model": FROZEN, "train": BRIEF, "device": "cpu", "log_steps": 2} | more
    return TrainSettings(store=store, dataset=DATASET, out=out, words=words, **values)


class Crash(Exception):  # noqa: N818 - not an error of the program
    """Stands for a kill."""


def crash_at(step: int) -> Callable[[TrainState], None]:
    def act(state: TrainState) -> None:
        if state.step == step:
            raise Crash

    return act


def content(run: Path) -> dict[str, bytes]:
    files = (path for path in sorted(run.rglob("*")) if path.is_file() and path.name != "timing.jsonl")
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def table_of(run: Path) -> torch.Tensor:
    return Run.open(run).network().state_dict()["text.words.weight"]


def test_a_run_keeps_its_vectors_as_they_are_and_needs_the_file_no_more(
    store: Path, glove: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(settings(store, tmp_path / "run", glove))
    table = read_words(glove, run.vocabulary, TINY.word_dim)
    glove.unlink()
    assert torch.equal(table_of(run.path), table.vectors)
    assert run.facts["words"] == {
        "file": "toy.8d.txt",
        "sha256": table.sha256,
        "found": table.found,
        "rows": len(run.vocabulary),
    }
    assert table.summary in capsys.readouterr().err
    assert table.missing == ("one",)
    assert 0 <= evaluate_run(run, "val").summary["rec_acc50"] <= 100


def test_what_the_vectors_are_decides_what_is_learned(store: Path, glove: Path, tmp_path: Path) -> None:
    once = replace(BRIEF, epochs=1)
    first = train(settings(store, tmp_path / "first", glove, train=once)).metrics.read_text()
    glove.write_text(TEXT.replace("0.", "1."))
    assert train(settings(store, tmp_path / "second", glove, train=once)).metrics.read_text() != first


@pytest.mark.parametrize("file_is_there", [True, False])
def test_a_run_goes_on_with_its_own_vectors_whether_or_not_the_file_is_there(
    store: Path, glove: Path, tmp_path: Path, file_is_there: bool
) -> None:
    train(settings(store, tmp_path / "undisturbed", glove))
    with pytest.raises(Crash):
        train(settings(store, tmp_path / "run", glove), after_step=crash_at(5))
    if not file_is_there:
        glove.unlink()
    train(settings(store, tmp_path / "run", glove))
    assert content(tmp_path / "run") == content(tmp_path / "undisturbed")


@pytest.mark.parametrize("step", [1, 5])
def test_the_same_file_under_another_name_is_the_same_file(store: Path, glove: Path, tmp_path: Path, step: int) -> None:
    with pytest.raises(Crash):
        train(settings(store, tmp_path / "run", glove), after_step=crash_at(step))
    assert train(settings(store, tmp_path / "run", glove.rename(tmp_path / "renamed.txt"))).finished


def test_a_run_that_was_killed_before_its_first_checkpoint_reads_the_file_again(
    store: Path, glove: Path, tmp_path: Path
) -> None:
    with pytest.raises(Crash):
        train(settings(store, tmp_path / "run", glove), after_step=crash_at(2))
    gone = glove.rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=re.escape(f"{glove}: no such file")):
        train(settings(store, tmp_path / "run", glove))
    gone.rename(glove)
    run = train(settings(store, tmp_path / "run", glove))
    assert torch.equal(table_of(run.path), read_words(glove, run.vocabulary, TINY.word_dim).vectors)


@pytest.mark.parametrize("saved", [True, False])
def test_a_run_goes_on_with_no_other_vectors_than_its_own(
    store: Path, glove: Path, tmp_path: Path, saved: bool
) -> None:
    out = tmp_path / "run"
    with pytest.raises(Crash):
        train(settings(store, out, glove), after_step=crash_at(5 if saved else 1))
    before = content(out)
    other, absent = tmp_path / "other.txt", tmp_path / "absent.txt"
    other.write_text(TEXT.replace("0.", "1."))
    with pytest.raises(ConfigError, match=r"other.txt: not the word vectors that .*run was made with \(toy.8d.txt, "):
        train(settings(store, out, other))
    with pytest.raises(ConfigError, match=r"absent\.txt: not the word vectors"):
        train(settings(store, out, absent))
    with pytest.raises(ConfigError, match=r"run was made with --words toy.8d.txt; say it again"):
        train(settings(store, out, None))
    assert content(out) == before


def test_a_run_without_vectors_gets_none_later(store: Path, glove: Path, tmp_path: Path) -> None:
    with pytest.raises(Crash):
        train(settings(store, tmp_path / "run", None, model=TINY), after_step=crash_at(5))
    with pytest.raises(ConfigError, match="was made without --words"):
        train(settings(store, tmp_path / "run", glove, model=TINY))


def command(store: Path, out: Path, *more: object, without: Sequence[str] = ("model.train_words",)) -> list[object]:
    """The words of `weakmcn train` for the toy world, every setting but some spelt out."""
    chosen = [(name, value) for name, value, _ in explained({"model": TINY, "train": BRIEF}) if name not in without]
    spelt = [part for name, value in chosen for part in ("--set", f"{name}={value}")]
    return ["train", "--shards", store, "--dataset", DATASET, "--preset", "pocket", *spelt, "--out", out, *more]


@pytest.mark.parametrize(
    ("more", "learn", "told"),
    [
        ((), True, True),
        (("--set", "model.train_words=true"), True, False),
        (("--words", "FILE"), False, False),
        (("--words", "FILE", "--set", "model.train_words=true"), True, False),
    ],
)
def test_vectors_from_a_file_stay_and_random_ones_learn_unless_the_user_says_otherwise(
    run, store: Path, glove: Path, tmp_path: Path, more: tuple[str, ...], learn: bool, told: bool
) -> None:
    words = [glove if word == "FILE" else word for word in more]
    ended = run(*command(store, tmp_path / "run", *words))
    assert ended.status == 0
    assert ("Word vectors begin at random and are learned; --words FILE" in ended.err) == told
    made = Run.open(tmp_path / "run")
    assert made.model.train_words == learn
    if "FILE" in more:
        given = read_words(glove, made.vocabulary, TINY.word_dim).vectors
        assert torch.equal(table_of(made.path), given) != learn


def test_random_vectors_that_do_not_learn_are_told(run, store: Path, tmp_path: Path) -> None:
    ended = run(*command(store, tmp_path / "run", "--set", "model.train_words=false"))
    assert "Word vectors are random and do not learn. Name some: --words FILE" in ended.err


def test_another_width_is_refused_with_the_words_that_mend_it(run, store: Path, glove: Path, tmp_path: Path) -> None:
    glove.write_text(re.sub(" [^ ]+\n", "\n", TEXT))
    ended = run(*command(store, tmp_path / "run", "--words", glove))
    assert (ended.status, ended.out) == (2, "")
    mend = re.fullmatch(
        r"weakmcn: \S+: its vectors have 7 numbers, model.word_dim is 8; add (--set model.word_dim=7)\n", ended.err
    )
    assert mend
    assert not (tmp_path / "run").exists()
    ended = run(*command(store, tmp_path / "run", "--words", glove, *mend[1].split(), without=["model.word_dim"]))
    assert ended.status == 0
    assert table_of(tmp_path / "run").shape[1] == 7


def test_a_bad_file_stops_the_command_before_anything_is_written(run, store: Path, glove: Path, tmp_path: Path) -> None:
    glove.write_text(TEXT[:-20])
    ended = run(*command(store, tmp_path / "run", "--words", glove))
    assert (ended.status, ended.out) == (2, "")
    assert re.fullmatch(rf"weakmcn: {re.escape(str(glove))}: line 14 has \d numbers, 8 are wanted; .*\n", ended.err)
    assert not (tmp_path / "run").exists()
