"""`--set model.wres_dim=64`: one field of a settings dataclass from the command line, by its declared type."""

from collections.abc import Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from ..shards.errors import ConfigError

T = TypeVar("T")
_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def override(sections: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """`sections` (name -> frozen dataclass) with each "section.field=value" applied; the later of two wins.

    Lists are separated by commas, an empty value is an empty list. All fields of a section change together, so that
    two settings that only fit each other may be given in any order. Raises ConfigError, with the nearest name, for an
    unknown field and for a value of another type or out of bounds.
    """
    known = {f"{section}.{field.name}" for section, settings in sections.items() for field in fields(settings)}
    changes: dict[str, dict[str, Any]] = {section: {} for section in sections}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        name = name.strip()
        if not equals:
            raise ConfigError(f"--set {assignment}: write it as section.name=value, --set model.dropout=0 for example.")
        if name not in known:
            raise ConfigError(f"--set {assignment}: there is no setting {name!r}{_hint(name, known)}")
        section, _, field = name.partition(".")
        kind = get_type_hints(type(sections[section]))[field]
        try:
            changes[section][field] = _parsed(text.strip(), kind)
        except ValueError:
            raise ConfigError(f"--set {assignment}: {name} takes {_described(kind)}, not {text!r}.") from None
    return {section: replace(settings, **changes[section]) for section, settings in sections.items()}


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
    return f", did you mean {' or '.join(near)}?" if near else "."
