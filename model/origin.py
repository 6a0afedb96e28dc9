"""Where a converted run comes from, and the columns that it therefore needs.

A run that was trained here knows the columns it was trained on; one that was made from an official checkpoint does not.
Its preset says which frozen networks the authors used, and the checkpoint itself carries the detector: with statistics
of its own, so no other detector's columns will do (quirk 1 of the method page).
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..shards.fingerprint import short


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The official checkpoint behind a run; what run.json keeps under "converted"."""

    checkpoint: str
    """Name of the file."""
    sha256: str
    preset: str
    """Whose frozen networks its columns are made with."""
    networks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Stage -> the settings that its columns must be made with, as stage.json has them."""
    detector: str | None = None
    """File of the checkpoint's own detector: a name in the run folder, or an absolute path. None: it holds none, and
    nothing tells which one its columns must be made with."""
    detector_sha256: str | None = None
    data: str | None = None
    """Folder of the data set, where the annotations lay in one."""

    def other_network(self, made_from: Mapping[str, Mapping[str, Any]]) -> str | None:
        """Which frozen network's columns are not those of the preset, in words; None if all are.

        made_from: stage -> what the fingerprint of its columns hashes.
        """
        for stage, wanted in self.networks.items():
            if stage not in made_from:
                return f"needs {stage} columns, there are none"
            has = made_from[stage]["parameters"]
            if has.get("statistics") is not None:  # only the detector's may be
                return f"needs {stage} columns with its checkpoint's own statistics, there are re-estimated ones"
            for name, value in wanted.items():
                if has.get(name) != value:
                    return f"needs {stage} columns with {name} {value}, there are those with {has.get(name)}"
        return None

    def other_detector(self, made_from: Mapping[str, Mapping[str, Any]]) -> str | None:
        """The detector's digest, if it is another one's that made the columns; None if it is the checkpoint's own.

        The checkpoint may have been named itself, or the file of its detector.
        """
        digest = made_from["detect"]["checkpoint_sha256"]
        return None if self.detector_sha256 is None or digest in (self.sha256, self.detector_sha256) else digest

    def fault_of(self, made_from: Mapping[str, Mapping[str, Any]], store: Path, run: Path, dataset: str) -> str | None:
        """Why the columns of a store are not those that the run needs, with the command that makes them; or None."""
        if fault := self.other_network(made_from):
            elsewhere = store.with_name(f"{store.name}-{self.preset}")
            return (
                f"{fault} in {store}; make them: {self._precompute(elsewhere, run, dataset, '--preset', self.preset)}"
            )
        if digest := self.other_detector(made_from):
            return (
                f"needs detect columns made with the detector inside {self.checkpoint}, those in {store} are another's "
                f"({short(digest)}); make them: {self._precompute(store, run, dataset)}"
            )
        return None

    def detector_file(self, run: Path) -> Path | None:
        """Where the detector's file is, for a run in the folder `run`."""
        return run / self.detector if self.detector else None

    def _precompute(self, store: Path, run: Path, dataset: str, *words: str) -> str:
        own = self.detector_file(run)
        named = ["--checkpoint", f"detect={own}"] if own else []
        place = ["--data", self.data or "data", "--dataset", dataset, "--split", "val", "--store", str(store)]
        return shlex.join(["weakmcn", "precompute", *place, *words, *named])
