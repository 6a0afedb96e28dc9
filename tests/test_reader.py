"""A reader copies rows of columns into a batch: the same ones however it gets at the files, by however many threads."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from weakmcn.shards.codec import unpack_masks
from weakmcn.shards.crew import Crew
from weakmcn.shards.direct import Direct, is_possible
from weakmcn.shards.errors import ConfigError, DamagedShardError, StoreError
from weakmcn.shards.memory import available_bytes
from weakmcn.shards.quick import QuickFrames
from weakmcn.shards.reader import Reader
from weakmcn.shards.store import Store

from .bench.paper_store import CANDIDATES, MAPS, SIDE, keys_of, make_store

IMAGES = 4
KEYS = [keys_of(IMAGES)[number] for number in (2, 0, 3, 0)]
COLUMNS = (*MAPS, "detect.cells", "detect.boxes", "masks.bits")

Access = Literal["mmap", "direct"]


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store at the paper's sizes, whose large members are aligned; not to be changed."""
    path = make_store(tmp_path_factory.mktemp("paper") / "store", images=IMAGES, shards=2)
    if not is_possible(str(next(path.glob("*/*.tar")))):
        pytest.skip("the file system of temporary files has no O_DIRECT")
    return path


@pytest.fixture
def own(paper: Path, tmp_path: Path) -> Path:
    """A copy of its own for every test."""
    return Path(shutil.copytree(paper, tmp_path / "store"))


def spoil(path: Path, position: int) -> None:
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))


# The same samples.


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("access", ["mmap", "direct"])
def test_rows_are_those_of_single_images_whatever_the_access_and_the_threads(
    paper: Path, access: Access, threads: int
) -> None:
    store = Store.open(paper)
    reader = Reader(store, COLUMNS, access=access, threads=threads)
    assert reader.access == access
    for _ in range(2):  # at first touch and again
        batch = reader.gather(KEYS)
        assert list(batch) == list(COLUMNS)
        for place, key in enumerate(KEYS):
            sample = store[key]
            for name in (*MAPS, "detect.cells", "detect.boxes"):
                np.testing.assert_array_equal(batch[name][place], sample[name])
            np.testing.assert_array_equal(
                batch["masks.bits"][place], unpack_masks(sample["masks.bits"], CANDIDATES, SIDE)
            )


@pytest.mark.parametrize("access", ["mmap", "direct"])
def test_several_threads_may_gather_at_once(paper: Path, access: Access) -> None:
    reader = Reader(Store.open(paper), COLUMNS, access=access, threads=2)
    wanted = Reader(Store.open(paper), COLUMNS, access="mmap", threads=1).gather(KEYS)
    with ThreadPoolExecutor(4) as pool:
        for batch in pool.map(reader.gather, [KEYS] * 12):
            for name, rows in wanted.items():
                np.testing.assert_array_equal(batch[name], rows)


def test_the_layout_tells_what_gather_gives_and_other_arrays_are_refused(paper: Path) -> None:
    reader = Reader(Store.open(paper), COLUMNS)
    layout = reader.layout(KEYS)
    assert layout["masks.bits"] == ((CANDIDATES, SIDE, SIDE // 8), np.dtype(np.uint8))
    out = {name: np.empty((len(KEYS), *shape), dtype) for name, (shape, dtype) in layout.items()}
    batch = reader.gather(KEYS, out)
    assert all(batch[name] is block for name, block in out.items())
    for wrong in (out["detect.s32"][1:], out["detect.s32"].astype(np.float32), out["detect.s32"].swapaxes(2, 3)):
        with pytest.raises(ValueError, match=r"out\['detect.s32'\] must be float16 \[4, 1024, 13, 13\], contiguous"):
            reader.gather(KEYS, out | {"detect.s32": wrong})


def test_some_columns_are_gathered_alone(paper: Path) -> None:
    reader = Reader(Store.open(paper), COLUMNS)
    assert list(reader.gather(KEYS, columns=["sam.embedding", "detect.boxes"])) == ["sam.embedding", "detect.boxes"]
    assert list(reader.layout(KEYS, ["masks.bits"])) == ["masks.bits"]


def test_stored_bytes_are_those_in_the_tars_each_image_counted_once(paper: Path) -> None:
    reader = Reader(Store.open(paper), COLUMNS)
    each = {key: sum(place.length for place in reader.where(key).values()) for key in KEYS}
    assert reader.stored_bytes(KEYS) == sum(each.values())
    assert reader.stored_bytes(KEYS, ["detect.s32"]) == 3 * 1024 * 13 * 13 * 2


# Damage.


@pytest.mark.parametrize("access", ["mmap", "direct"])
@pytest.mark.parametrize("column", ["dino.tokens", "detect.boxes", "masks.bits"])
def test_a_flipped_bit_is_refused_by_name_at_first_touch(own: Path, access: Access, column: str) -> None:
    place = Reader(Store.open(own), [column]).where(KEYS[1])[column]
    spoil(place.path, place.offset + place.length // 2)
    reader = Reader(Store.open(own), [column], access=access, threads=2)
    reader.gather([KEYS[0], KEYS[2]])
    field = column.partition(".")[2]
    with pytest.raises(
        DamagedShardError, match=rf"000000\.tar: member {KEYS[1]}\.{field}\.npy fails its checksum; .*store repair"
    ):
        reader.gather(KEYS)
    reader.gather([KEYS[0], KEYS[2]])


@pytest.mark.parametrize("access", ["mmap", "direct"])
def test_a_tar_that_is_cut_or_gone_is_refused(own: Path, access: Access) -> None:
    store = Store.open(own)
    first, second = (store.families["dino"].tar(number) for number in (0, 1))
    readers = [Reader(store, ["dino.tokens"], access=access) for _ in range(2)]
    whole = first.stat().st_size
    with open(first, "r+b") as file:
        file.truncate(whole - 4096)
    second.unlink()
    with pytest.raises(DamagedShardError, match=rf"000000\.tar has {whole - 4096:,} bytes, its sidecar says {whole:,}"):
        readers[0].gather([KEYS[1]])
    with pytest.raises(DamagedShardError, match=r"000001\.tar is missing or empty; .*store repair"):
        readers[1].gather([KEYS[0]])


def test_a_tar_that_is_cut_while_it_is_read_past_the_cache_is_refused(own: Path) -> None:
    reader = Reader(Store.open(own), ["dino.tokens"], access="direct")
    reader.gather([KEYS[1]])
    last = Reader(Store.open(own), ["dino.tokens"]).where(keys_of(IMAGES)[1])["dino.tokens"]
    with open(last.path, "r+b") as file:
        file.truncate(last.offset + 5000)
    with pytest.raises(DamagedShardError, match=rf"000000\.tar ends {last.length - 5000:,} bytes early"):
        reader.gather([keys_of(IMAGES)[1]])


# How the files are read.


def test_a_part_read_past_the_cache_may_begin_and_end_anywhere(tmp_path: Path, paper: Path) -> None:
    content = np.random.default_rng(0).integers(0, 256, 300_001, dtype=np.uint8)
    path = tmp_path / "file"
    path.write_bytes(content.tobytes())
    files = Direct()
    for offset, length in ((0, 300_001), (4096, 65_536), (4097, 70_000), (100_001, 200_000), (8_191, 2), (300_000, 1)):
        part = files.values(str(path), 300_001, offset, length)
        np.testing.assert_array_equal(part, content[offset : offset + length])


def test_files_are_read_past_the_cache_only_where_they_are_larger_than_what_memory_is_free(
    paper: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(paper)
    wanted = Reader(store, COLUMNS).stored_bytes(KEYS)
    monkeypatch.setattr("weakmcn.shards.reader.available_bytes", lambda: wanted)
    assert Reader(store, COLUMNS, keys=KEYS).access == "mmap"
    all_images = Reader(store, COLUMNS)
    assert all_images.access == "direct"
    assert "GB are more than the" in all_images.why
    monkeypatch.setattr("weakmcn.shards.reader.available_bytes", lambda: None)
    assert Reader(store, COLUMNS).access == "mmap"


def test_where_the_file_system_has_no_such_reads_the_maps_are_used_and_that_is_told(
    paper: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_possible("/proc/self/status")  # a file system that refuses O_DIRECT
    monkeypatch.setattr("weakmcn.shards.direct._O_DIRECT", None)  # a system that has none
    reader = Reader(Store.open(paper), COLUMNS, access="direct")
    assert (reader.access, reader.why) == ("mmap", "as asked, but the file system has no reads past the page cache")
    reader.gather(KEYS)


def test_an_unknown_access_is_refused(paper: Path) -> None:
    with pytest.raises(ConfigError, match="access='fast' is not known; choose one of auto, mmap, direct"):
        Reader(Store.open(paper), COLUMNS, access="fast")  # pyright: ignore[reportArgumentType]


def test_images_of_different_shapes_fit_no_batch(tmp_path: Path) -> None:
    path = make_store(tmp_path / "store", images=2, shards=2, candidates=(3, 5))
    reader = Reader(Store.open(path), ["detect.boxes", "masks.bits"])
    first, second = keys_of(2)
    assert reader.gather([first])["masks.bits"].shape == (1, 3, SIDE, SIDE // 8)
    assert reader.layout([second])["detect.boxes"][0] == (5, 4, 5)
    with pytest.raises(StoreError, match=r"detect.boxes has the shapes \[\(3, 4, 5\), \(5, 4, 5\)\]"):
        reader.gather([first, second])


def test_free_memory_is_the_least_of_what_machine_and_container_give(tmp_path: Path) -> None:
    meminfo, cgroup = tmp_path / "meminfo", tmp_path / "cgroup"
    assert available_bytes(meminfo, cgroup) is None
    meminfo.write_text("MemTotal:       1000 kB\nMemAvailable:    700 kB\n")
    assert available_bytes(meminfo, cgroup) == 700 * 1024
    cgroup.mkdir()
    (cgroup / "memory.max").write_text("max\n")
    (cgroup / "memory.current").write_text("5000\n")
    assert available_bytes(meminfo, cgroup) == 700 * 1024
    (cgroup / "memory.max").write_text("20000\n")
    (cgroup / "memory.stat").write_text("anon 4000\ninactive_file 1000\n")
    assert available_bytes(meminfo, cgroup) == 20000 - 5000 + 1000


# Threads, frames.


def test_a_crew_does_everything_once_and_with_more_than_one_thread() -> None:
    crew, done, meeting = Crew(2), [], threading.Barrier(2)

    def work(number: int) -> None:
        if number < 2:
            meeting.wait(10)  # passed by two threads only
        done.append(number)

    crew.do(work, 20)
    assert sorted(done) == list(range(20))
    crew.do(done.append, 0)
    Crew(1).do(done.append, 3)
    assert len(done) == 23


def test_a_fault_of_any_thread_is_raised_and_the_crew_goes_on() -> None:
    crew, meeting = Crew(2), threading.Barrier(2)

    def fail_elsewhere(number: int) -> None:
        meeting.wait(10)
        if threading.current_thread() is not threading.main_thread():
            raise ValueError("of a helper")

    with pytest.raises(ValueError, match="of a helper"):
        crew.do(fail_elsewhere, 2)
    done: list[int] = []
    crew.do(done.append, 5)
    assert sorted(done) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("plain", [0, 1, 3])
def test_frames_come_back_as_they_were_until_both_budgets_are_spent(plain: int) -> None:
    frames = QuickFrames(budget_bytes=1, plain_bytes=5000 * plain + 4999)
    rows = np.random.default_rng(0).integers(0, 2, (plain + 2, 5000), dtype=np.uint8)
    out = np.empty_like(rows[0])
    assert not frames.fill(0, out)
    for number, row in enumerate(rows):
        wanted = row.copy()
        frames.keep(number, row)
        row[:] = 7  # the caller's again
        if number <= plain:
            assert frames.fill(number, out)
            np.testing.assert_array_equal(out, wanted)
    assert not frames.fill(plain + 1, out)


def test_masks_that_a_reader_kept_and_has_forgotten_are_read_again(paper: Path) -> None:
    store = Store.open(paper)
    reader = Reader(store, ["masks.bits"], access="mmap")
    first, again = (reader.gather(store.keys)["masks.bits"] for _ in range(2))
    reader.forget()
    np.testing.assert_array_equal(again, first)
    np.testing.assert_array_equal(reader.gather(store.keys)["masks.bits"], first)
