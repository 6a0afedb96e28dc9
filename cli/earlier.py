"""What earlier answers of `predict` left on the disk: they are no photographs, and may be written over."""

from pathlib import Path

from ..shards.records import read_json

LINES = "answers.jsonl"
"""A folder that has it is one of answers."""


def files_of_answer(numbers: Path) -> set[Path]:
    """All that was written with the answer in a JSON, itself too; nothing where it is none."""
    try:
        answer = read_json(numbers)
        names = [answer["picture"], *(row["mask_file"] for row in answer["answers"] if "mask_file" in row)]
        return {numbers, *(numbers.parent / name for name in names)}
    except (OSError, ValueError, KeyError, TypeError):  # absent, or somebody else's
        return set()


def files_of_answers(folder: Path) -> set[Path]:
    """All that answers wrote below a folder, to its bottom."""
    found: set[Path] = set()
    for lines in folder.rglob(LINES):
        found.update(lines.parent.rglob("*"))
    for picture in folder.rglob("*.png"):
        if (numbers := picture.with_suffix(".json")).is_file():
            found |= files_of_answer(numbers)
    return found
