"""The documentation as data: its pages, their tables, the command lines they show; and what commands there are."""

import io
import re
import shlex
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

import typer
from weakmcn.cli.main import app

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", *sorted(DOCS.glob("*.md")))


def text_of(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


def section(page: str, title: str) -> str:
    """What stands below `## title`, to the next heading of that rank."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text_of(page), re.DOTALL | re.MULTILINE)
    assert found, f"{page} has no section {title!r}"
    return found[1]


def tables(text: str) -> list[list[list[str]]]:
    """Every table of a text: rows of cells, the head first, the rule below it left out."""
    found = []
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
        found.append([row for row in rows if not set("".join(row)) <= set("-: ")])
    return found


def commands() -> dict[str, Any]:
    """Every command by its words, those of a group with the group's; "" is the program itself."""
    root = typer.main.get_command(app)
    found: dict[str, Any] = {"": root}
    for name, command in root.commands.items():  # pyright: ignore[reportAttributeAccessIssue]
        found[name] = command
        found |= {f"{name} {inner}": child for inner, child in getattr(command, "commands", {}).items()}
    return found


def options(command: Any) -> set[str]:
    """The options that a command's help lists."""
    names = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return {name for name in names if name.startswith("-")} | {"--help"}


def blocks(text: str, *languages: str) -> list[str]:
    """The code blocks of some languages; "" for those without."""
    found = re.findall(r"^( *)```(\w*)\n(.*?)^\1```", text, re.DOTALL | re.MULTILINE)
    return [code for _, language, code in found if language in languages]


def lines_in(text: str, *languages: str) -> list[str]:
    """The lines of the blocks of some languages, those that go on joined."""
    return [line for block in blocks(text, *languages) for line in block.replace("\\\n", " ").splitlines()]


def codes(text: str) -> list[str]:
    """What stands between backticks, the code blocks left out."""
    prose = re.sub(r"^( *)```.*?^\1```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]


def shell_lines(text: str) -> list[list[str]]:
    """Every `weakmcn …` in the shell blocks of a text, as words without the program's own."""
    return [words for line in lines_in(text, "sh", "bash") for words in said(line)]


def named(text: str) -> list[str]:
    """The commands that sentences and tables of a text name in full: with all that is needed, and no word in capitals
    for something of the reader's.
    """
    found = []
    for code in codes(text):
        name, rest = command_of(code.split()[1:]) if code.startswith("weakmcn ") else ("", [])
        if name and rest and not any(word.isupper() for word in code.split()):
            with suppress(typer.TyperException), redirect_stdout(io.StringIO()):
                commands()[name].make_context(name, list(rest), resilient_parsing="--help" in rest).close()
                found.append(code)
    return list(dict.fromkeys(found))


def said(line: str) -> list[list[str]]:
    """What stands behind each `weakmcn` of one line, as words; `.venv/bin/weakmcn` is one too."""
    found: list[list[str]] = []
    for part in re.split(r"&&|[|;]", line):
        words = shlex.split(part, comments=True) if part.count("'") % 2 == part.count('"') % 2 == 0 else part.split()
        names = [place for place, word in enumerate(words) if word == "weakmcn" or word.endswith("/weakmcn")]
        found += [words[place + 1 :] for place in names[:1]]
    return found


def command_of(words: Sequence[str]) -> tuple[str, list[str]]:
    """The command that words behind `weakmcn` name, a group with its inner one, and the words behind that.

    `--with FILE` before a command is the program's own.
    """
    while words[:1] == ["--with"]:
        words = words[2:]
    known = commands()
    count = next((count for count in (2, 1) if len(words) >= count and " ".join(words[:count]) in known), 0)
    return " ".join(words[:count]), list(words[count:])
