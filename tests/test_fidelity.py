"""docs/fidelity.md says what the code does: every quirk's place, every setting, every value of every preset."""

import importlib
import inspect
import math
import re
from dataclasses import fields
from typing import Any

import pytest
from weakmcn.cli.sources import SOURCES
from weakmcn.model import config as model_config
from weakmcn.model.config import ModelConfig, TrainConfig
from weakmcn.model.methods import recipe
from weakmcn.model.parameters import PAPER_MILLIONS, nearest_to_the_paper, parameter_table
from weakmcn.pipeline import config as pipeline_config
from weakmcn.pipeline.config import DetectConfig, DinoConfig, PipelineConfig, SamConfig
from weakmcn.shards.geometry import Letterbox

from .pages import ROOT, codes, commands, options, section, tables

PAGE = "docs/fidelity.md"
OFFICIAL = ("refcoco", "refcoco+", "refcocog", "refcoco-small", "refcoco+-small", "refcocog-small")
SECTIONS = {"model": ModelConfig, "train": TrainConfig, "detect": DetectConfig, "dino": DinoConfig, "sam": SamConfig}
NOT_VALUES = {"checkpoint", "statistics_file", "name", "detect", "dino", "sam", "clip", "extra"}
"""Fields of the pipeline's settings that are files, names or sections."""

(QUIRK_TABLE,) = tables(section(PAGE, "The released system's quirks"))
QUIRKS = QUIRK_TABLE[1:]
VARYING, COMMON = tables(section(PAGE, "Presets"))


def quirks_named(docstring: str | None) -> set[int]:
    """Numbers behind "quirk" in a docstring; "quirks 2 and 3" and "quirks 2, 3" are read too."""
    runs = re.findall(r"quirks? ((?:\d+(?:, | and )?)+)", " ".join((docstring or "").split()))
    return {int(number) for run in runs for number in re.findall(r"\d+", run)}


def place(name: str) -> Any:
    """The object behind `module:name`, the module alone without a name."""
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(f"weakmcn.{module}")
    for part in path.split(".") if path else ():
        found = getattr(found, part)
    return found


def value_of(setting: str, preset: str) -> Any:
    """What a preset has for `section.field`, or for a field of the pipeline itself."""
    head, _, field = setting.partition(".")
    if head == "model":
        return getattr(model_config.preset(preset), field)
    if head == "train":
        return getattr(model_config.train_preset(preset), field)
    settings = pipeline_config.preset(preset)
    return getattr(getattr(settings, head), field) if field else getattr(settings, head)


def is_said(cell: str, value: Any) -> bool:
    """Whether a cell tells a value as `--set` takes it; a dash is nothing at all."""
    if value is None or value == () or value == {}:
        return cell == "–"
    if isinstance(value, bool):
        return cell == str(value).lower()
    if isinstance(value, tuple):
        parts = cell.split(", ")
        return len(parts) == len(value) and all(map(is_said, parts, value))
    if isinstance(value, int | float):
        return re.fullmatch(r"[\d.e-]+", cell) is not None and float(cell) == value
    return cell == value


# Quirks


def test_every_quirk_is_there_once() -> None:
    assert [row[0] for row in QUIRKS] == [str(number) for number in range(1, 33)]
    assert QUIRK_TABLE[0] == ["#", "released", "here", "place", "setting"]
    assert all(re.match(r"(matched|fixed)\b", row[2]) for row in QUIRKS)
    assert all(len(row[2]) > len("fixed: ") for row in QUIRKS if row[2].startswith("fixed")), "fixed, but how?"


@pytest.mark.parametrize("row", QUIRKS, ids=lambda row: row[0])
def test_the_docstring_at_its_place_names_the_quirk(row: list[str]) -> None:
    (name,) = codes(row[3])
    found = place(name)
    home = getattr(inspect.getmodule(found), "__name__", "")
    assert home == f"weakmcn.{name.partition(':')[0]}", f"{name} is only imported there"
    assert int(row[0]) in quirks_named(found.__doc__), f"the docstring of {name} does not say (quirk {row[0]})"


@pytest.mark.parametrize("row", [row for row in QUIRKS if row[4]], ids=lambda row: row[0])
def test_its_setting_exists(row: list[str]) -> None:
    (setting,) = codes(row[4])
    if setting.startswith("weakmcn "):
        command, _, option = setting.removeprefix("weakmcn ").rpartition(" ")
        assert option in options(commands()[command])
    else:
        head, _, field = setting.partition(".")
        assert field in {each.name for each in fields(SECTIONS[head])}


def test_a_quirk_that_changes_figures_and_is_fixed_can_be_had_either_way() -> None:
    """The detector's statistics and the word vectors; the other repairs leave a run's figures alone, 29 is a preset."""
    switched = {row[0]: codes(row[4]) for row in QUIRKS if row[2].startswith("fixed") and row[4]}
    assert switched == {
        "1": ["weakmcn precompute --detector-bn"],
        "22": ["weakmcn train --words"],
        "29": ["train.batch"],
    }


def test_no_docstring_names_a_quirk_that_is_not_in_the_table() -> None:
    for folder in ("cli", "model", "pipeline", "shards"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            assert quirks_named(file.read_text("utf-8")) <= set(range(1, 33)), file


# Presets


@pytest.mark.parametrize("preset", OFFICIAL)
def test_the_tables_have_the_values_of_the_preset(preset: str) -> None:
    column = VARYING[0].index(preset)
    said = {codes(row[0])[0]: row[column] for row in VARYING[1:]} | {codes(row[0])[0]: row[1] for row in COMMON[1:]}
    wrong = {
        name: (cell, value_of(name, preset)) for name, cell in said.items() if not is_said(cell, value_of(name, preset))
    }
    assert wrong == {}, f"setting: (in {PAGE}, in preset {preset})"


def test_the_tables_have_every_setting_once_and_say_where_it_comes_from() -> None:
    said = [codes(row[0])[0] for row in (*VARYING[1:], *COMMON[1:])]
    wanted = [f"{head}.{field.name}" for head, kind in SECTIONS.items() for field in fields(kind)]
    wanted += [field.name for field in fields(PipelineConfig)]
    assert sorted(said) == sorted(name for name in wanted if name.rpartition(".")[2] not in NOT_VALUES)
    assert all(row[-1] for row in (*VARYING[1:], *COMMON[1:]))
    assert VARYING[0] == ["setting", *OFFICIAL, "from"]


def test_the_command_that_lists_presets_gives_the_same_sources() -> None:
    said = {codes(row[0])[0]: row[-1] for row in (*VARYING[1:], *COMMON[1:])}
    plain = {name: re.sub(r"\[[^]]+\]\(([^)]+)\)", r"docs/\1", text).replace("`", "") for name, text in said.items()}
    assert plain == SOURCES


def test_what_varies_stands_in_the_first_table_and_nothing_else_does() -> None:
    for row in VARYING[1:]:
        assert len({str(value_of(codes(row[0])[0], preset)) for preset in OFFICIAL}) > 1, row[0]


def test_a_wrong_cell_is_noticed() -> None:
    for cell, value in (("1e-4", 1e-4), ("40", 40), ("false", False), ("dino, sam", ("dino", "sam")), ("–", ())):
        assert is_said(cell, value)
    for cell, value in (("1e-5", 1e-4), ("41", 40), ("true", False), ("dino", ("dino", "sam")), ("0", None), ("", 3)):
        assert not is_said(cell, value)


# Figures in the text


def test_the_files_that_show_it_are_there() -> None:
    (table,) = tables((ROOT / PAGE).read_text("utf-8").partition("## The released")[0])
    named = [name for row in table[1:] for name in codes(row[1])]
    assert len(named) >= len(table) - 1
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_parameters_are_those_that_are_counted() -> None:
    (table,) = tables(section(PAGE, "Parameters"))
    for method, preset, released, left_out, learns in table[1:]:
        counted = parameter_table(recipe(method, preset)[0], method)
        assert released == f"{counted.total:,}"
        assert left_out == f"{counted.total - counted.learns:,}"
        assert learns == f"{counted.learns:,}"
    text = section(PAGE, "Parameters")
    assert f"**{PAPER_MILLIONS} M for WeakMCN" in " ".join(text.split())
    assert f"{nearest_to_the_paper().total:,}" in text


def test_what_is_older_than_the_mask_head_fades_from_the_averages_as_said() -> None:
    steps = 42_404 // 40
    share = math.prod((1 + step) / (10 + step) for step in range(10 * steps, 25 * steps))
    assert f"{share:.1e}".replace("e-0", "e-") + " in the averages" in section(PAGE, "The released system's quirks")
    assert f"after the last step of `refcoco` it is {25 * steps / (25 * steps + 9):.5f}" in section(PAGE, "Presets")


def test_photos_of_the_usual_size_have_the_letterbox_of_exact_arithmetic() -> None:
    for edge in range(1, 641):
        exact = 416 * edge // 640
        if exact:
            assert Letterbox.fit(edge, 640).new_height == exact
            assert Letterbox.fit(640, edge).new_width == exact
