"""A table as Markdown, CSV and LaTeX: the same figures in each, and nothing in them that the format would misread."""

import csv
import io

from weakmcn.cli.table_text import Grid, Value, as_csv, latex, markdown

GRID = Grid(
    name="table-x",
    title="A & B",
    heads=["REC val", "p|q"],
    rows=[("α = 0.1", [Value((1.0, 2.0, 3.0)), Value((4.25,), 2, "†")]), ("none_of", [Value(), Value(mark="†")])],
    notes=["50 % ± 1"],
)


def test_markdown_tells_mean_and_deviation_over_seeds() -> None:
    assert markdown(GRID).splitlines() == [
        "## A & B",
        "",
        "| | REC val | p\\|q |",
        "|---|---:|---:|",
        "| α = 0.1 | 2.0 ± 1.0 | 4.25 † |",
        "| none_of | – | – † |",
        "",
        "- 50 % ± 1",
    ]


def test_csv_has_mean_and_deviation_apart_and_unrounded() -> None:
    assert list(csv.reader(io.StringIO(as_csv(GRID)))) == [
        ["row", "REC val, mean", "REC val, std", "p|q, mean", "p|q, std"],
        ["α = 0.1", "2.0", "1.0", "4.25", ""],
        ["none_of", "", "", "", ""],
    ]


def test_latex_escapes_what_it_would_take_for_commands() -> None:
    text = latex(GRID)
    assert r"$\alpha$ = 0.1 & 2.0 $\pm$ 1.0 & 4.25 \textdagger{} \\" in text
    assert r"none\_of & -- & -- \textdagger{} \\" in text
    assert r"\caption{A \& B. 50 \% $\pm$ 1}" in text
    assert text.count(r"\begin{") == text.count(r"\end{") == 2
