"""The one door for weights: found, read without running code, loaded without a missing or surplus key.

What a file is, is told by its bytes and not by its name: safetensors, a torch file (read with `weights_only=True`), or
a zip that holds one of these. What the tensors in it are, is told by their keys and shapes (`identify`).
"""

import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ...shards.errors import CheckpointError
from ..config import SHIPPED
from .identify import identify
from .published import PUBLISHED, Verification, verify

SHIPPED_FOLDER = Path(__file__).parent.parent / "pocket" / "weights"
MAX_UNPACKED_BYTES = 1 << 34
"""Most that a zip (a torch file is one) may say it unpacks to; the largest published file has 2.6 GB."""
MAX_INNER_BYTES = 1 << 31
"""Largest checkpoint that is taken out of a zip: it is held in memory whole."""

Net = TypeVar("Net", bound=nn.Module)
Convert = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def resolve(checkpoint: str) -> Path:
    """The file behind a checkpoint name: `pocket:NAME` is shipped with the package, anything else is a path.

    Raises CheckpointError where there is no such file (quirk 23).
    """
    return resolve_all([checkpoint])[checkpoint]


def resolve_all(checkpoints: Iterable[str]) -> dict[str, Path]:
    """The file behind each checkpoint name, see `resolve`; one CheckpointError tells all that are missing."""
    found = {checkpoint: _located(checkpoint) for checkpoint in checkpoints}
    missing = [path for path in dict.fromkeys(found.values()) if not path.is_file()]
    for checkpoint, path in found.items():
        if checkpoint.startswith(SHIPPED) and path in missing:
            raise CheckpointError(
                f"{path}: no such checkpoint; make it again: python -m weakmcn.pipeline.pocket.pretrain"
            )
    sources = {path: f" (from {PUBLISHED[path.name].page})" for path in missing if path.name in PUBLISHED}
    if len(missing) == 1:
        raise CheckpointError(
            f"{missing[0]}: no such checkpoint; put the file there{sources.get(missing[0], '')}, or name another one: "
            "--checkpoint STAGE=FILE"
        )
    if missing:
        named = "; ".join(f"{path}{sources.get(path, '')}" for path in missing)
        raise CheckpointError(
            f"{len(missing)} checkpoints are missing: {named}; put the files there, or name others: "
            "--checkpoint STAGE=FILE"
        )
    return found


def _located(checkpoint: str) -> Path:
    if checkpoint.startswith(SHIPPED):
        return SHIPPED_FOLDER / f"{checkpoint.removeprefix(SHIPPED)}.safetensors"
    return Path(checkpoint).expanduser()


def load_state(path: Path, *, mapped: bool = False) -> dict[str, Tensor]:
    """All tensors of a checkpoint, by key; wrappers (`model`, `state_dict`) and a `module.` before every key go.

    mapped: leave the numbers of a torch file on the disk where its format allows; enough to look at keys and shapes.
    Raises CheckpointError for a file that is no checkpoint, is damaged, holds code, or holds no tensors.
    """
    content = _content(path, mapped=mapped)
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: holds no state dict of tensors; expected one tensor a key")
    state = {str(key): value for key, value in content.items()}
    return part(state, "module.") if all(key.startswith("module.") for key in state) else state


def examine(path: Path) -> Verification:
    """What a file is: by its digest where one is published (`verify`), else by the network in it.

    A file that differs from the published one of its name is told to be what it is. Nothing is raised, not for a file
    that cannot be read either.
    """
    try:
        seen = verify(path)
        if seen.state in ("missing", "verified"):
            return seen
        given = identify(load_state(path, mapped=True))
    except (CheckpointError, OSError) as fault:
        detail = fault.strerror if isinstance(fault, OSError) else str(fault).removeprefix(f"{path}: ")
        return Verification(path=path, state="differs", published=PUBLISHED.get(path.name), detail=str(detail))
    if seen.published is None:
        return replace(seen, detail=given)
    if given != seen.published.kind:
        return replace(seen, state="differs", detail=f"this is {given}; {seen.published.kind} was asked for")
    return replace(seen, detail=f"{given}; {seen.detail}")


def part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The network whose keys begin with `prefix`, without it; all of `state` where no key does."""
    inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return inside or dict(state)


def load_strict(module: nn.Module, state: Mapping[str, Tensor], path: Path, given: str | None = None) -> None:
    """Load `state` into `module`; errors and arguments as `require_fit`."""
    require_fit(module, state, path, given)
    module.load_state_dict(dict(state))


def require_fit(
    module: nn.Module,
    state: Mapping[str, Tensor],
    path: Path,
    given: str | None = None,
    mend: str = "name the file: --checkpoint STAGE=FILE",
) -> None:
    """CheckpointError, naming every kind of difference (missing, surplus, shape), unless `state` is all of `module`.

    given: what the file is, where `state` was rewritten since it was read. mend: the end of the message.
    """
    own = module.state_dict()
    faults = []
    for kind, keys in (("missing", own.keys() - state.keys()), ("surplus", state.keys() - own.keys())):
        if keys:
            faults.append(f"{len(keys)} keys {kind} ({min(keys)}{', …' if len(keys) > 1 else ''})")
    shapes = [key for key in sorted(own.keys() & state.keys()) if own[key].shape != state[key].shape]
    if shapes:
        key = shapes[0]
        faults.append(f"{len(shapes)} shapes differ ({key} is {list(state[key].shape)}, wanted {list(own[key].shape)})")
    if faults:
        wanted, given = identify(own), given or identify(state)
        verdict = f"this is {given}; {wanted} was asked for" if given != wanted else f"is not all of {wanted}"
        raise CheckpointError(f"{path}: {verdict}: {'; '.join(faults)}; {mend}")


def frozen(module: Net, checkpoint: str, device: str, *, prefix: str = "", convert: Convert | None = None) -> Net:
    """`module` with the weights of `checkpoint`, in evaluation mode, without gradients, on `device`.

    prefix: where the network's keys stand in a checkpoint of a whole system, which may be given too.
    convert: rewrites a state dict into the module's keys. On the device "meta" the weights are only compared.
    """
    path = resolve(checkpoint)
    is_check = device == "meta"
    state = load_state(path, mapped=is_check)
    state = part(state, prefix) if prefix else state
    load = require_fit if is_check else load_strict
    load(module, convert(state) if convert else state, path, identify(state))
    return module.eval().requires_grad_(False).to(device)


def _content(path: Path, *, mapped: bool) -> object:
    with path.open("rb") as file:
        head = file.read(9)
    if head[:4] == b"PK\x03\x04":
        return _from_zip(path, mapped=mapped)
    if head[8:9] == b"{":
        return _read(path, lambda: load_file(path))
    if head[:1] == b"\x80":
        return _read(path, lambda: torch.load(path, map_location="cpu", weights_only=True))
    kind = "empty" if not head else "a web page" if head.lstrip()[:1] == b"<" else "no checkpoint"
    if head == b"version h":
        kind = "a Git LFS pointer"
    raise CheckpointError(f"{path}: is {kind}, not weights; fetch the file itself (.pth, .pt, .safetensors or .pt.zip)")


def _from_zip(path: Path, *, mapped: bool) -> object:
    """A torch file, or the one checkpoint inside a plain zip (efficient_sam_vits.pt.zip); its checksums are checked."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            if sum(member.file_size for member in members) > MAX_UNPACKED_BYTES:
                raise CheckpointError(f"{path}: unpacks to more than {MAX_UNPACKED_BYTES:,} bytes; no network has that")
            names = {member.filename.rpartition("/")[2] for member in members}
            if "constants.pkl" in names:
                raise CheckpointError(f"{path}: refused, it is a TorchScript archive (code); re-save its state dict")
            if "data.pkl" in names:
                if sum(member.file_size for member in members) > path.stat().st_size:
                    raise CheckpointError(f"{path}: refused, a compressed torch file, which none is; re-save it")
                if archive.testzip() is not None:
                    raise zipfile.BadZipFile
                return _read(path, lambda: torch.load(path, map_location="cpu", weights_only=True, mmap=mapped))
            inner = [member for member in members if Path(member.filename).suffix in (".pt", ".pth")]
            inner = [member for member in inner if not member.filename.startswith("__MACOSX/")]
            if len(inner) != 1 or inner[0].file_size > MAX_INNER_BYTES:
                raise CheckpointError(
                    f"{path}: a zip with {len(inner)} checkpoints in it, expected one of at most "
                    f"{MAX_INNER_BYTES:,} bytes; unpack it and name the file"
                )
            data = BytesIO(archive.read(inner[0]))
    except CheckpointError:
        raise
    except Exception as error:  # zipfile and zlib raise many kinds for broken bytes; a damaged file is one fact
        raise _damaged(path) from error
    return _read(path, lambda: torch.load(data, map_location="cpu", weights_only=True))


def _read(path: Path, reader: Callable[[], object]) -> object:
    try:
        return reader()
    except UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if asked is None:
            raise _damaged(path) from error
        raise CheckpointError(
            f"{path}: refused, it asks for {asked[1]}, and only tensors are read; nothing in it was run; "
            "re-save its state dict"
        ) from error
    except Exception as error:  # each reader raises its own kinds for broken bytes; a damaged file is one fact
        raise _damaged(path) from error


def _damaged(path: Path) -> CheckpointError:
    return CheckpointError(f"{path}: damaged or partial download; fetch it again and compare its SHA-256")
