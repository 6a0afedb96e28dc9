"""The commands of docs/clusters.md that need a machine to themselves, as they stand there: `just clusters`.

They run in the folder of a finished `weakmcn demo`, this machine being the whole cluster. They stop every Ray process
of this user, so they are no test among others; Slurm is a stand-in that knows this one node.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import typer

from .pages import text_of
from .walk import Step, done, steps, terminal

PAGE = "clusters.md"
LIMIT_S = 240
SLURM = {
    "scontrol": 'echo "$SLURM_JOB_NODELIST"',
    "srun": 'while [[ $1 == -* ]]; do shift; done; SLURM_PROCID=0 exec "$@"',
    "sbatch": 'SLURM_JOB_NODELIST=$HOSTNAME SLURM_JOB_NUM_NODES=1 SLURM_CPUS_PER_TASK=$(nproc) exec bash "$1"',
}
"""Command -> what it does here: one task on this node, at once."""


def main() -> int:
    """1 if a command of the page fails."""
    if not Path("demo/store").is_dir():
        sys.exit("demo/store: not here; weakmcn demo --quick makes it.")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "demo").symlink_to(Path("demo").resolve())
        for name, script in SLURM.items():
            (folder / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
            (folder / name).chmod(0o755)
        with terminal(folder):
            environment = {
                **os.environ,
                "HOME": scratch,
                "HOSTNAME": "localhost",  # the name that every machine has
                "PATH": f"{scratch}:{os.environ['PATH']}",
            }
            for step in steps(text_of(f"docs/{PAGE}")):
                if step.file is not None:
                    done(step)
                elif step.by_gate and not _works(step, environment):
                    return 1
    return 0


def _works(step: Step, environment: dict[str, str]) -> bool:
    """Whether all lines of a block end well, in one shell; what a bad one printed is told."""
    started = time.monotonic()
    words = ["bash", "-euo", "pipefail", "-c", step.code]
    ended = subprocess.run(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=LIMIT_S, text=True
    )
    typer.echo(f"{step.name}: {time.monotonic() - started:.0f} s")
    if ended.returncode:
        typer.echo(f"docs/{PAGE}: this ended with {ended.returncode}:\n{step.code}\n{ended.stdout}")
    return ended.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
