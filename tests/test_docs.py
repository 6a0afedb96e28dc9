"""What the documentation tells a reader to run, runs; what it points at is there; what it types exists."""

import importlib
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import fields
from functools import cache
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
    options,
    said,
    section,
    shell_lines,
    tables,
    text_of,
)
from .walk import steps

RUN = {("store.md", "webdataset")}
"""Marked blocks that a test of this module runs. README's Python is run by test_demo.py."""
FOREIGN = {"--gres", "--network"}
"""Options of other programs."""
PROGRAMS = {"apt-get", "docker", "git", "just", "pip", "python", "python3", "ray", "source", "srun", "ssh", "torchrun"}
"""What else a reader could be told to type."""
BENCHES = {file.stem for file in (ROOT / "tests/bench").glob("*.py") if "\ndef main(" in file.read_text("utf-8")}
MEASURING = ("tests.soak", "tests.mutants", "tests.acceptance")
"""Programs beside the benches that figures are from."""
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
    for words in [*shell_lines(text), *(words for code in codes(text) for words in said(code))]:
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


@cache
def measuring_options() -> set[str]:
    """The options of what figures are from: the benches, and MEASURING."""
    found = set()
    for name in BENCHES:
        bench = typer.Typer()
        bench.command()(importlib.import_module(f"tests.bench.{name}").main)
        found |= options(typer.main.get_command(bench))
    for name in MEASURING:
        words = [sys.executable, "-m", name, "--help"]
        helped = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120, cwd=ROOT).stdout
        found |= set(re.findall(r"--[a-z-]+", helped))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_and_setting_that_is_named_alone_exists(page: Path) -> None:
    every = {option for command in commands().values() for option in options(command)} | measuring_options() | FOREIGN
    words = [code.split() for code in codes(page.read_text("utf-8"))]
    alone = [first for first, *_ in words if re.fullmatch(r"--[a-z][a-z-]*(=.*)?", first)]
    assert {option.partition("=")[0] for option in alone} - every == set()
    assigned = re.findall(r"(?<![\w.])((?:model|train)\.\w+)=", page.read_text("utf-8"))
    assert [name for name in assigned if name not in SETTINGS] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_line_of_a_code_block_is_complete(page: Path) -> None:
    """As the program itself reads it: nothing that is needed is missing, every choice is one."""
    for words in shell_lines(page.read_text("utf-8")):
        name, rest = command_of(words)
        with suppress(typer.Exit):  # --help
            commands()[name].make_context(f"weakmcn {name}", rest).close()


def is_program(words: list[str]) -> bool:
    return {word.removeprefix(".venv/bin/") for word in words} & PROGRAMS != set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_command_of_another_program_is_one_that_is_typed(page: Path) -> None:
    """By the gate, or in a block of a page. One with a word in capitals is no command yet."""
    shell = [block for each in PAGES for block in blocks(each.read_text("utf-8"), "sh", "bash")]
    typed = "\n".join([text_of(".ci/run"), *shell])
    told = [code for code in codes(page.read_text("utf-8")) if is_program(code.split()[:1])]
    assert [code for code in told if code not in typed and not any(word.isupper() for word in code.split())] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_command_stands_in_a_block_that_nobody_types(page: Path) -> None:
    text = page.read_text("utf-8")
    outputs = {step.shown for step in steps(text)}
    found = []
    for line in "".join(block for block in blocks(text, "text", "") if block not in outputs).splitlines():
        words = [word for word in line.split() if not re.match("[A-Z_]+=", word)]
        if is_program(words[:1]) or (words[:1] == ["weakmcn"] and command_of(words[1:])[0]):
            found.append(line)
    assert found == []


def test_every_bench_and_recipe_that_a_page_names_is_there() -> None:
    text = "\n".join(page.read_text("utf-8") for page in PAGES)
    measured = {cell.split("`")[1] for *_, cell in tables(section("README.md", "How fast"))[0][1:] if cell}
    assert measured
    assert measured | set(re.findall(r"\bbench\s`([\w-]+)`", text)) <= BENCHES
    recipes = set(re.findall(r"^([a-z][\w-]*)[^:\n]*:", text_of("justfile"), re.MULTILINE))
    assert {*re.findall(r"\brecipe\s`([\w-]+)`", text), *re.findall(r"`just ([a-z-]+)", text)} <= recipes


def test_just_alone_lists_what_one_does_here() -> None:
    words = [Path(sys.executable).with_name("just")]
    told = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60, cwd=ROOT).stdout
    assert {"setup", "test", "bench", "soak", "mutants"} <= {line.split()[0] for line in told.splitlines()}
