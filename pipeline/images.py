"""The one door through which photographs enter: whole, in stored orientation, uint8 RGB [h, w, 3].

The rule for every file:

    formats      JPEG, PNG, GIF (first frame) and BMP, told by their bytes and not by the file's name
    checked      before decoding: kind of file, bytes, header, pixels; after it: size against the annotations
    cut short    refused, however little is missing; no partial picture is ever handed on
    orientation  as stored: the EXIF tag is ignored, because COCO's boxes count stored pixels
    colours      grey is repeated in three channels, a palette is looked up, CMYK is converted by OpenCV,
                 16 bits keep their upper 8, alpha is dropped and the colour below it kept
"""

import hashlib
import io
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from ..shards.errors import ImageError, WeakmcnError

try:
    import cv2
except ImportError as error:
    raise WeakmcnError(
        f"OpenCV cannot be loaded ({error}); opencv-python needs the system library libGL: "
        "apt-get install libgl1, or put opencv-python-headless in its place."
    ) from error

from ..shards.geometry import Letterbox

MAX_PIXELS = 50_000_000
"""Pixels of the largest photo that is decoded; a 700-byte file can claim 900 million."""
MAX_BYTES = 1 << 28
"""Bytes of the largest file that is read."""

# The plugins directly, not Image.open: opening reads the header only, and the limit that holds is ours.
_FORMATS: tuple[tuple[bytes, Callable[[io.BytesIO], Image.Image]], ...] = (
    (b"\xff\xd8\xff", JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"GIF87a", GifImageFile),
    (b"GIF89a", GifImageFile),
    (b"BM", BmpImageFile),
)
_EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True, eq=False)
class Photo:
    """A photograph on its way into the encoders."""

    key: str
    """Twelve digits: its key in the store."""
    rgb: np.ndarray
    """uint8 [h, w, 3], photo frame."""
    letterbox: Letterbox
    """How the photo stands in the canvas."""
    sha256: str = ""
    """Digest of the file's bytes; empty where the photo came from no file."""

    @classmethod
    def read(cls, key: str, path: Path, *, side: int, expect: tuple[int, int] | None = None) -> "Photo":
        """Read one photo for a canvas of `side` pixels; `expect` is (height, width). Raises ImageError."""
        data = read_bytes(path)
        rgb = decode(data, path, expect=expect)
        letterbox = fit_letterbox(path, rgb.shape[0], rgb.shape[1], side)
        return cls(key=key, rgb=rgb, letterbox=letterbox, sha256=hashlib.sha256(data).hexdigest())


def read_photo(path: Path, *, expect: tuple[int, int] | None = None, max_pixels: float = MAX_PIXELS) -> np.ndarray:
    """The photo in `path` as uint8 RGB [h, w, 3], in stored orientation.

    expect: (height, width) that the annotations give, None where nothing is known. Raises ImageError, one line that
    names the file, the fault and the mend.
    """
    return decode(read_bytes(path), path, expect=expect, max_pixels=max_pixels)


def check_image(path: Path, *, expect: tuple[int, int] | None = None, max_pixels: float = MAX_PIXELS) -> str | None:
    """What keeps the photo in `path` from being used, in one line; None for a sound one. Decodes it fully."""
    try:
        read_photo(path, expect=expect, max_pixels=max_pixels)
    except ImageError as error:
        return str(error)
    return None


def read_bytes(path: Path) -> bytes:
    """The bytes of an image file, refused with its own word where it is missing, a folder, no file or empty."""
    name = shown(path)
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{name}: is a directory, not a photo; remove it or put the photo in its place.")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{name}: is a pipe or a device, not a photo; put a plain file in its place.")
        if status.st_size > MAX_BYTES:
            raise ImageError(f"{name}: {status.st_size:,} bytes, the limit is {MAX_BYTES:,}; store the photo smaller.")
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise ImageError(f"{name}: missing; put the photo there.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{name}: cannot be opened ({reason}); make it readable.") from None
    if not data:
        raise ImageError(f"{name}: empty file (0 bytes); fetch the photo again.")
    return data


def decode(
    data: bytes, path: Path, *, expect: tuple[int, int] | None = None, max_pixels: float = MAX_PIXELS
) -> np.ndarray:
    """Bytes of an image file -> uint8 RGB [h, w, 3]; `path` is only named in the ImageError."""
    name = shown(path)
    header = _open_header(data, name)
    width, height = header.size
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: {width}x{height} is {width * height / 1e6:,.0f} Mpx, the limit is {max_pixels / 1e6:,.0f} Mpx; "
            "store the photo smaller."
        )
    _expect_size(header, expect, name)
    try:
        # Pillow only judges whether the file is whole: older OpenCV hands out half a picture.
        header.load()
        rgb = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    except Exception as error:  # each codec raises its own kinds; a damaged photo is one fact
        raise ImageError(f"{name}: cut short or damaged ({_brief(error)}); fetch the photo again.") from None
    if rgb is None or rgb.shape != (height, width, 3):
        raise ImageError(f"{name}: cut short or damaged (it does not decode to {width}x{height}); fetch it again.")
    return rgb


def fit_letterbox(path: Path, height: int, width: int, side: int) -> Letterbox:
    """`Letterbox.fit` for the photo in `path`, whose name an ImageError (aspect too extreme) then bears."""
    try:
        return Letterbox.fit(height, width, side)
    except ImageError as error:
        raise ImageError(f"{shown(path)}: {error}") from None


def shown(path: Path | str) -> str:
    """A file name as a message may print it: control characters escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(path))


def _open_header(data: bytes, name: str) -> Image.Image:
    for signature, plugin in _FORMATS:
        if data.startswith(signature):
            try:
                return plugin(io.BytesIO(data))
            except Exception as error:
                raise ImageError(
                    f"{name}: cut short or damaged (header: {_brief(error)}); fetch the photo again."
                ) from None
    raise ImageError(f"{name}: not an image ({_kind(data)}); put a JPEG, PNG, GIF or BMP in its place.")


def _expect_size(header: Image.Image, expect: tuple[int, int] | None, name: str) -> None:
    width, height = header.size
    if expect is None or expect == (height, width):
        return
    turned = expect == (width, height) and header.getexif().get(_EXIF_ORIENTATION, 1) != 1
    hint = " (it carries an EXIF rotation, which is ignored)" if turned else ""
    raise ImageError(
        f"{name}: is {width}x{height}, the annotations say {expect[1]}x{expect[0]}{hint}; "
        "put the original photo in its place or correct the annotations."
    )


def _kind(data: bytes) -> str:
    start = data[:256].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "a web page"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP is not read"
    if data[:4] in (b"II*\0", b"MM\0*"):
        return "TIFF is not read"
    if not data.strip(b"\0"):
        return "all bytes are zero"
    return f"it starts with {data[:8].hex(' ')}"


def _brief(error: Exception) -> str:
    """The first line of a library's message, short enough for one line of ours."""
    return shown((str(error).splitlines() or [type(error).__name__])[0][:80])
