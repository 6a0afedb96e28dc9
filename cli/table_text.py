"""A table as text: Markdown, CSV, LaTeX, and on the terminal."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from rich.box import SIMPLE_HEAD
from rich.table import Table as Printed

ABSENT = "–"


@dataclass(frozen=True)
class Value:
    """A figure over seeds: their mean, and their sample standard deviation where there are several."""

    each: tuple[float, ...] = ()
    digits: int = 1
    mark: str = ""
    """Of the note that belongs to it."""

    def __str__(self) -> str:
        if not self.each:
            return f"{ABSENT} {self.mark}".strip()
        spread = f" ± {stdev(self.each):.{self.digits}f}" if len(self.each) > 1 else ""
        return f"{mean(self.each):.{self.digits}f}{spread} {self.mark}".strip()


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table that is ready to be written."""

    name: str
    """Of its files."""
    title: str
    heads: Sequence[str]
    """Of the columns behind the label's."""
    rows: Sequence[tuple[str, Sequence[Value]]]
    notes: Sequence[str] = ()


def markdown(grid: Grid) -> str:
    """The table below a heading, its notes below it."""
    lines = [
        f"## {grid.title}",
        "",
        f"| | {' | '.join(map(_in_markdown, grid.heads))} |",
        f"|---|{'---:|' * len(grid.heads)}",
        *(f"| {_in_markdown(label)} | {' | '.join(map(str, values))} |" for label, values in grid.rows),
        *([""] if grid.notes else []),
        *(f"- {_in_markdown(note)}" for note in grid.notes),
    ]
    return "\n".join(lines) + "\n"


def as_csv(grid: Grid) -> str:
    """A line a row, two columns a figure: its mean and its standard deviation, unrounded; empty where there is none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", *(f"{head}, {what}" for head in grid.heads for what in ("mean", "std"))])
    for label, values in grid.rows:
        cells: list[str] = []
        for value in values:
            cells.append(repr(mean(value.each)) if value.each else "")
            cells.append(repr(stdev(value.each)) if len(value.each) > 1 else "")
        writer.writerow([label, *cells])
    return text.getvalue()


def latex(grid: Grid) -> str:
    """A floating table for booktabs."""
    heads = " & ".join(["", *map(_in_latex, grid.heads)])
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "  \\centering",
        f"  \\begin{{tabular}}{{l{'r' * len(grid.heads)}}}",
        "    \\toprule",
        f"    {heads} \\\\",
        "    \\midrule",
        *(
            f"    {' & '.join([_in_latex(label), *(_in_latex(str(value)) for value in values)])} \\\\"
            for label, values in grid.rows
        ),
        "    \\bottomrule",
        "  \\end{tabular}",
        f"  \\caption{{{_in_latex(' '.join([grid.title + '.', *grid.notes]))}}}",
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def printed(grid: Grid) -> Printed:
    """The table for a terminal, without title and notes."""
    table = Printed(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", overflow="fold")
    for head in grid.heads:
        table.add_column(head, justify="right", vertical="bottom")
    for label, values in grid.rows:
        table.add_row(label, *map(str, values))
    return table


def _in_markdown(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "α": r"$\alpha$", "–": "--",
    "†": r"\textdagger{}", "‡": r"\textdaggerdbl{}",
}  # fmt: skip


def _in_latex(text: str) -> str:
    return re.sub("|".join(map(re.escape, _LATEX)), lambda found: _LATEX[found[0]], text)
