"""Photographs enter by one door: whole, in stored orientation, RGB, or refused by name."""

import hashlib
import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from weakmcn.pipeline import images
from weakmcn.pipeline.images import Photo, check_image, decode, read_photo, read_size
from weakmcn.shards.errors import ImageError

RED = (200, 10, 30)


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def smooth_picture(height: int = 48, width: int = 64) -> Image.Image:
    """A picture with content in every block, so that no part of its file is idle."""
    noise = np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(cv2.GaussianBlur(noise, (0, 0), 2))


def refusal(path: Path, **options) -> str:
    """The one line with which the file is refused."""
    with pytest.raises(ImageError) as caught:
        read_photo(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) - len(str(path)) <= 300
    assert caught.value.exit_code == 2
    return message


def test_a_jpeg_gives_the_pixels_that_pillow_decodes(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(smooth_picture(), "JPEG", quality=92))
    rgb = read_photo(path, expect=(48, 64))
    assert rgb.shape == (48, 64, 3)
    assert rgb.dtype == np.uint8
    np.testing.assert_allclose(rgb.astype(int), np.asarray(Image.open(path)).astype(int), atol=2)


@pytest.mark.parametrize(
    ("kind", "picture", "options", "pixel"),
    [
        ("JPEG", Image.new("L", (8, 6), 100), {}, (100, 100, 100)),
        ("PNG", Image.new("LA", (8, 6), (100, 0)), {}, (100, 100, 100)),
        ("PNG", Image.new("1", (8, 6), 1), {}, (255, 255, 255)),
        ("PNG", Image.new("RGBA", (8, 6), (*RED, 0)), {}, RED),
        ("PNG", Image.fromarray(np.full((6, 8), 0x80FF, np.uint16)), {}, (128, 128, 128)),
        ("PNG", Image.new("RGB", (8, 6), RED).quantize(2), {}, RED),
        ("GIF", Image.new("RGB", (8, 6), RED).quantize(2), {}, RED),
        ("BMP", Image.new("RGB", (8, 6), RED), {}, RED),
        ("JPEG", Image.new("CMYK", (8, 6), (0, 200, 100, 20)), {"quality": 100}, (235, 52, 144)),
    ],
    ids=["grey", "grey+alpha", "1 bit", "alpha", "16 bit", "palette", "gif", "bmp", "cmyk"],
)
def test_every_colour_model_becomes_rgb_by_one_rule(
    tmp_path: Path, kind: str, picture: Image.Image, options: dict[str, int], pixel: tuple[int, int, int]
) -> None:
    path = tmp_path / "any name.jpg"  # the name says nothing: the bytes do
    path.write_bytes(encoded(picture, kind, **options))
    rgb = read_photo(path, expect=(6, 8))
    np.testing.assert_allclose(rgb, np.broadcast_to(pixel, (6, 8, 3)), atol=2)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_rotation_tag_is_ignored_because_boxes_count_stored_pixels(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "phone.jpg"
    tag = Image.Exif()
    tag[0x0112] = orientation
    path.write_bytes(encoded(smooth_picture(48, 64), "JPEG", exif=tag))
    plain = tmp_path / "plain.jpg"
    plain.write_bytes(encoded(smooth_picture(48, 64), "JPEG"))
    np.testing.assert_array_equal(read_photo(path), read_photo(plain))
    assert "EXIF rotation" in refusal(path, expect=(64, 48))


@pytest.mark.parametrize(
    ("kind", "options"), [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("GIF", {}), ("BMP", {})]
)
@settings(max_examples=25, deadline=None, database=None)
@given(data=st.data())
def test_a_file_cut_anywhere_is_refused(
    tmp_path_factory: pytest.TempPathFactory, kind: str, options: dict, data: st.DataObject
) -> None:
    whole = encoded(smooth_picture(), kind, **options)
    cut = data.draw(st.one_of(st.integers(1, len(whole) - 1), st.integers(1, 12).map(lambda n: len(whole) - n)))
    path = tmp_path_factory.mktemp("cut") / "half.jpg"
    path.write_bytes(whole[:cut])
    refusal(path)


def test_missing_directory_empty_and_no_image_have_four_words(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "page.jpg").write_bytes(b"<!DOCTYPE html><html>404</html>")
    assert "missing" in refusal(tmp_path / "absent.jpg")
    assert "directory" in refusal(tmp_path / "folder.jpg")
    assert "empty file" in refusal(tmp_path / "empty.jpg")
    assert "not an image (a web page)" in refusal(tmp_path / "page.jpg")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (bytes(4096), "all bytes are zero"),
        (encoded(smooth_picture(), "WEBP"), "WebP"),
        (encoded(smooth_picture(), "TIFF"), "TIFF"),
        (b"\x89PNG\r\n\x1a\n" + b"junk" * 20, "damaged"),
        (b"GIF89a\0\0\0\0\0\0\0", "damaged"),
        (b"hello", "68 65 6c 6c 6f"),
    ],
)
def test_what_is_no_photo_is_called_what_it_is(tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    assert word in refusal(path)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"\0\0\0\x18ftypheic" + bytes(64), "HEIC is not read; store the photo as JPEG or PNG"),
        (b"\0\0\0\x18ftypavif" + bytes(64), "AVIF is not read"),
        (b"\xff\x0a" + bytes(64), "JPEG XL is not read"),
        (b'<?xml version="1.0"?><!-- a --><svg/>', "SVG is not read"),
        (b"\0\0\0\x18ftypisom" + bytes(64), "not an image (a video)"),
        (b'{"error": 404}', "not an image (JSON)"),
    ],
)
def test_pictures_of_other_formats_are_called_by_their_name(tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    assert word in refusal(path)


def test_a_flipped_bit_in_a_png_is_found_by_its_checksum(tmp_path: Path) -> None:
    data = bytearray(encoded(smooth_picture(), "PNG"))
    data[len(data) // 2] ^= 1
    path = tmp_path / "photo.png"
    path.write_bytes(data)
    assert "fails its checksum" in refusal(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
def test_half_a_picture_is_refused_whatever_another_library_has_switched_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    path = tmp_path / "photo.jpg"
    whole = encoded(smooth_picture(), kind)
    path.write_bytes(whole[: len(whole) // 2])
    assert "cut short" in refusal(path)


def test_of_several_frames_the_first_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in (RED, (0, 0, 0))]
    path = tmp_path / "moving"
    for kind in ("GIF", "PNG"):
        path.write_bytes(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
        np.testing.assert_allclose(read_photo(path), np.broadcast_to(RED, (6, 8, 3)), atol=2)


def progressive(scans: int) -> bytes:
    """A progressive JPEG whose last scan stands there so many times more."""
    data = encoded(smooth_picture(), "JPEG", progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * scans + data[-2:]


def test_a_jpeg_may_ask_for_its_pixels_a_hundred_times_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    for more in (0, 90):
        path.write_bytes(progressive(more))
        assert read_photo(path).shape == (48, 64, 3)
    path.write_bytes(progressive(91))
    assert "a JPEG of 101 scans, the limit is 100" in refusal(path)


def test_what_follows_a_jpeg_or_lies_in_its_notes_does_not_count_as_scans(tmp_path: Path) -> None:
    path = tmp_path / "motion.jpg"
    many = b"\xff\xda\x00\x02" * 1_000
    picture = encoded(smooth_picture(), "JPEG", comment=many)
    path.write_bytes(picture + many)
    np.testing.assert_array_equal(read_photo(path), decode(encoded(smooth_picture(), "JPEG"), path))


def test_a_header_tells_the_size_and_nothing_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    half = encoded(smooth_picture(48, 64), "JPEG")[:800]
    assert read_size(half, path, expect=(48, 64)) == (48, 64)
    with pytest.raises(ImageError, match=r"photo\.jpg: is 64x48"):
        read_size(half, path, expect=(64, 48))
    with pytest.raises(ImageError, match="Mpx"):
        read_size(half, path, max_pixels=48 * 64 - 1)
    with pytest.raises(ImageError, match="not an image"):
        read_size(b"hello", path)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_damaged_rotation_tag_is_no_reason_and_the_sizes_are(tmp_path: Path) -> None:
    path = tmp_path / "phone.jpg"
    path.write_bytes(encoded(smooth_picture(48, 64), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"))
    assert "is 64x48, the annotations say 48x64; " in refusal(path, expect=(64, 48))


def test_large_photos_are_decoded_by_many_threads_and_after_a_bad_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "LARGE_PIXELS", 0)
    paths = [tmp_path / f"{number}.jpg" for number in range(12)]
    for number, path in enumerate(paths):
        data = encoded(smooth_picture(), "JPEG")
        path.write_bytes(data if number % 3 else data[:500])
    with ThreadPoolExecutor(4) as pool:
        faults = list(pool.map(check_image, paths))
    assert [fault is None for fault in faults] == [bool(number % 3) for number in range(12)]


def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    assert "pipe" in refusal(tmp_path / "pipe.jpg")


def test_a_small_file_that_claims_900_megapixels_is_refused_by_its_header(tmp_path: Path) -> None:
    bomb = bytearray(encoded(Image.new("RGB", (8, 8)), "JPEG"))
    frame = bomb.index(b"\xff\xc0")
    bomb[frame + 5 : frame + 9] = (30_000).to_bytes(2, "big") * 2
    path = tmp_path / "bomb.jpg"
    path.write_bytes(bomb)
    assert "900 Mpx" in refusal(path)
    assert "limit is 0 Mpx" not in refusal(path)
    path.write_bytes(encoded(smooth_picture(48, 64), "JPEG"))
    assert "Mpx" in refusal(path, max_pixels=48 * 64 - 1)
    assert read_photo(path, max_pixels=48 * 64).shape == (48, 64, 3)


def test_a_photo_of_another_size_than_annotated_is_refused_with_both_sizes(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(smooth_picture(48, 64), "JPEG"))
    message = refusal(path, expect=(480, 640))
    assert "is 64x48" in message
    assert "say 640x480" in message


def test_control_characters_of_a_name_are_escaped_in_messages(tmp_path: Path) -> None:
    assert "a\\nb\\x1b.jpg: missing" in refusal(tmp_path / "a\nb\x1b.jpg")
    assert "cannot be opened" in refusal(Path("nul\0.jpg"))


def test_check_image_answers_with_the_fault_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(smooth_picture(48, 64), "JPEG"))
    assert check_image(path, expect=(48, 64)) is None
    assert check_image(tmp_path / "absent.jpg") == refusal(tmp_path / "absent.jpg")


def test_a_photo_carries_its_letterbox_and_the_digest_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(smooth_picture(48, 64), "JPEG"))
    photo = Photo.read("000000000007", path, side=32, expect=(48, 64))
    assert photo.letterbox.info.tolist() == [48, 64, 24, 32, 0, 4]
    assert photo.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    np.testing.assert_array_equal(photo.rgb, read_photo(path))


def test_a_photo_too_narrow_for_the_canvas_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "needle.png"
    path.write_bytes(encoded(Image.new("RGB", (1, 500)), "PNG"))
    with pytest.raises(ImageError, match=r"needle\.png: .*narrow"):
        Photo.read("000000000007", path, side=32)
    path.write_bytes(encoded(Image.new("RGB", (1, 1), RED), "PNG"))
    assert Photo.read("000000000007", path, side=32).rgb.tolist() == [[list(RED)]]


def test_where_opencv_cannot_be_loaded_the_message_names_the_missing_library() -> None:
    code = "import sys; sys.modules['cv2'] = None; import weakmcn.pipeline.images"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert "libgl1" in run.stderr.splitlines()[-1]
