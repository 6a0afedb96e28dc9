"""No file runs code, whatever command reads it, wherever it stands.

The payloads are real: what careless readers do with them makes the canary. Then each goes through every command that
reads files, in the place of a file that the command reads: nothing is made, and what is told is one line.
"""

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from weakmcn.cli.main import app

from .faults import sound
from .faults.commands import Commands, Ended
from .faults.payloads import PAYLOADS, Payload

ROOT = Path(__file__).parent.parent
ALL_PLACES = bool(os.environ.get("WEAKMCN_SOAK"))
"""Every payload in every place, not in one of each command's."""
ALIKE = ("protocol 0", "protocol 4", "INST", "OBJ", ".npz", ".pkl", ".pickle", "old")
SEVERAL = [payload for payload in PAYLOADS if ALL_PLACES or not any(word in payload.name for word in ALIKE)]
"""One of each kind."""
DETECT = "store/detect-*"
RUN_FILES = (
    *("run/run.json", "run/vocabulary.json", "run/columns.json"),
    *("run/checkpoints/00000001.json", "run/checkpoints/00000001.safetensors"),
)
STORE_FILES = (
    *("store/store.json", "store/images.parquet", f"{DETECT}/stage.json", f"{DETECT}/000000.json"),
    *(f"{DETECT}/000000.tar", f"{DETECT}/index.parquet", "store/refs-refcoco.parquet"),
)
DATA_FILES = (
    *("data/refcoco/refs(unc).p", "data/refcoco/refs(unc).json", "data/refcoco/instances.json", "data/pocket.json"),
    *(f"data/images/train2014/{sound.name_of(2)}", "data/anns/refcoco.json", "data/masks/refcoco/1.npy", "payload"),
)
"""`payload` is a file that a command line names."""
DATA = ("--data", "data", "--dataset", "refcoco", "--executor", "local", "--stages", "detect")
TRAIN = ("train", "--shards", "store", "--dataset", "refcoco", "--epochs", "1", "--set", "train.batch=2")
PREDICT = ("predict", "--run", "run", "--phrase", "left thing", "--image")
PHOTO = f"data/images/train2014/{sound.name_of(2)}"


@dataclass(frozen=True)
class Place:
    """A command line, and the file of it that is replaced."""

    words: tuple[str, ...]
    file: str


def places(words: tuple[str, ...], *files: str) -> tuple[Place, ...]:
    return tuple(Place(words, file) for file in files)


COMMANDS: dict[str, tuple[Place, ...]] = {
    "precompute": (
        *places(("precompute", *DATA, "--store", "new"), *DATA_FILES[:-1]),
        *places(("precompute", *DATA, "--store", "new", "--checkpoint", "detect=payload"), "payload"),
        *places(("precompute", *DATA, "--store", "store"), *STORE_FILES[:-1]),
    ),
    "train": (
        *places((*TRAIN, "--out", "new"), *STORE_FILES),
        *places((*TRAIN, "--out", "new", "--words", "payload"), "payload"),
        *places((*TRAIN, "--out", "run"), *RUN_FILES, "run/metrics.jsonl"),
    ),
    "eval": (
        *places(("eval", "--run", "run", "--shards", "store"), *RUN_FILES, *STORE_FILES),
        *places(("eval", "--run", "run", "--shards", "payload"), "payload"),
        *places(("eval", "--predictions", "payload", "--shards", "store", "--dataset", "refcoco"), "payload"),
    ),
    "predict": (
        *places((*PREDICT, "payload"), "payload"),
        *places((*PREDICT, PHOTO), *RUN_FILES),
        *places((*PREDICT, PHOTO, "--checkpoint", "detect=payload"), "payload"),
        *places(("predict", "--run", "run", "--pairs", "payload"), "payload"),
    ),
    "serve": places(("serve", "--run", "run", "--port", "0", "--checkpoint", "detect=payload"), "payload"),
    "export": places(("export", "--run", "run", "--format", "jsonl", "--out", "new"), *RUN_FILES, *STORE_FILES),
    "check": (
        *places(("check", "data"), *DATA_FILES[:-1]),
        *places(("check", "data", "--words", "payload"), "payload"),
    ),
    "report": places(("report", "run", "--out", "new.html"), *RUN_FILES),
    "tables": places(("tables", "1", "--shards", "payload", "--dataset", "refcoco"), "payload"),
    "runs list": places(("runs", "list", "run"), *RUN_FILES, "run/eval-val.json"),
    "runs compare": places(("runs", "compare", "run", "run"), *RUN_FILES, "run/eval-val.json"),
    "convert": (
        *places(("convert", "payload", "--annotations", "data/anns/refcoco.json", "--out", "new"), "payload"),
        *places(("convert", "payload", "--annotations", "payload", "--out", "new"), "payload"),
    ),
    "store ls": places(("store", "ls", "store"), *STORE_FILES),
    "store verify": places(("store", "verify", "store"), *STORE_FILES),
    "store repair": places(("store", "repair", "store"), *STORE_FILES),
    "store gc": places(("store", "gc", "store"), *STORE_FILES),
    "pocket": places(("pocket", "world", "--images", "32"), "world/pocket.json"),
    "demo": places(("demo", "--out", "mine"), "mine/data/pocket.json"),
}
NATURAL = {
    ".p": COMMANDS["precompute"][0],
    ".npy": COMMANDS["precompute"][6],
    ".npz": COMMANDS["precompute"][6],
    ".pth": COMMANDS["precompute"][7],
    ".pt": COMMANDS["precompute"][7],
    ".pt.zip": COMMANDS["convert"][0],
    ".tar": Place(("eval", "--run", "run", "--shards", "store"), f"{DETECT}/000000.tar"),
    ".zip": Place((*TRAIN, "--out", "new", "--words", "payload"), "payload"),
    ".metadata": COMMANDS["precompute"][7],
    ".parquet": COMMANDS["store ls"][1],
    ".safetensors": COMMANDS["predict"][-2],
    ".json": COMMANDS["eval"][0],
}
"""Suffix -> where a careless program would open such a file."""


def test_every_command_is_tried() -> None:
    groups = {group.name: group.typer_instance for group in app.registered_groups}
    names = {command.name for command in app.registered_commands}
    for name, group in groups.items():
        assert group is not None
        names |= {
            f"{name} {command.name or getattr(command.callback, '__name__', '')}"
            for command in group.registered_commands
        }
    assert names == COMMANDS.keys() | {"doctor", "presets"}, "those two are given no file of a user's"


def put(commands: Commands, pair: Path, folder: Path, payload: Payload, place: Place) -> Ended:
    """Run the place's command on a copy of the sound files with the payload in one's place; no canary comes of it."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    for part in ("data", "store", "run"):
        if f"{part}/" in place.file or part in place.words or any(word.startswith(f"{part}/") for word in place.words):
            shutil.copytree(pair / part, folder / part)
    if "anns" in place.file or "masks" in place.file:
        shutil.rmtree(folder / "data")
        sound.write_simrec(folder / "data", sound.SIMREC)
    canary = folder / "canary"
    target = next(folder.glob(place.file), folder / place.file)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(payload.data(canary))
    ended = commands.run(*place.words, folder=folder)
    assert not list(folder.parent.rglob("canary")), (payload.name, place, ended)
    assert not ended.timed_out, (payload.name, place)
    assert "Traceback" not in ended.err, (payload.name, place, ended.err)
    assert ended.status in (0, 1, 2, 3), (payload.name, place, ended)
    return ended


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: payload.name)
def test_a_payload_where_it_belongs_is_refused_in_one_line_and_runs_nothing(
    commands: Commands, pair: Path, tmp_path: Path, payload: Payload
) -> None:
    ended = put(commands, pair, tmp_path / "case", payload, NATURAL[payload.suffix])
    assert ended.status == 2, ended
    assert len(ended.told) == 1, ended.err


@pytest.mark.parametrize("command", COMMANDS)
def test_no_payload_runs_in_any_file_that_a_command_reads(
    commands: Commands, pair: Path, tmp_path: Path, command: str
) -> None:
    there = COMMANDS[command]
    for number, payload in enumerate(SEVERAL):
        for place in there if ALL_PLACES else [there[number % len(there)]]:
            put(commands, pair, tmp_path / "case", payload, place)


def test_a_folder_full_of_payloads_is_looked_at_without_running_any(commands: Commands, tmp_path: Path) -> None:
    canary, weights = tmp_path / "canary", tmp_path / "weights"
    weights.mkdir()
    for number, payload in enumerate(PAYLOADS):
        (weights / f"{number}{payload.suffix}").write_bytes(payload.data(canary))
        (weights / f"{number}.pth").write_bytes(payload.data(canary))
    (weights / "yolov3_coco.pth").write_bytes(PAYLOADS[0].data(canary))
    ended = commands.run("doctor", "--weights", "weights", folder=tmp_path)
    assert (ended.status, ended.timed_out, "Traceback" in ended.err) == (2, False, False)
    assert not canary.exists()


@pytest.mark.parametrize(
    "words",
    [
        ("eval", "--run", "run", "--shards", "pipe:mkdir canary"),
        ("train", "--shards", "pipe:mkdir canary", "--dataset", "refcoco", "--out", "new"),
        ("store", "verify", "pipe:mkdir canary"),
        ("precompute", "--data", "pipe:mkdir canary", "--dataset", "refcoco", "--store", "new"),
        ("precompute", "--data", "data", "--dataset", "$(mkdir canary)", "--store", "new"),
        ("predict", "--run", "run", "--image", "|mkdir canary", "--phrase", "dog"),
        ("predict", "--run", "run", "--image", PHOTO, "--phrase", "`mkdir canary`", "--device", "$(mkdir canary)"),
        ("doctor", "--model", "__import__('os').mkdir('canary')"),
        ("train", "--shards", "store", "--dataset", "refcoco", "--out", "new", "--set", "train.lr=__import__('os')"),
    ],
    ids=shlex.join,
)
def test_no_word_of_a_command_line_runs(commands: Commands, pair: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    for part in ("data", "store", "run"):
        (tmp_path / part).symlink_to(pair / part)
    ended = commands.run(*words, folder=tmp_path)
    assert (ended.status, len(ended.told)) == (2, 1), ended
    assert not list(tmp_path.rglob("canary"))


FIRE = """
import contextlib, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.faults.payloads import PAYLOADS
for number, payload in enumerate(PAYLOADS):
    if payload.fire is None:
        continue
    folder = Path(sys.argv[2]) / str(number)
    folder.mkdir()
    file = folder / f"payload{payload.suffix}"
    file.write_bytes(payload.data(folder / "canary"))
    with contextlib.suppress(Exception):
        payload.fire(file)
"""


def test_the_payloads_do_run_where_a_careless_reader_opens_them(tmp_path: Path) -> None:
    words = [sys.executable, "-W", "ignore", "-c", FIRE, str(ROOT), str(tmp_path)]
    subprocess.run(words, check=True, timeout=120, capture_output=True)
    dangerous = [payload for payload in PAYLOADS if payload.fire is not None]
    fired = [payload for number, payload in enumerate(PAYLOADS) if (tmp_path / str(number) / "canary").is_dir()]
    assert fired == dangerous
    assert len(fired) >= 15
