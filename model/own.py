"""Methods of the user's own, out of a Python file that is named on the command line: `weakmcn --with FILE …`.

The file's code runs because it was named, and at no other time. A run keeps the file's name and digest, to be told and
to know the run again; nothing is ever run because a run says so.
"""

import hashlib
import sys
from dataclasses import asdict, replace
from importlib.abc import SourceLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from traceback import extract_tb

from ..shards.errors import ConfigError, InputError
from ..shards.fingerprint import short
from . import methods
from .methods import Code, Method


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


def add_methods(file: Path | str) -> list[str]:
    """Run `file` and take over its `METHODS`, a dict of name -> Method; their names.

    InputError where there is no such file, ConfigError where it fails, has none, or a name is taken.
    """
    file = Path(file)
    try:
        data = file.read_bytes()
    except OSError as fault:
        raise InputError(f"--with {file}: {fault.strerror}; name the Python file of a method.") from fault
    found = _run(file, data)
    if not isinstance(found, dict) or not found or not all(isinstance(one, Method) for one in found.values()):
        raise ConfigError(f'--with {file}: it has no METHODS = {{"name": Method(…)}}; see docs/add-a-method.md.')
    code = Code(file=str(file), sha256=hashlib.sha256(data).hexdigest())
    for name in found:
        taken = methods.METHODS.get(name)
        if taken is not None and (taken.code is None or Path(taken.code.file).resolve() != file.resolve()):
            raise ConfigError(f"--with {file}: there is a method {name!r} already; call it something else.")
    methods.METHODS.update({name: replace(method, code=code) for name, method in found.items()})
    return list(found)


def _run(file: Path, data: bytes) -> object:
    """What the file calls METHODS; None where nothing."""
    name = f"weakmcn_with_{file.stem}_{short(hashlib.sha256(bytes(file.resolve())).hexdigest())}"
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
            f"--with {file}: {f'line {where}: ' if where else ''}{type(fault).__name__}: {' '.join(str(fault).split())}"
        ) from fault
    return getattr(module, "METHODS", None)


def files() -> list[str]:
    """Those whose methods are known, for the processes that this one starts."""
    return list(dict.fromkeys(method.code.file for method in methods.METHODS.values() if method.code))


def facts(method: Method) -> dict[str, object]:
    """What run.json keeps of a method's file; nothing of a method that is part of the program."""
    return {"code": asdict(method.code)} if method.code else {}
