"""`--set model.wres_dim=64`: one field of a settings dataclass from the command line, by its declared type."""

import ast
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from itertools import pairwise
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from ..shards.errors import ConfigError

T = TypeVar("T")
SEE_ALL = "all of them: weakmcn train --set help"
_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def override(sections: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """`sections` (name -> frozen dataclass) with each "section.field=value" applied; the later of two wins.

    Raises ConfigError as `parsed` does, and for a value that is out of bounds.
    """
    return changed(sections, parsed(sections, assignments))


def parsed(sections: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Section -> field -> value of each "section.field=value"; the later of two wins.

    Lists are separated by commas, an empty value is an empty list. Raises ConfigError, with the nearest name, for an
    unknown field and for a value of another type.
    """
    known = {f"{section}.{field.name}" for section, settings in sections.items() for field in fields(settings)}
    changes: dict[str, dict[str, Any]] = {section: {} for section in sections}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        name = name.strip()
        if not equals:
            raise ConfigError(
                f"--set {assignment}: write it as section.name=value, --set model.dropout=0 for example; {SEE_ALL}."
            )
        if name not in known:
            raise ConfigError(f"--set {assignment}: there is no setting {name!r}{_hint(name, known)} {SEE_ALL}.")
        section, _, field = name.partition(".")
        kind = get_type_hints(type(sections[section]))[field]
        try:
            changes[section][field] = _parsed(text.strip(), kind)
        except ValueError:
            raise ConfigError(f"--set {assignment}: {name} takes {_described(kind)}, not {text!r}.") from None
    return changes


def changed(sections: Mapping[str, Any], changes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The sections with what `parsed` found; ConfigError for a value that is out of bounds.

    All fields of a section change together, so that two settings that only fit each other may come in any order.
    """
    return {section: replace(settings, **changes[section]) for section, settings in sections.items()}


def explained(sections: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Every setting: full name, value as `--set` takes it, and what it is, from the source of its dataclass."""
    for section, settings in sections.items():
        lines = _explanations(type(settings))
        for field in fields(settings):
            yield f"{section}.{field.name}", written(getattr(settings, field.name)), lines.get(field.name, "")


def _explanations(kind: type) -> dict[str, str]:
    """Field -> the string below it in the source; a class also has what it inherits."""
    inherited = _explanations(base) if (base := kind.__base__) not in (None, object) else {}
    (body,) = [
        node.body
        for node in ast.parse(inspect.cleandoc(inspect.getsource(kind))).body
        if isinstance(node, ast.ClassDef)
    ]
    return inherited | {
        field.target.id: " ".join(below.value.value.split())
        for field, below in pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
    }


def written(value: Any) -> str:
    """A value as `--set` takes it; an empty one is ""."""
    if value is None or value == {}:
        return ""
    if isinstance(value, Mapping):
        return ",".join(f"{name}={written(item)}" for name, item in value.items())
    if isinstance(value, tuple):
        return ",".join(map(written, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _parsed(text: str, kind: Any) -> Any:
    if get_origin(kind) is not None:
        item = get_args(kind)[0]
        return tuple(_parsed(part.strip(), item) for part in text.split(",")) if text else ()
    if kind is bool:
        if text.lower() not in _BOOLEANS:
            raise ValueError
        return _BOOLEANS[text.lower()]
    return kind(text)


def _described(kind: Any) -> str:
    if get_origin(kind) is not None:
        return f"values separated by commas, each {_described(get_args(kind)[0])}"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}[kind]


def _hint(name: str, known: set[str]) -> str:
    """What was probably meant: the fields of that name in any section, else the nearest full name."""
    near = sorted(full for full in known if full.partition(".")[2] == name) or get_close_matches(
        name, sorted(known), n=1
    )
    return f", did you mean {' or '.join(near)}?" if near else ";"
