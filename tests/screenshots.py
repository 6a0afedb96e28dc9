"""The screenshots of the pages, of the quick demo in ./demo, light and dark: `just screenshots`."""

import sys
import tempfile
import threading
from contextlib import chdir
from pathlib import Path

from PIL import Image
from weakmcn.cli.answering import Answerer, frozen_networks
from weakmcn.cli.server import ADDRESS, Site
from weakmcn.model.run import Run

from .browser import CHROMIUM, Browser
from .pages import DOCS, ROOT
from .walk import typed
from .walked import has_quick

PHOTO = Path("demo/data/images/train2014/COCO_train2014_000000000770.jpg")
PHRASE = "yellow dotted circle"
SHADES = {"light": False, "dark": True}
REPORT_PX = (1000, 2130)


def main() -> None:
    if CHROMIUM is None or not has_quick():
        sys.exit("needs Chromium, and in ./demo what `weakmcn demo --quick` makes.")
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch,
        chdir(ROOT),
        Browser(Path(scratch) / "profile") as browser,
    ):
        _report(browser, Path(scratch) / "report.html")
        _serve(browser)
    for picture in DOCS.glob("*-*.png"):  # a fifth of the bytes
        Image.open(picture).quantize(256, dither=Image.Dither.NONE).save(picture, optimize=True)


def _report(browser: Browser, page: Path) -> None:
    status, printed = typed(f"weakmcn report demo/run --split val --out {page}")
    assert status == 0, printed
    for shade, is_dark in SHADES.items():
        browser.open(page.as_uri(), width=REPORT_PX[0], height=REPORT_PX[1], dark=is_dark)
        browser.screenshot(DOCS / f"report-{shade}.png")


def _serve(browser: Browser) -> None:
    run = Run.open("demo/run")
    facts = {"run": str(run.path), "method": run.facts["method"], "dataset": run.called}
    with Site(0, Answerer(run, frozen_networks(run, {}), "cpu"), facts) as site:
        thread = threading.Thread(target=site.serve_forever)
        thread.start()
        for shade, is_dark in SHADES.items():
            browser.open(f"http://{ADDRESS}:{site.server_port}/", dark=is_dark)
            browser.choose("#photo", PHOTO.absolute())
            browser.wait("document.querySelector('#name').textContent.endsWith('.jpg')")
            browser.press("#phrase", PHRASE)
            browser.wait("document.querySelector('#asked').textContent !== ''")
            browser.wait("document.querySelector('#picture').complete")
            browser.screenshot(DOCS / f"serve-{shade}.png")
        site.shutdown()
        thread.join()


if __name__ == "__main__":
    main()
