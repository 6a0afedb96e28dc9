"""Seeded defects: is each caught by the tests that guard it?  `just mutants`

A defect is a small change to the source. It is made in a copy of the package, the tests named beside it are run on that
copy, and they have to fail; on a copy without a change they have to pass. A table says which test caught what, and the
exit code is 1 unless all were caught.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("cli", "model", "pipeline", "shards")
TIMEOUT_S = 1200

Edit = tuple[str, str]
"""Text that occurs once in the file, and what is put in its place."""


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A defect, and the tests that must catch it."""

    name: str
    file: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]
    """Test files, or tests in them, as pytest takes them."""


MUTANTS = (
    Mutant(
        name="a file is not flushed before it gets its name",
        file="shards/atomic.py",
        edits=(("                flush(temporary)\n", ""),),
        tests=("tests/test_io_faults.py::test_no_power_cut_makes_a_shard_count_as_finished_that_is_not",),
    ),
    Mutant(
        name="a file is written in place, without a rename",
        file="shards/atomic.py",
        edits=(
            ("                yield temporary\n                flush(temporary)\n", "                yield path\n"),
            ("            temporary.replace(path)\n", ""),
        ),
        tests=("tests/test_atomic.py",),
    ),
    Mutant(
        name="the clock gets into the tar",
        file="shards/writer.py",
        edits=(("mtime=0,", "mtime=None,"),),
        tests=("tests/test_shards.py",),
    ),
    Mutant(
        name="a skipped photograph is not written down",
        file="shards/writer.py",
        edits=(("skipped=dict(sorted(skipped)),", "skipped={},"),),
        tests=("tests/test_shards.py",),
    ),
    Mutant(
        name="a record is published before its tar",
        file="shards/writer.py",
        edits=(
            ("    write_bytes(sidecar_path, text)\n    return sidecar\n", "    return sidecar\n"),
            (
                "            remove(sidecar_path)  # never an old record beside a new tar, whatever happens next\n",
                "            remove(sidecar_path)\n        write_bytes(sidecar_path, text)\n",
            ),
        ),
        tests=("tests/test_shards.py",),
    ),
    Mutant(
        name="members' checksums are not compared",
        file="shards/member.py",
        edits=(("        if not self._touched[row]:\n", "        if False:\n"),),
        tests=("tests/test_fuzz_shards.py",),
    ),
    Mutant(
        name="a record's checksum is not compared",
        file="shards/sidecar.py",
        edits=(("        _require(checksum == fingerprint(content), ", "        _require(bool(checksum), "),),
        tests=("tests/test_fuzz_shards.py", "tests/test_shards.py"),
    ),
    Mutant(
        name="a tar counts as finished because it is there",
        file="shards/family.py",
        edits=(("        if size != shard.bytes:\n", "        if False:\n"),),
        tests=("tests/test_store_damage.py",),
    ),
    Mutant(
        name="the lock is not taken",
        file="shards/lock.py",
        edits=(("            return fcntl.flock(descriptor, kind | fcntl.LOCK_NB)\n", "            return None\n"),),
        tests=("tests/test_precompute.py", "tests/test_resuming.py"),
    ),
    Mutant(
        name="temporaries of running writers are swept",
        file="shards/atomic.py",
        edits=(
            (
                "    except BlockingIOError:\n        return True\n",
                "    except BlockingIOError:\n        return False\n",
            ),
        ),
        tests=("tests/test_atomic.py",),
    ),
    Mutant(
        name="a photograph that changed is encoded all the same",
        file="pipeline/work.py",
        edits=(("if photo.sha256 != row.sha256:", "if False:"),),
        tests=("tests/test_precompute.py",),
    ),
    Mutant(
        name="training takes references in the order they come",
        file="model/sampler.py",
        edits=(("np.random.SeedSequence([seed, epoch])", "np.random.SeedSequence()"),),
        tests=("tests/test_sampler.py",),
    ),
    Mutant(
        name="the moving average is not in the checkpoint",
        file="model/state.py",
        edits=(
            ('        named |= {f"ema/{name}": tensor for name, tensor in self.average.shadow.items()}\n', ""),
            ('        self.average.restore(under("ema/", saved.tensors))\n', ""),
        ),
        tests=("tests/test_training.py",),
    ),
    Mutant(
        name="a run goes on with other data",
        file="model/train.py",
        edits=(('        "samples": samples.digests,\n', '        "samples": {},\n'),),
        tests=("tests/test_resuming.py",),
    ),
    Mutant(
        name="a loss that is no number is stepped",
        file="model/train.py",
        edits=(("        if not torch.isfinite(losses.total.detach() + norm):\n", "        if False:\n"),),
        tests=("tests/test_not_finite.py",),
    ),
    Mutant(
        name="a checkpoint's digest is not compared",
        file="model/checkpoint.py",
        edits=(('        if hashlib.sha256(raw).hexdigest() != record["sha256"]:\n', "        if False:\n"),),
        tests=("tests/test_checkpoint.py",),
    ),
)


def mutated(mutant: Mutant) -> str:
    """The text of the mutant's file with its edits; ValueError where one no longer fits the source."""
    text = (ROOT / mutant.file).read_text("utf-8")
    for old, new in mutant.edits:
        if text.count(old) != 1:
            raise ValueError(f"{mutant.name}: {old!r} occurs {text.count(old)} times in {mutant.file}")
        text = text.replace(old, new)
    return text


def copy_package(folder: Path) -> None:
    """The package as `weakmcn` and the tests, such that Python started in `folder` imports these."""
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / "weakmcn" / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)


def run_tests(folder: Path, tests: tuple[str, ...]) -> tuple[bool, str]:
    """Whether the tests pass on the copy in `folder`; the test that failed first, or how else pytest ended."""
    words = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-x", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        ended = subprocess.run(
            words, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return False, f"no end within {TIMEOUT_S} s"
    if ended.returncode == 0:
        return True, "all passed"
    failed = re.search(r"^FAILED tests/(\S+)", ended.stdout, re.MULTILINE)
    if ended.returncode != 1 or failed is None:  # a defect must be caught by a test, not by an import
        raise RuntimeError(f"pytest ended with {ended.returncode}:\n{ended.stdout[-3000:]}{ended.stderr[-1000:]}")
    return False, failed[1]


def main() -> int:
    parser = argparse.ArgumentParser(prog="just mutants", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="mutants whose name contains this")
    only = parser.parse_args().only
    chosen = [mutant for mutant in MUTANTS if only in mutant.name]
    if not chosen:
        parser.error(f"no defect's name contains {only!r}; there are: {'; '.join(each.name for each in MUTANTS)}")
    caught = 0
    with tempfile.TemporaryDirectory(prefix="weakmcn-mutants-") as temporary:
        folder = Path(temporary)
        copy_package(folder)
        tests = tuple(dict.fromkeys(test for mutant in chosen for test in mutant.tests))
        passed, told = run_tests(folder, tests)
        if not passed:
            sys.stderr.write(f"without a defect the tests fail already: {told}\n")
            return 1
        for mutant in chosen:
            started, file = time.monotonic(), folder / "weakmcn" / mutant.file
            sound = file.read_text("utf-8")
            file.write_text(mutated(mutant), "utf-8")
            passed, told = run_tests(folder, mutant.tests)
            file.write_text(sound, "utf-8")
            caught += not passed
            seconds = f"{time.monotonic() - started:.0f} s"
            sys.stdout.write(f"{'NOT CAUGHT' if passed else 'caught':10}  {mutant.name:55} {seconds:>5}  {told}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{caught} of {len(chosen)} caught\n")
    return int(caught < len(chosen))


if __name__ == "__main__":
    sys.exit(main())
