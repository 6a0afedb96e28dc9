"""The table of docs/reliability.md: every goal has a row, and the tests it names are there."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "reliability.md").read_text("utf-8")
GOALS = [f"G{number}" for number in range(1, 22)] + ["G23", "G2b"]


def rows() -> dict[str, list[str]]:
    """Goal -> the cells of its row."""
    found = re.findall(r"^\| (G\w+) \|(.*)\|$", PAGE, re.MULTILINE)
    return {goal: [cell.strip() for cell in cells.split("|")] for goal, cells in found}


def test_every_goal_has_a_row_and_says_what_was_reached() -> None:
    assert sorted(rows()) == sorted(GOALS)
    for goal, (promise, measured, soaked, shown) in rows().items():
        assert promise, goal
        assert measured, goal
        assert soaked, goal
        assert "tests/" in shown or "not reached" in measured, goal


def test_every_test_that_is_named_is_there() -> None:
    named = re.findall(r"`(tests/\w+\.py)(?:::(\w+))?`", PAGE)
    assert len(named) > len(GOALS)
    for file, name in named:
        text = (ROOT / file).read_text("utf-8")
        assert f"def {name}(" in text if name else text, f"{file}::{name}"
