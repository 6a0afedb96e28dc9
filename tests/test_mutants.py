"""The seeded defects of `just mutants` still fit the source that they are made in."""

import ast
from pathlib import Path

import pytest

from .mutants import MUTANTS, ROOT, Mutant, mutated


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_defect_can_be_made_and_its_tests_are_there(mutant: Mutant) -> None:
    changed = mutated(mutant)
    ast.parse(changed)
    assert changed != (ROOT / mutant.file).read_text("utf-8")
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert f"def {name}(" in Path(ROOT / file).read_text("utf-8") if name else (ROOT / file).is_file()


def test_there_are_at_least_ten_different_ones() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 10
