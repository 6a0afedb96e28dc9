"""Tables on a terminal are as wide as it is; in a file or a pipe a row is a line, without blanks at its end."""

import pytest
from weakmcn.pipeline.plain_table import plain_console, plain_table, with_words

LONG = "a cell that is far longer than eighty characters, which is what a terminal has that does not say otherwise"


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    table = plain_table()
    for head in ("name", "what"):
        table.add_column(head)
    table.add_row("first", LONG)
    table.add_row("second", "short")
    plain_console().print(with_words(table, above=LONG, below=LONG))
    return capsys.readouterr().out.splitlines()


def test_without_a_terminal_nothing_is_broken_over_lines_or_padded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    above, heads, rule, first, second, below = lines(capsys)
    assert above == below == LONG
    assert [row.split(maxsplit=1) for row in (heads, first, second)] == [
        ["name", "what"],
        ["first", LONG],
        ["second", "short"],
    ]
    assert {*rule} == {"─"}
    assert all(row == row.rstrip() for row in (heads, first, second))


def test_a_width_that_is_asked_for_holds(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert max(map(len, lines(capsys))) <= 40
