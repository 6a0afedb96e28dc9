"""What earlier answers of `predict` left on the disk: they are no photographs, and may be written over."""

from collections.abc import Sequence
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


def files_of_answers(inside: Sequence[Path]) -> set[Path]:
    """Those that answers wrote, of all that lies in a folder, to its bottom."""
    folders = {path.parent for path in inside if path.name == LINES}
    found = {path for path in inside if not folders.isdisjoint(path.parents)}
    there = set(inside)
    for picture in inside:
        if picture.suffix == ".png" and (numbers := picture.with_suffix(".json")) in there:
            found |= files_of_answer(numbers)
    return found
