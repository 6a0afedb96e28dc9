"""Every command of the pages is typed as it stands there, in order, and prints what the page shows."""

import re
from pathlib import Path

import pytest

from . import clusters
from .pages import PAGES, named, text_of
from .walk import done, is_shown, lines_of, plain, steps, terminal, trained, typed
from .walked import DEMO, OF_QUICK, demo_of, has_quick, make_demo, prepare

ELSEWHERE = "add-a-method.md"
"""test_own_methods.py types its commands, and looks at what they leave."""
MADE = {"weakmcn demo --quick", DEMO}
"""Commands of sentences that are typed already: by the gate, and before all pages."""
WALKED = [page for page in PAGES if page.name != ELSEWHERE and (steps(text := page.read_text("utf-8")) or named(text))]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    make_demo(folder)
    return folder / "demo"


@pytest.mark.parametrize("page", WALKED, ids=lambda page: page.name)
def test_the_commands_of_a_page_run_in_order_and_print_what_it_shows_then_those_of_its_sentences(
    page: Path, made: Path, tmp_path: Path
) -> None:
    text = page.read_text("utf-8")
    todo = [step for step in steps(text) if not step.by_gate]
    spoken = [code for code in named(text) if code not in MADE]
    if todo or spoken:
        prepare(page.name, demo_of(page.name, made), tmp_path)
    with terminal(tmp_path):
        others = {step.figures_of for step in todo} - {"", trained()}
        for step in todo:
            status, printed = done(step)
            assert status == step.exit_code, f"{step.code}\n{printed}"
            if step.shown is not None:
                varies = step.figures_of in others
                shown, found = (plain(text, varies=varies) for text in (step.shown, printed))
                assert is_shown(shown, found), "\n".join([step.code, "-- shown", *shown, "-- printed", *found])
        for code in spoken:
            status, printed = typed(code)
            assert status == 0, f"{code}\n{printed}"
    if others:
        pytest.skip("all but its figures is as shown; they are of another training: " + why_other(page.name))


def why_other(page: str) -> str:
    if page in OF_QUICK and not has_quick():
        return "weakmcn demo --quick makes it, in ./demo"
    return "this machine or this torch rounds otherwise"


def test_what_the_gate_is_said_to_type_it_types() -> None:
    gate = {line for _, line in re.findall(r"\breadme (['\"])(.*)\1$", text_of(".ci/run"), re.MULTILINE)}
    said = {page.name: [step.code for step in steps(page.read_text("utf-8")) if step.by_gate] for page in WALKED}
    assert said.pop(clusters.PAGE)
    assert {code for codes in said.values() for code in codes} == gate
    assert re.search(r"^just clusters\b", text_of(".ci/run"), re.MULTILINE)


def test_nothing_is_shown_that_is_not_compared_and_no_command_named_that_is_not_typed() -> None:
    assert [step.code for page in PAGES for step in steps(page.read_text("utf-8")) if step.by_gate and step.shown] == []
    assert named(text_of(f"docs/{ELSEWHERE}")) == []


def test_a_page_that_shows_what_is_not_printed_is_found() -> None:
    shown = plain("store: 192 px\nto write 8.9 MB, free 52.5 GB; about 6 s\n…\nall is well\n")
    assert is_shown(shown, plain("store:  192 px\nto write 8.9 MB, free 3 GB; about 11 s\nso\nand so\nall is well"))
    assert is_shown(shown, plain("store: 192 px\nto write 8.9 MB, free 3 GB; about 11 s\nall is well"))
    for printed in (
        "store: 416 px\nto write 8.9 MB, free 52.5 GB; about 6 s\nall is well",
        "store: 192 px\nto write 9.9 MB, free 52.5 GB; about 6 s\nall is well",
        "store: 192 px\nto write 8.9 MB, free 52.5 GB; about 6 s\nall is well\nbut",
        "store: 192 px\nto write 8.9 MB, free 52.5 GB; about 6 s",
    ):
        assert not is_shown(shown, plain(printed))


def test_only_where_a_page_says_so_figures_may_differ() -> None:
    one, other = "REC 7.84, mask 1,077 px", "REC 11.76, mask 0 px"
    assert plain(one) != plain(other)
    assert plain(one, varies=True) == plain(other, varies=True)
    assert plain(one, varies=True) != plain("REC 7.84, no mask", varies=True)
    sure, unsure = (
        "REC Acc@0.5 and RES mIoU: the interval leaves out zero.",
        "Every interval holds zero: no difference.",
    )
    assert plain(sure) != plain(unsure)
    assert plain(sure, varies=True) == plain(unsure, varies=True)


def test_an_output_belongs_to_the_commands_right_before_it() -> None:
    first, second, third = steps(
        "<!-- exit code 3 -->\n```sh\na\n```\n\n```text\nx\n```\n\n"
        "<!-- figures of 2072c480 -->\n```sh\nb\n```\n\n"
        "It says:\n\n```text\ny\n```\n\n  <!-- typed by .ci/run -->\n  ```sh\n  c \\\n    d\n  ```\n"
    )
    assert (first.exit_code, first.shown, first.by_gate) == (3, "x\n", False)
    assert (second.exit_code, second.shown, second.figures_of) == (0, None, "2072c480")
    assert (third.by_gate, lines_of(third.code)) == (True, ["c d"])


def test_the_output_of_a_command_is_what_a_terminal_would_show(tmp_path: Path) -> None:
    with terminal(tmp_path):
        status, printed = typed("weakmcn presets refcoco+ | head -1\nweakmcn runs lost 2>&1\necho never")
    assert status != 0
    assert printed.splitlines()[0].startswith("refcoco+:")
    assert "lost" in printed
    assert "never" not in printed
