"""What something was made from, as a digest: equal fingerprints promise equal bytes.

A fingerprint is the SHA-256 of canonical JSON. It hashes what decides the bytes (content digests, settings, code
version, inputs' fingerprints) and never a path, a time, a host or a number of devices.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

SHORT = 8
"""Hex digits of a fingerprint that go into a folder's name."""


def canonical_json(value: Any) -> str:
    """The one spelling of a JSON value: sorted keys, no spaces, ASCII; NaN and infinity are refused (ValueError)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def fingerprint(value: Any) -> str:
    """SHA-256 of `canonical_json(value)`, 64 hex digits."""
    return hashlib.sha256(canonical_json(value).encode("ascii")).hexdigest()


def short(digest: str) -> str:
    """The first 8 hex digits: enough for a folder name, never for a comparison."""
    return digest[:SHORT]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits; OSError as `open` raises it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
