"""Do the cached-feature ports learn what they should, and nothing where there is nothing?  `python -m tests.acceptance`

Trains TRIS-C and SaG-C on the synthetic set (tests/synthetic.py) with the trainer itself and prints every figure beside
its threshold; the exit code is 1 unless all hold. The numbers of the checks are those of the page on both methods. What
has no learning in it is a test, and is run first.
"""

import argparse
import os
import sys
import tempfile
import time
from itertools import chain
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from rich.console import Console
from rich.table import Table

from . import exact, shatter, tris
from .settings import Check

PARTS = {
    "tris": lambda folder: chain(exact.checks("TRIS-C"), tris.checks(folder)),
    "sag": lambda folder: chain(exact.checks("SaG-C"), shatter.checks(folder)),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, help="one of the two methods")
    parser.add_argument("--folder", type=Path, help="keep stores and runs here; what is there is not made again")
    chosen = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as scratch:
        folder = chosen.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        found: list[Check] = []
        for name, part in PARTS.items():
            if chosen.only in (None, name):
                started = time.monotonic()
                for check in part(folder):
                    console.print(f"{check}", markup=False, highlight=False, soft_wrap=True)
                    found.append(check)
                console.print(f"{name}: {time.monotonic() - started:.0f} s")
    console.print(_table(found))
    return 0 if all(check.holds for check in found) else 1


def _table(checks: list[Check]) -> Table:
    table = Table("check", "found", "wanted", "", title="Acceptance", title_justify="left")
    for check in checks:
        table.add_row(check.name, f"{check.found:.3f}", check.wanted, "ok" if check.holds else "FAILED")
    return table


if __name__ == "__main__":
    sys.exit(main())
