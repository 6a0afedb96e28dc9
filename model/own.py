"""Methods of the user's own, out of a Python file that is named on the command line: `weakmcn --with FILE …`.

The file's code runs because it was named, and at no other time. A run keeps the file's name and digest, to be told and
to know the run again; nothing is ever run because a run says so.
"""

from dataclasses import asdict, replace
from pathlib import Path

from ..shards.errors import ConfigError, InputError
from ..shards.own_code import run_own
from . import methods
from .methods import Code, Method


def add_methods(file: Path | str) -> list[str]:
    """Run `file` and take over its `METHODS`, a dict of name -> Method; their names.

    InputError where there is no such file, ConfigError where it fails, has none, or a name is taken.
    """
    file = Path(file)
    try:
        module, sha256 = run_own(file, f"--with {file}")
    except OSError as fault:
        raise InputError(f"--with {file}: {fault.strerror}; name the Python file of a method.") from fault
    found = getattr(module, "METHODS", None)
    if not isinstance(found, dict) or not found or not all(isinstance(one, Method) for one in found.values()):
        raise ConfigError(f'--with {file}: it has no METHODS = {{"name": Method(…)}}; see docs/add-a-method.md.')
    code = Code(file=str(file), sha256=sha256)
    for name in found:
        taken = methods.METHODS.get(name)
        if taken is not None and (taken.code is None or Path(taken.code.file).resolve() != file.resolve()):
            raise ConfigError(f"--with {file}: there is a method {name!r} already; call it something else.")
    methods.METHODS.update({name: replace(method, code=code) for name, method in found.items()})
    return list(found)


def files() -> list[str]:
    """Those whose methods are known, for the processes that this one starts."""
    return list(dict.fromkeys(method.code.file for method in methods.METHODS.values() if method.code))


def facts(method: Method) -> dict[str, object]:
    """What run.json keeps of a method's file; nothing of a method that is part of the program."""
    return {"code": asdict(method.code)} if method.code else {}
