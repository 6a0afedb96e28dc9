"""The site holds every page, is refused where a link or an entry leads nowhere, and fetches nothing when it is read."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .pages import ROOT

FETCHED = re.compile(
    r"""<(?:script|img|iframe|source)[^>]*\ssrc=["']?([^"'\s>]+)|<link[^>]*\shref=["']?([^"'\s>]+)[^>]*>"""
)
STYLED = re.compile(r"""url\(["']?([^"')]+)|@import\s+["']([^"']+)""")


def build(source: Path, site: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(words, cwd=source, env=quiet, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_in_the_site_and_the_gate_builds_it_as_this_test_does(site: Path) -> None:
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")}
    assert pages <= {page.stem for page in site.glob("*.html")}
    recipe = (ROOT / "justfile").read_text("utf-8").split("\ndocs:\n")[1].splitlines()[0]
    assert recipe.endswith("mkdocs build --strict")
    assert re.search(r"^[^#\n]*\bjust docs\b", (ROOT / ".ci/run").read_text("utf-8"), re.MULTILINE)


def test_a_page_fetches_nothing_from_elsewhere(site: Path) -> None:
    fetched = {
        (page.name, address)
        for page in site.rglob("*.html")
        for found in FETCHED.finditer(page.read_text("utf-8"))
        for address in found.groups()
        if address and re.match(r"(\w+:)?//", address)
    }
    fetched |= {
        (sheet.name, address)
        for sheet in site.rglob("*.css")
        for found in STYLED.finditer(sheet.read_text("utf-8"))
        for address in found.groups()
        if address and re.match(r"(\w+:)?//", address)
    }
    assert fetched == set()


def test_what_leads_nowhere_is_refused_by_name(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    settings = (ROOT / "mkdocs.yml").read_text("utf-8")
    (tmp_path / "mkdocs.yml").write_text(settings + "      - entry.md\n")
    (tmp_path / "docs/api.md").write_text("[a page](page.md), [a heading](runs.md#heading)")
    (tmp_path / "docs/lost.md").write_text("# In no navigation")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    warnings = done.stderr.partition("WARNING")[2]
    assert [name for name in ("page.md", "#heading", "entry.md", "lost.md") if name not in warnings] == []


def test_a_name_that_the_code_does_not_have_is_refused(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    settings = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:")[0]
    (tmp_path / "mkdocs.yml").write_text(settings.replace("paths: [.typings]", f"paths: [{ROOT / '.typings'}]"))
    (tmp_path / "docs/index.md").write_text("::: weakmcn.shards.store.Shop")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    assert "Shop" in done.stderr
