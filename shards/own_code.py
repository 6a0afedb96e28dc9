"""Python files of the user's own: methods (`--with FILE`) and encoders (`--checkpoint extra=FILE`).

Such a file's code runs because a command line names it, and at no other time.
"""

import hashlib
import sys
from importlib.abc import SourceLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from traceback import extract_tb
from types import ModuleType

from .errors import ConfigError
from .fingerprint import short


class _Source(SourceLoader):
    """Runs the bytes that were digested; nothing that was compiled earlier is used, or kept."""

    def __init__(self, file: Path, data: bytes) -> None:
        self._file, self._data = str(file), data

    def get_filename(self, fullname: str) -> str:
        return self._file

    def get_data(self, path: str) -> bytes:
        if path != self._file:
            raise OSError
        return self._data


def run_own(file: Path, option: str) -> tuple[ModuleType, str]:
    """Run a file; what it defines, and the SHA-256 of what was run, in hex.

    OSError where it cannot be read. ConfigError, in one line with the number of the file's own, where it fails; the
    message begins with `option`, the words of the command line that name the file.
    """
    data = file.read_bytes()
    name = f"weakmcn_own_{file.stem}_{short(hashlib.sha256(bytes(file.resolve())).hexdigest())}"
    spec = spec_from_loader(name, _Source(file, data))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and `--set help` look for the class's surroundings
    try:
        spec.loader.exec_module(module)
    except Exception as fault:
        lines = [frame.lineno for frame in extract_tb(fault.__traceback__) if frame.filename == str(file)]
        where = fault.lineno if isinstance(fault, SyntaxError) else lines[-1] if lines else None
        raise ConfigError(
            f"{option}: {f'line {where}: ' if where else ''}{type(fault).__name__}: {' '.join(str(fault).split())}"
        ) from fault
    return module, hashlib.sha256(data).hexdigest()
