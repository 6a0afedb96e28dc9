"""The one door through which photographs enter: whole, in stored orientation, uint8 RGB [h, w, 3].

The rule for every file:

    formats      JPEG, PNG, GIF and BMP, told by their bytes and not by the file's name; of several frames the first
    checked      before decoding: kind of file, bytes, header, pixels, size against the annotations
    cut short    refused, however little is missing; no partial picture is ever handed on
    orientation  as stored: the EXIF tag is ignored, because COCO's boxes count stored pixels
    colours      grey is repeated in three channels, a palette is looked up, CMYK is converted by OpenCV,
                 16 bits keep their upper 8, alpha is dropped and the colour below it kept
    limits       MAX_BYTES of file, MAX_PIXELS of picture, MAX_SCANS of JPEG; beyond LARGE_PIXELS one at a time
"""

import hashlib
import io
import os
import re
import stat
import threading
import warnings
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile
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
MAX_BYTES = 1 << 27
"""Bytes of the largest file that is read."""
MAX_SCANS = 100
"""Scans of a progressive JPEG, which has about ten; each is a pass over all pixels that 75 bytes can ask for."""
LARGE_PIXELS = 10_000_000
"""Photos beyond this are decoded one at a time, however many threads read: each takes 4 to 16 bytes a pixel."""

Opened = JpegImageFile | PngImageFile | GifImageFile | BmpImageFile

# The plugins directly, not Image.open: opening reads the header only, and the limit that holds is ours.
_FORMATS: tuple[tuple[bytes, Callable[[io.BytesIO], Opened]], ...] = (
    (b"\xff\xd8\xff", JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"GIF87a", GifImageFile),
    (b"GIF89a", GifImageFile),
    (b"BM", BmpImageFile),
)
_OTHER_FORMATS = (
    ("WebP", rb"RIFF....WEBP"),
    ("TIFF", rb"II\*\0|MM\0\*"),
    ("HEIC", rb"....ftyp(hei|hev|mif1|msf1)"),
    ("AVIF", rb"....ftypavi[fs]"),
    ("JPEG 2000", rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"),
    ("JPEG XL", rb"\0\0\0\x0cJXL |\xff\x0a"),
    ("Photoshop's format", rb"8BPS"),
    ("SVG", rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?<svg"),
)
_NO_IMAGES = (
    ("a web page", rb"\s*(<!doctype|<html|<head|<\?xml)"),
    ("a Git LFS pointer", rb"version https://git-lfs"),
    ("a video", rb"....ftyp"),
    ("a PDF", rb"%PDF"),
    ("a zip", rb"PK\x03\x04"),
    ("a compressed file", rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd"),
    ("JSON", rb"\s*[{\[]"),
)
_EXIF_ORIENTATION = 0x0112
_MARKER = re.compile(rb"\xff+[\x01-\xcf\xd8-\xfe]")
"""The next marker but those that stand inside a scan (FF 00, restarts)."""
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_one_large = threading.Lock()

# Ours is the limit that refuses; Pillow's remarks would stand between the lines of a command.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


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
        return cls.of(key, read_bytes(path), path, side=side, expect=expect)

    @classmethod
    def of(cls, key: str, data: bytes, path: Path, *, side: int, expect: tuple[int, int] | None = None) -> "Photo":
        """A photo from the bytes of its file, as `read`; `path` is only named in the ImageError."""
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


def remark_on(data: bytes) -> str | None:
    """What of a photo that `decode` takes is not looked at, in words; None for nothing. data: of its file."""
    header = _open_header(data, "")
    if _is_turned(header):
        return "its EXIF rotation is ignored, boxes and masks are of what is stored; store it upright to change that"
    if "A" not in header.getbands():
        return None
    with _one_large if header.width * header.height > LARGE_PIXELS else nullcontext():
        is_opaque = np.asarray(header.getchannel("A")).min() == 255
    return (
        None
        if is_opaque
        else "its transparency is ignored, the colours below it count, often black; store it without to change that"
    )


def read_bytes(path: Path) -> bytes:
    """The bytes of an image file, refused with its own word where it is missing, a folder or no file."""
    name = shown(path)
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{name}: is a directory, not a photo; remove it or put the photo in its place.")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{name}: is a pipe or a device, not a photo; put a plain file in its place.")
        if status.st_size > MAX_BYTES:
            raise ImageError(f"{name}: {status.st_size:,} bytes, the limit is {MAX_BYTES:,}; store the photo smaller.")
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise ImageError(f"{name}: missing; put the photo there.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{name}: cannot be opened ({reason}); make it readable.") from None


def read_size(
    data: bytes, path: Path, *, expect: tuple[int, int] | None = None, max_pixels: float = MAX_PIXELS
) -> tuple[int, int]:
    """Rows and columns that the header tells, checked as `decode` checks them; nothing is decoded."""
    width, height = _checked_header(data, shown(path), expect, max_pixels).size
    return height, width


def decode(
    data: bytes, path: Path, *, expect: tuple[int, int] | None = None, max_pixels: float = MAX_PIXELS
) -> np.ndarray:
    """Bytes of an image file -> uint8 RGB [h, w, 3]; `path` is only named in the ImageError."""
    name = shown(path)
    header = _checked_header(data, name, expect, max_pixels)
    width, height = header.size
    # A switch of the whole process, which some libraries turn on; half a picture would then pass.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with _one_large if width * height > LARGE_PIXELS else nullcontext():
            rgb = _decode_jpeg(header, data) if isinstance(header, JpegImageFile) else _decode_other(header, data)
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


def _checked_header(data: bytes, name: str, expect: tuple[int, int] | None, max_pixels: float) -> Opened:
    """The opened file, nothing decoded, if its kind, its pixels and its size may pass."""
    header = _open_header(data, name)
    width, height = header.size
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: {width}x{height} is {width * height / 1e6:,.0f} Mpx, the limit is {max_pixels / 1e6:,.0f} Mpx; "
            "store the photo smaller."
        )
    if isinstance(header, JpegImageFile) and (scans := _jpeg_scans(data)) > MAX_SCANS:
        raise ImageError(f"{name}: a JPEG of {scans:,} scans, the limit is {MAX_SCANS}; store the photo again.")
    _expect_size(header, expect, name)
    return header


def _open_header(data: bytes, name: str) -> Opened:
    if not data:
        raise ImageError(f"{name}: empty file (0 bytes); fetch the photo again.")
    for signature, plugin in _FORMATS:
        if data.startswith(signature):
            try:
                return plugin(io.BytesIO(data))
            except Exception as error:
                raise ImageError(
                    f"{name}: cut short or damaged (header: {_brief(error)}); fetch the photo again."
                ) from None
    start = data[:256]
    for kind, pattern in _OTHER_FORMATS:
        if re.match(pattern, start, re.DOTALL | re.IGNORECASE):
            raise ImageError(f"{name}: {kind} is not read; store the photo as JPEG or PNG.")
    raise ImageError(f"{name}: not an image ({_kind(data)}); put a JPEG, PNG, GIF or BMP in its place.")


def _decode_jpeg(header: JpegImageFile, data: bytes) -> np.ndarray | None:
    """By OpenCV, as the published features were made; Pillow only judges whether the file is whole.

    Older OpenCV hands out half a picture.
    """
    header.load()
    header.close()  # its pixels, before OpenCV takes as many
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)


def _decode_other(header: PngImageFile | GifImageFile | BmpImageFile, data: bytes) -> np.ndarray:
    # Pillow is content as soon as it has all pixels.
    if isinstance(header, PngImageFile):
        _require_whole_png(data)
    if isinstance(header, GifImageFile) and not data.endswith(b";"):
        raise ValueError("the GIF has no end")
    header.load()
    if header.mode.startswith("I"):  # 16 bits of grey
        grey = (np.asarray(header).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    rgb = header.convert("RGB")
    header.close()  # its pixels, before they are copied once more
    return np.array(rgb)


def _require_whole_png(data: bytes) -> None:
    """ValueError unless every chunk up to the last one is there with its checksum."""
    place, kind = 8, b""
    while kind != b"IEND":
        length, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        end = place + 8 + length
        if zlib.crc32(data[place + 4 : end]).to_bytes(4, "big") != data[end : end + 4]:
            raise ValueError(f"PNG chunk {kind.decode('latin-1')!r} is cut short or fails its checksum")
        place = end + 4


def _jpeg_scans(data: bytes) -> int:
    """Scans of a JPEG up to the end of its picture, those of thumbnails and of what follows not counted."""
    place, scans = 2, 0
    while (found := _MARKER.search(data, place)) is not None:
        marker, place = found[0][-1], found.end()
        if marker == _END_OF_IMAGE:
            break
        scans += marker == _START_OF_SCAN
        place += int.from_bytes(data[place : place + 2], "big")
    return scans


def _expect_size(header: Image.Image, expect: tuple[int, int] | None, name: str) -> None:
    width, height = header.size
    if expect is None or expect == (height, width):
        return
    turned = expect == (width, height) and _is_turned(header)
    hint = " (it carries an EXIF rotation, which is ignored)" if turned else ""
    raise ImageError(
        f"{name}: is {width}x{height}, the annotations say {expect[1]}x{expect[0]}{hint}; "
        "put the original photo in its place or correct the annotations."
    )


def _is_turned(header: Image.Image) -> bool:
    try:
        return header.getexif().get(_EXIF_ORIENTATION, 1) != 1
    except Exception:  # a damaged tag is no reason; the sizes are
        return False


def _kind(data: bytes) -> str:
    for kind, pattern in _NO_IMAGES:
        if re.match(pattern, data[:256], re.DOTALL | re.IGNORECASE):
            return kind
    return "all bytes are zero" if not data.strip(b"\0") else f"it starts with {data[:8].hex(' ')}"


def _brief(error: Exception) -> str:
    """The first line of a library's message, short enough for one line of ours."""
    return shown((str(error).splitlines() or [type(error).__name__])[0][:80])
