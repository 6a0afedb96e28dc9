"""Photographs that cannot be used. Each writes one in the place of a sound photograph and says what should be told."""

import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from .sound import HEIGHT, WIDTH, encoded, picture

Write = Callable[[Path], object]


@dataclass(frozen=True)
class BadPhoto:
    """One photograph that is refused."""

    name: str
    write: Write
    """Puts it where the path says."""
    says: str
    """Part of the message."""


def _of(data: bytes) -> Write:
    return lambda path: path.write_bytes(data)


def _cut(data: bytes, share: float) -> Write:
    return _of(data[: max(1, int(len(data) * share))])


def _exif(orientation: int, image: Image.Image) -> bytes:
    tag = Image.Exif()
    tag[0x0112] = orientation
    return encoded(image, exif=tag)


def jpeg_of_size(height: int, width: int) -> bytes:
    """A JPEG of 8x8 pixels whose header says another size."""
    data = bytearray(encoded(Image.new("RGB", (8, 8))))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, content in chunks:
        parts.append(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)))
    return b"".join(parts)


def png_header(width: int, height: int) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)


def gif(screen: int, frame: int) -> bytes:
    """A GIF of 35 bytes with a screen and a frame of these sizes."""
    sizes = struct.pack("<HHBBB", screen, screen, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return b"GIF89a" + sizes + b"," + struct.pack("<HHHHB", 0, 0, frame, frame, 0) + b"\x02\x02\x4c\x01\x00;"


def _flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0x40]) + data[place + 1 :]


def _instead(make: Callable[[Path], object]) -> Write:
    def write(path: Path) -> None:
        path.unlink(missing_ok=True)
        make(path)

    return write


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.write(encoded(picture()))
        file.truncate(1 << 31)


_JPEG = encoded(picture(), quality=90)
_PROGRESSIVE = encoded(picture(), quality=90, progressive=True)
_PNG = encoded(picture(), "PNG")
_CUTS = (0.02, 0.3, 0.6, 0.99)
_MP4 = b"\0\0\0\x18ftypisom" + bytes(64)

BAD_PHOTOS = (
    *(BadPhoto(f"jpeg cut at {share}", _cut(_JPEG, share), "cut short") for share in _CUTS),
    *(BadPhoto(f"progressive cut at {share}", _cut(_PROGRESSIVE, share), "cut short") for share in _CUTS),
    *(BadPhoto(f"png cut at {share}", _cut(_PNG, share), "cut short") for share in (0.01, 0.5, 0.999)),
    BadPhoto("gif cut", _cut(encoded(picture().quantize(16), "GIF"), 0.5), "cut short"),
    BadPhoto("bmp cut", _cut(encoded(picture(), "BMP"), 0.5), "cut short"),
    BadPhoto("png with a flipped bit", _of(_flipped(_PNG, len(_PNG) // 2)), "fails its checksum"),
    BadPhoto("jpeg header alone", _of(_JPEG[:4]), "cut short"),
    BadPhoto("png header and junk", _of(b"\x89PNG\r\n\x1a\n" + b"junk" * 20), "damaged"),
    BadPhoto("empty", _of(b""), "empty file"),
    BadPhoto("a web page", _of(b"<!DOCTYPE html><html>404 Not Found</html>"), "not an image (a web page)"),
    BadPhoto("an error as JSON", _of(b'{"error": "quota"}'), "not an image (JSON)"),
    BadPhoto("a Git LFS pointer", _of(b"version https://git-lfs.github.com/spec/v1\noid"), "a Git LFS pointer"),
    BadPhoto("zeros", _of(bytes(5000)), "all bytes are zero"),
    BadPhoto("text", _of(b"hello there"), "it starts with 68 65 6c 6c 6f"),
    BadPhoto("WebP", _of(encoded(picture(), "WEBP")), "WebP is not read; store the photo as JPEG or PNG"),
    BadPhoto("TIFF", _of(encoded(picture(), "TIFF")), "TIFF is not read"),
    BadPhoto("HEIC", _of(b"\0\0\0\x18ftypheic" + bytes(64)), "HEIC is not read"),
    BadPhoto("AVIF", _of(b"\0\0\0\x18ftypavif" + bytes(64)), "AVIF is not read"),
    BadPhoto("JPEG XL", _of(b"\xff\x0a" + bytes(64)), "JPEG XL is not read"),
    BadPhoto("JPEG 2000", _of(b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(64)), "JPEG 2000 is not read"),
    BadPhoto("SVG", _of(b'<?xml version="1.0"?>\n<svg width="9"/>'), "SVG is not read"),
    BadPhoto("a video", _of(_MP4), "not an image (a video)"),
    BadPhoto("a PDF", _of(b"%PDF-1.7\n"), "not an image (a PDF)"),
    BadPhoto("a zip", _of(b"PK\x03\x04" + bytes(64)), "not an image (a zip)"),
    BadPhoto("missing", lambda path: path.unlink(), "missing"),
    BadPhoto("a directory", _instead(lambda path: path.mkdir()), "is a directory"),
    BadPhoto("a pipe", _instead(os.mkfifo), "is a pipe or a device"),
    BadPhoto("a link to itself", _instead(lambda path: path.symlink_to(path.name)), "cannot be opened"),
    BadPhoto("a link to nowhere", _instead(lambda path: path.symlink_to("nowhere")), "missing"),
    BadPhoto("a device", _instead(lambda path: path.symlink_to("/dev/zero")), "is a pipe or a device"),
    BadPhoto("2 GB", _sparse, "2,147,483,648 bytes, the limit is 134,217,728"),
    BadPhoto("another size", _of(encoded(picture(height=32, width=40))), f"is 40x32, the annotations say {WIDTH}x48"),
    BadPhoto("sides exchanged", _of(encoded(picture(height=WIDTH, width=HEIGHT))), "is 48x64, the annotations say"),
    *(
        BadPhoto(f"turned by EXIF {tag}", _of(_exif(tag, picture(height=WIDTH, width=HEIGHT))), "EXIF rotation")
        for tag in (6, 8)
    ),
    BadPhoto("a claim of 900 Mpx", _of(jpeg_of_size(30_000, 30_000)), "30000x30000 is 900 Mpx, the limit is 50 Mpx"),
)
