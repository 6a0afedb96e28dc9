"""The one kind of table that commands print, and the console they print it on."""

import os
import re
import sys
from typing import IO, Any, cast

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

UNBROKEN = 10_000
"""Columns of an output that nobody looks at in a terminal: a line stays a line."""


def plain_console(*, stderr: bool = False, markup: bool = True) -> Console:
    """Of standard output or standard error: as wide as the terminal; for a file or a pipe as its lines are.

    markup: whether words in brackets are colours.
    """
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else UNBROKEN
    file = None if stream.isatty() else cast("IO[str]", _Unpadded(stream))
    return Console(file=file, stderr=stderr, markup=markup, highlight=False, width=width)


class _Unpadded:
    """A stream that gets lines without the blanks that fill the last column of a table."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(re.sub(r" +$", "", text, flags=re.MULTILINE))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def plain_table(*, gap: int = 2, footer: bool = False) -> Table:
    """A table without a frame, a rule below its heads; `gap` more blanks behind a column than the one there is."""
    return Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, gap, 0, 0), show_footer=footer)


def with_words(table: Table, *, above: str = "", below: str = "") -> Group:
    """A table with a line above and one below it, however narrow the table is."""
    lines = [Text(above, style="table.title")] if above else []
    return Group(*lines, table, *([Text(below, style="table.caption")] if below else []))
