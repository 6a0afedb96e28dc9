"""The command line: help that is instant and useful, faults in one line with the right exit code, typed settings."""

import inspect
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from weakmcn.cli.completion import SHIPPED
from weakmcn.cli.main import app
from weakmcn.cli.settings import override
from weakmcn.model.config import ModelConfig, TrainConfig
from weakmcn.model.methods import METHODS
from weakmcn.shards.errors import ConfigError

from . import pages
from .faults.commands import Commands

ROOT = Path(__file__).parent.parent
COMMANDS = (
    "demo",
    "pocket",
    "check",
    "precompute",
    "train",
    "eval",
    "predict",
    "serve",
    "export",
    "report",
    "tables",
    "convert",
    "doctor",
    "presets",
    "store ls",
    "store verify",
    "store repair",
    "store gc",
    "runs list",
    "runs compare",
)
HEAVY = ("torch", "torchvision", "timm", "ray", "cv2", "segment_anything", "webdataset", "pyarrow", "numpy", "PIL")

PRINT_HELP = f"""
import sys
from weakmcn.cli.main import app
for command in sys.argv[1:]:
    print("@", command)
    app([*command.split(), "--help"], standalone_mode=False)
print("@ loaded")
print(*[name for name in {HEAVY} if name in sys.modules])
"""


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    """Command -> its help on a terminal of 80 columns; and, as "loaded", what was imported for all of them."""
    words = [sys.executable, "-c", PRINT_HELP, "", *COMMANDS]
    narrow = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1"}
    printed = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60, env=narrow)
    parts = re.split(r"^@ ?(.*)\n", printed.stdout, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_help_loads_no_heavy_library(helps: dict[str, str]) -> None:
    assert helps["loaded"].split() == []


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_a_command_needs_what_it_writes_and_gives_an_example(
    helps: dict[str, str], command: str
) -> None:
    text = helps[command]
    table = re.search(
        r"^ Needs    .*?^ (?:Writes  |Removes ) .*?^ Example  (.*?)(?=^ *$)", text, re.DOTALL | re.MULTILINE
    )
    assert table
    assert table[1].startswith(f"weakmcn {command}")
    continued = r" (Needs  |Writes |Removes|Example|       ) +\S"
    assert [line for line in table[0].splitlines() if not re.match(continued, line)] == []


@pytest.mark.parametrize("command", pages.commands())
def test_lines_broken_by_hand_fit_80_columns(command: str) -> None:
    paragraphs = inspect.cleandoc(pages.commands()[command].help).split("\n\n")
    by_hand = [line for text in paragraphs if "\n" in text for line in text.splitlines()]
    assert [line for line in by_hand if len(line) > 78] == []


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_names_no_type_beside_a_flag_and_no_default_in_two_pairs_of_brackets(
    helps: dict[str, str], command: str
) -> None:
    for jargon in ("<bool>", " range>", "<list[", "<Path>", "default: ("):
        assert jargon not in helps[command]


def completed(typed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What a shell offers for the last word of a command line."""
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(typed.count(" ")))
    monkeypatch.setenv("_WEAKMCN_COMPLETE", "complete_bash")
    with pytest.raises(SystemExit):
        app([], prog_name="weakmcn")
    return capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("weakmcn runs c", ["compare"]),
        ("weakmcn eval --split te", ["testA", "testB", "test", "testC"]),
        ("weakmcn precompute --split train,v", ["train,val"]),
        ("weakmcn train --set model.wr", ["model.wrec_dim=", "model.wres_dim=", "model.wres="]),
        ("weakmcn train --preset p", ["pocket"]),
        ("weakmcn precompute --preset sam", ["sam-b", "sam-l", "sam-h"]),
        ("weakmcn precompute --dataset refcocog", ["refcocog-umd", "refcocog-google", "refcocog"]),
        ("weakmcn precompute --stages detect,d", ["detect,dino"]),
        ("weakmcn tables te", ["teachers"]),
        ("weakmcn precompute --codec b", ["bf16"]),
        ("weakmcn train --method tris", ["tris-c", "tris-c2"]),
    ],
)
def test_a_shell_completes_commands_and_values(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], typed: str, offered: list[str]
) -> None:
    assert completed(typed, monkeypatch, capsys) == offered


def test_the_methods_that_are_told_are_all_there_are() -> None:
    assert tuple(name for name, method in METHODS.items() if method.code is None) == SHIPPED


def test_the_first_help_lists_every_command(helps: dict[str, str]) -> None:
    for command in COMMANDS:
        assert re.search(rf"^│ {command.split()[0]}\b", helps[""], re.MULTILINE)


def test_the_version_is_that_of_the_package(run) -> None:
    ended = run("--version")
    assert (ended.status, ended.err) == (0, "")
    assert re.fullmatch(r"weakmcn \d+\.\d+\.\d+\S*\n", ended.out)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["trian"], "no such command 'trian'. Did you mean 'train'? see weakmcn --help."),
        (["train", "--fetures", "ram"], "no such option: --fetures"),
        (["report", "--run", "here"], "no such option: --run; write RUN without it: weakmcn report RUN; see weakmcn"),
        (["eval", "--split", "val"], "missing option '--run' or '--predictions'; see weakmcn eval --help."),
        (["pocket", "here", "--images", "many"], "invalid value for '--images'"),
    ],
)
def test_a_wrong_command_line_is_told_in_one_line_and_exits_2(run, words: list[str], says: str) -> None:
    ended = run(*words)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith(f"weakmcn: {says}")
    assert ended.err.count("\n") == 1


def test_no_command_prints_the_help_and_exits_2(run) -> None:
    ended = run()
    assert (ended.status, ended.err) == (2, "")
    assert "Commands" in ended.out


def test_a_fault_of_the_input_is_one_line_without_traceback(run, tmp_path: Path) -> None:
    ended = run("eval", "--run", tmp_path / "nowhere")
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith(f"weakmcn: {tmp_path / 'nowhere'}: no run here")
    assert ended.err.count("\n") == 1


def test_debug_adds_the_traceback_wherever_it_stands(run, tmp_path: Path) -> None:
    for words in (["--debug", "eval"], ["eval", "--debug"]):
        ended = run(*words, "--run", tmp_path / "nowhere")
        assert ended.status == 2
        assert "Traceback" in ended.err
        assert ended.err.splitlines()[-1].startswith("weakmcn: ")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["store", "ls", "STORE"], "is not a store"),
        (["train", "--shards", "STORE", "--dataset", "refcoco", "--out", "RUN"], "is not a store"),
        (["predict", "--run", "RUN", "--image", "x.jpg", "--phrase", "dog"], "no run here"),
        (["predict", "--run", "RUN", "--image", "x.jpg", "--phrase", "dog", "--out", "x.jpg"], "the picture is a PNG"),
    ],
)
def test_what_is_not_there_is_named_and_nothing_is_written(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = run(*words)
    assert ended.status == 2
    assert says in ended.err
    assert ended.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_with_the_code_that_shells_expect(
    commands: Commands, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    begun = commands.begin("pocket", "world", "--images", 4000, folder=tmp_path)
    begun.until(lambda: (tmp_path / "world" / "images").exists())
    os.kill(begun.pid, number)
    assert begun.ended() == status
    assert begun.err.splitlines()[-1] == "weakmcn: interrupted."  # nothing of it goes on
    assert "Traceback" not in begun.err


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Two fields that only fit each other."""

    low: int = 1
    high: int = 2
    names: tuple[str, ...] = ("a",)
    rates: tuple[float, ...] = field(default=(0.5,))

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise ConfigError("low must be below high.")


def test_settings_are_read_by_their_declared_type() -> None:
    sections = {"model": ModelConfig(), "train": TrainConfig()}
    changes = ["model.wres_dim=64", "train.lr=1e-3", "model.scl=false", "model.banks=dino", "train.betas=0.8, 0.95"]
    changed = override(sections, changes)
    assert changed["model"] == ModelConfig(wres_dim=64, scl=False, banks=("dino",))
    assert changed["train"] == TrainConfig(lr=1e-3, betas=(0.8, 0.95))


def test_an_empty_list_a_repeated_name_and_settings_that_only_fit_together() -> None:
    (sizes,) = override({"s": Sizes()}, ["s.low=7", "s.high=5", "s.names=", "s.high=9"]).values()
    assert sizes == Sizes(low=7, high=9, names=())


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("model.wresdim=64", "did you mean model.wres_dim?"),
        ("wres_dim=64", "did you mean model.wres_dim?"),
        ("model.wres_dim", "write it as section.name=value"),
        ("model.wres_dim=6.4", "takes a whole number, not '6.4'"),
        ("model.scl=perhaps", "takes true or false"),
        ("train.lr=fast", "takes a number"),
        ("model.aspp_dilations=1,two,3", "takes values separated by commas, each a whole number"),
        ("train.batch=1", "batch=1 must be at least 2"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_with_what_could(assignment: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        override({"model": ModelConfig(), "train": TrainConfig()}, [assignment])


def test_the_readme_lists_the_commands_there_are() -> None:
    rows = re.findall(r"^\| `weakmcn (\w+)` \|", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    registered = [command.name for command in app.registered_commands] + [group.name for group in app.registered_groups]
    assert rows == registered
