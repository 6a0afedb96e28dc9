"""`weakmcn --with FILE`: a method is one file.

The file and the commands of the docs page, as they stand; and no code runs but that of a file that was named.
"""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from weakmcn.model import methods
from weakmcn.model.children import run_ranks
from weakmcn.model.evaluate import evaluate_run
from weakmcn.model.own import add_methods
from weakmcn.model.results import read_results, results_file
from weakmcn.model.run import Run
from weakmcn.shards.errors import InputError

from .faults.commands import Commands, Ended
from .pages import ROOT, blocks, shell_lines, text_of

PAGE, FILE = "docs/add-a-method.md", "docs/pooled.py"


@pytest.fixture(autouse=True)
def _known_to_no_other_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))


def typed(commands: Commands, folder: Path, *words: object) -> Ended:
    ended = commands.run(*words, folder=folder, seconds=100, memory_mib=4096)
    assert not ended.timed_out
    assert "Traceback" not in ended.err
    return ended


@pytest.fixture(scope="module")
def folder(commands: Commands, demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all of the page's commands were typed. Not to be changed."""
    folder = tmp_path_factory.mktemp("repository")
    (folder / "docs").symlink_to(ROOT / "docs")
    (folder / "demo").symlink_to(demo)
    for words in shell_lines(text_of(PAGE)):
        ended = typed(commands, folder, *words)
        assert ended.status == 0, ended
    return folder


def right_boxes(run: Path) -> float:
    """Percent of all sentences, those trained on too: none of their boxes was ever read, and val alone is small."""
    add_methods(ROOT / FILE)
    opened = Run.open(run)
    measured = [read_results(results_file(opened, "refcoco+", "val")).summary]  # by the page's command
    measured.append(evaluate_run(opened, "train").summary)
    return sum(each["rec_acc50"] * each["sentences"] for each in measured) / sum(each["sentences"] for each in measured)


# The page


def test_the_method_of_the_page_learns_and_its_control_learns_less(folder: Path) -> None:
    learned, control = right_boxes(folder / "runs/pooled"), right_boxes(folder / "runs/control")
    assert learned >= control + 6
    assert learned >= 21, "a random candidate is right in 15 of 100"


def test_its_row_is_in_the_table_with_figures(folder: Path) -> None:
    rows = list(csv.DictReader((folder / "tables/table-5.csv").read_text().splitlines()))
    assert [row["row"] for row in rows] == ["pooled"]
    assert float(rows[0]["REC val, mean"]) > 0
    assert float(rows[0]["RES val, mean"]) > 0
    assert "pooled" in (folder / "tables/tables.md").read_text()


def test_its_sample_runs_as_it_stands(folder: Path) -> None:
    excerpt, sample = blocks(text_of(PAGE), "python")
    assert excerpt in text_of(FILE), "what the page shows of the file is in the file"
    words = [sys.executable, "-W", "error", "-c", sample]
    printed = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True, timeout=60).stdout
    assert "dino (1, 96, 12, 12)" in printed
    assert "masks (1, 9, 192, 24)" in printed


def test_the_run_answers_and_is_told_of_where_its_file_is_named(commands: Commands, folder: Path, demo: Path) -> None:
    photo = next((demo / "data/images/train2014").iterdir())
    predict = ("predict", "--run", folder / "runs/pooled", "--image", photo, "--phrase", "the purple ring", "--json")
    answered = typed(commands, folder, "--with", ROOT / FILE, *predict)
    assert answered.status == 0, answered
    assert len(json.loads(answered.out)["photographs"][0]["answers"][0]["box_xyxy"]) == 4
    listed = typed(commands, folder, "--with", ROOT / FILE, "runs", "list", "runs")
    assert listed.out.count("pooled pocket") == 2


# What runs, and what does not


PAYLOAD = """
from pathlib import Path
Path({canary!r}).mkdir()
METHODS = {{}}
"""


@pytest.mark.parametrize(
    "command",
    [
        ("eval", "--run", "run"),
        ("predict", "--run", "run", "--image", "photo.jpg", "--phrase", "dog"),
        ("serve", "--run", "run", "--port", "0"),
        ("export", "--run", "run", "--format", "jsonl", "--out", "new"),
        ("report", "run"),
        ("runs", "list", "run"),
        ("runs", "compare", "run", "run"),
        ("train", "--shards", "demo/store", "--dataset", "refcoco+", "--out", "run", "--method", "pooled"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_opening_a_run_runs_no_file_that_it_names_or_holds(
    commands: Commands, folder: Path, demo: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    shutil.copytree(folder / "runs/pooled", tmp_path / "run")
    (tmp_path / "demo").symlink_to(demo)
    (tmp_path / "photo.jpg").symlink_to(next((demo / "data/images/train2014").iterdir()))
    facts = json.loads((tmp_path / "run/run.json").read_text())
    facts["code"]["file"] = "run/pooled.py"
    (tmp_path / "run/run.json").write_text(json.dumps(facts))
    for name in ("pooled.py", "__init__.py", "sitecustomize.py"):
        (tmp_path / "run" / name).write_text(PAYLOAD.format(canary=str(tmp_path / "canary")))
    ended = typed(commands, tmp_path, *command)
    assert not (tmp_path / "canary").exists()
    if command[0] == "runs" and command[1] == "list":
        assert "'run/pooled.py'" in " ".join(ended.out.split())
    else:
        assert (ended.status, len(ended.told)) == (2, 1), ended
        assert "method 'pooled'" in ended.err
        assert command[0] == "train" or "weakmcn --with run/pooled.py" in ended.err
    named = typed(commands, tmp_path, "--with", "run/pooled.py", *command)
    assert (tmp_path / "canary").exists(), "the file does what it says where it is named"
    assert named.status == 2


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (None, "No such file"),
        ("METHODS = {", "line 1: SyntaxError"),
        ("x = 1\nraise KeyError('ring')", "line 2: KeyError: 'ring'"),
        ("import nowhere_at_all", "line 1: ModuleNotFoundError"),
        ("x = 1", "no METHODS"),
        ("METHODS = {'mine': print}", "no METHODS"),
        ("from weakmcn.model.methods import METHODS", "a method 'weakmcn' already"),
    ],
)
def test_a_file_that_is_no_method_is_told_in_one_line(
    commands: Commands, tmp_path: Path, source: str | None, told: str
) -> None:
    if source is not None:
        (tmp_path / "mine.py").write_text(source)
    ended = typed(commands, tmp_path, "--with", "mine.py", "presets")
    assert (ended.status, len(ended.told)) == (2, 1), ended
    assert "--with mine.py" in ended.err
    assert told in ended.err


def test_a_run_is_known_by_its_file(commands: Commands, folder: Path, demo: Path, tmp_path: Path) -> None:
    """Another file trains another row; a run does not go on with it, and what it measures is told."""
    shutil.copytree(folder / "runs/pooled", tmp_path / "run")
    (tmp_path / "demo").symlink_to(demo)
    (tmp_path / "mine.py").write_text(text_of(FILE) + "# changed\n")
    train = ("train", "--shards", "demo/store", "--dataset", "refcoco+", "--out", "run", "--method", "pooled")
    refused = typed(commands, tmp_path, "--with", "mine.py", *train)
    assert (refused.status, len(refused.told)) == (2, 1), refused
    assert "code.sha256" in refused.err
    measured = typed(commands, tmp_path, "--with", "mine.py", "eval", "--run", "run")
    assert measured.status == 0
    assert "mine.py is not as it was when the run was trained" in measured.out
    shutil.copy(ROOT / FILE, tmp_path / "moved.py")
    same = typed(commands, tmp_path, "--with", "moved.py", *train)
    assert same.status == 0, "the same file elsewhere is the same file"
    assert "not as it was" not in typed(commands, tmp_path, "--with", "moved.py", "eval", "--run", "run").out


def test_two_files_may_not_have_one_name_and_one_file_may_be_named_twice(tmp_path: Path) -> None:
    shutil.copy(ROOT / FILE, tmp_path / "other.py")
    assert add_methods(ROOT / FILE) == add_methods(ROOT / FILE) == ["pooled"]
    with pytest.raises(InputError, match="there is a method 'pooled' already"):
        add_methods(tmp_path / "other.py")


def test_processes_that_are_started_know_the_methods_of_this_one(tmp_path: Path) -> None:
    add_methods(ROOT / FILE)
    code = (
        "from weakmcn.model.children import Report, received_order\n"
        "order = received_order()\n"
        "from weakmcn.model.methods import METHODS\n"
        "status = 0 if METHODS['pooled'].settings.__name__ == 'PooledConfig' else 1\n"
        "Report(status=status, message='unknown').send(order['report_end'])\n"
    )
    run_ranks(code, [{}], tmp_path)
