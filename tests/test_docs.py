"""What the documentation tells a reader to run, runs; what it points at is there; what it types exists."""

import importlib
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import typer
from weakmcn.model.config import PRESETS, TrainConfig
from weakmcn.model.methods import METHODS
from weakmcn.pipeline import config as pipeline_config
from weakmcn.shards.store import Store

from .pages import (
    DOCS,
    PAGES,
    ROOT,
    blocks,
    codes,
    command_of,
    commands,
    lines_in,
    options,
    said,
    shell_lines,
    text_of,
    told_lines,
)

RUN = {("store.md", "webdataset")}
"""Marked blocks that a test of this module runs. README's Python is run by test_demo.py."""
FOREIGN = {"--index-url", "--network"}
"""Options of other programs."""
SETTINGS = {
    *(f"model.{field.name}" for method in METHODS.values() for field in fields(method.settings)),
    *(f"train.{field.name}" for field in fields(TrainConfig)),
}


def program(page: str, name: str) -> str:
    """The Python block behind `<!-- run: name -->`."""
    found = re.search(rf"<!-- run: {name} -->\n```python\n(.*?)```", (DOCS / page).read_text("utf-8"), re.DOTALL)
    assert found
    return found[1]


def test_ten_lines_of_webdataset_read_features_and_boxes_of_every_image(demo: Path, tmp_path: Path) -> None:
    script = tmp_path / "read.py"
    script.write_text(program("store.md", "webdataset"))
    store = Store.open(demo / "store")
    shards = sorted(store.families["detect"].folder.glob("*.tar"))
    lines = []
    for shard in shards:
        words = [sys.executable, "-W", "ignore", str(script), str(shard)]
        printed = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
        lines += printed.stdout.splitlines()
    assert [line.split()[0] for line in lines] == sorted(store.keys)
    first = store[lines[0].split()[0]]
    assert str(first["detect.s32"].shape) in lines[0]
    boxes = first["detect.boxes"]
    best = boxes[np.arange(len(boxes)), boxes[..., 4].argmax(axis=1)]
    assert lines[0].endswith(str(best[0].round(1)))


def test_stock_webdataset_opens_every_shard_of_every_family(demo: Path) -> None:
    code = (
        "import sys, webdataset as wds\n"
        "for shard in sys.argv[1:]:\n"
        "    print(sum(1 for _ in wds.WebDataset(shard, shardshuffle=False)))"
    )
    store = Store.open(demo / "store")
    shards = [str(shard) for family in store.families.values() for shard in sorted(family.folder.glob("*.tar"))]
    words = [sys.executable, "-W", "ignore", "-c", code, *shards]
    printed = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    assert sum(map(int, printed.stdout.split())) == len(store.families) * len(store.keys)


def test_every_block_that_is_marked_to_be_run_is_run_here() -> None:
    marked = {
        (page.name, name) for page in PAGES for name in re.findall(r"<!-- run: (\S+) -->", page.read_text("utf-8"))
    }
    assert marked == RUN


def slug(heading: str) -> str:
    """The anchor of a heading, as the pages' hosts make it: lower case, punctuation dropped, blanks to hyphens."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_file_and_a_heading_that_are_there(page: Path) -> None:
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if target.suffix == ".png":  # whether it is for light or dark pages
            anchor = anchor.removesuffix("-mode-only").removeprefix("gh-").removesuffix("light").removesuffix("dark")
        text = target.read_text("utf-8") if target.suffix == ".md" and target.is_file() else ""
        headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        if not target.exists() or ROOT not in target.parents or (anchor and anchor not in map(slug, headings)):
            lost.append(link)
    assert lost == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_command_is_read_whole_without_scrolling(page: Path) -> None:
    """88 columns are what the site and a browser at 1,280 pixels leave. README's first line is copied, not read."""
    lines = [line for block in blocks(page.read_text("utf-8"), "sh") for line in block.splitlines()]
    assert [line for line in lines if len(line) > 88 and not line.startswith("python3 -m venv")] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_is_named_exists_with_its_options(page: Path) -> None:
    text = page.read_text("utf-8")
    known, unknown = commands(), []
    for words in [*shell_lines(text), *told_lines(text), *(words for code in codes(text) for words in said(code))]:
        name, rest = command_of(words)
        asked = {word.partition("=")[0] for word in rest if word.startswith("--")}
        if (words and not name and not words[0].startswith("-")) or not asked <= options(known[name]):
            unknown.append(" ".join(["weakmcn", *words]))
        for option, value in pairwise(rest):
            if option == "--set" and value.partition("=")[0] not in {*SETTINGS, "help"}:
                unknown.append(f"--set {value}")
            if option == "--preset" and value not in {*PRESETS, *pipeline_config.PRESETS}:
                unknown.append(f"--preset {value}")
    assert unknown == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_and_setting_that_is_named_alone_exists(page: Path) -> None:
    every = {option for command in commands().values() for option in options(command)} | FOREIGN
    words = [code.split() for code in codes(page.read_text("utf-8"))]
    alone = [first for first, *_ in words if re.fullmatch(r"--[a-z][a-z-]*(=.*)?", first)]
    assert [option for option in alone if option.partition("=")[0] not in every] == []
    assigned = re.findall(r"(?<![\w.])((?:model|train)\.\w+)=", page.read_text("utf-8"))
    assert [name for name in assigned if name not in SETTINGS] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_line_of_a_code_block_is_complete(page: Path) -> None:
    """As the program itself reads it: nothing that is needed is missing, every choice is one."""
    text = page.read_text("utf-8")
    for words in [*shell_lines(text), *told_lines(text)]:
        name, rest = command_of(words)
        with suppress(typer.Exit):  # --help
            commands()[name].make_context(f"weakmcn {name}", rest).close()


def just_words(text: str) -> list[list[str]]:
    """What stands behind each `just` between backticks or in a block."""
    lines = [*codes(text), *lines_in(text, "sh", "text")]
    found = [re.match(r"(?:[A-Z_]+=\S+ )?just (.*)", line) for line in lines]
    return [line[1].split() for line in found if line]


JUST = {tuple(words) for page in PAGES for words in just_words(page.read_text("utf-8"))}
MEASURED = sorted(words[1:] for words in JUST if words[0] == "bench")


@pytest.mark.parametrize("words", MEASURED, ids=" ".join)
def test_a_bench_that_a_figure_is_from_takes_the_words_that_are_told(words: Sequence[str]) -> None:
    name, *rest = words
    program = importlib.import_module(f"tests.bench.{name}")
    app = typer.Typer()
    app.command()(program.main)
    typer.main.get_command(app).make_context(name, rest).close()


def test_what_just_is_told_to_do_it_knows() -> None:
    recipes = set(re.findall(r"^([a-z][\w-]*)[^:\n]*:", text_of("justfile"), re.MULTILINE))
    assert {words[0] for words in JUST} <= recipes
    for name in ("soak", "mutants"):
        words = [sys.executable, "-m", f"tests.{name}", "--help"]
        helped = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120, cwd=ROOT).stdout
        asked = {word for words in JUST if words[0] == name for word in words if word.startswith("--")}
        assert {option for option in asked if option not in helped} == set()
