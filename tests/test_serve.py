"""`weakmcn serve`: a page that this machine alone can use, over real requests and in a real browser."""

import base64
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image
from weakmcn.cli.answering import KEY, Answerer, frozen_networks
from weakmcn.cli.server import ADDRESS, UPLOAD_BYTES, Site
from weakmcn.model.run import Run
from weakmcn.pipeline.images import Photo
from weakmcn.shards.codec import rle_decode

from .browser import CHROMIUM, Browser
from .faults.commands import Commands

PHRASE = "red ring"
UPLOAD = {"Content-Type": "application/octet-stream"}


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@pytest.fixture(scope="module")
def answerer(demo: Path) -> Answerer:
    run = Run.open(demo / "run")
    return Answerer(run, frozen_networks(run, {}), "cpu")


@pytest.fixture(scope="module")
def site(answerer: Answerer) -> Iterator[Site]:
    facts = {"run": "runs/first", "method": "weakmcn", "dataset": "refcoco+"}
    with Site(0, answerer, facts) as opened:
        thread = threading.Thread(target=opened.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield opened
        opened.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def photo(demo: Path) -> Path:
    return sorted((demo / "data" / "images" / "train2014").iterdir())[0]


def ask(site: Site, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Reply:
    """A request as it is, but for the name of the host, which may be given too."""
    connection = http.client.HTTPConnection(ADDRESS, site.server_port, timeout=60)
    given = headers or {}
    connection.putrequest(method, path, skip_host="Host" in given, skip_accept_encoding=True)
    for name, value in given.items():
        connection.putheader(name, value)
    if body is not None and "Content-Length" not in given and "Transfer-Encoding" not in given:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    response = connection.getresponse()
    reply = Reply(response.status, dict(response.getheaders()), response.read())
    connection.close()
    return reply


def find(site: Site, data: bytes, phrase: str = PHRASE) -> Reply:
    return ask(site, "POST", f"/answer?phrase={quote(phrase)}", data, UPLOAD)


def test_an_answer_is_that_of_predict(site: Site, answerer: Answerer, photo: Path) -> None:
    reply = find(site, photo.read_bytes(), "the blorp ring")
    assert reply.status == 200
    seen = Photo.read(KEY, photo, side=answerer.side)
    (found,) = answerer.answers(seen, answerer.see([seen])[0], ["the blorp ring"])
    told = reply.json
    assert found.box is not None
    assert found.objectness is not None
    assert told["box_xyxy"] == [round(float(value), 2) for value in found.box]
    assert told["objectness"] == round(found.objectness, 4)
    assert told["unknown_words"] == ["blorp"]
    height, width = seen.rgb.shape[:2]
    assert told["mask"]["size"] == [height, width]
    assert found.mask is not None
    np.testing.assert_array_equal(rle_decode(told["mask"]["counts"], height, width), found.mask)
    assert told["mask_px"] == np.count_nonzero(found.mask)
    picture = Image.open(io.BytesIO(base64.b64decode(told["picture"].removeprefix("data:image/png;base64,"))))
    assert max(picture.size) == 960
    assert picture.width / picture.height == pytest.approx(width / height, rel=0.01)


def test_what_predict_tells_of_a_photograph_is_told_here_too(
    site: Site, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turned, clear = io.BytesIO(), io.BytesIO()
    picture = Image.open(photo)
    picture.getexif()[0x0112] = 6
    picture.save(turned, "JPEG", exif=picture.getexif())
    see_through = picture.convert("RGBA")
    see_through.putalpha(128)
    see_through.save(clear, "PNG")
    assert find(site, photo.read_bytes(), "red").json["remark"] == ""
    assert find(site, turned.getvalue(), "red").json["remark"].startswith("its EXIF rotation is ignored")
    assert find(site, clear.getvalue(), "red blorp").json["remark"].endswith("; the run has never seen: blorp")
    monkeypatch.setattr("weakmcn.cli.answering.FAINT", 2)
    assert find(site, photo.read_bytes(), "red").json["remark"] == "the detector sees hardly anything there"


def test_several_visitors_at_once_each_get_their_own_answer(site: Site, demo: Path) -> None:
    photos = sorted((demo / "data" / "images" / "train2014").iterdir())[:3]
    alone = [find(site, photo.read_bytes()).json for photo in photos]
    assert len({json.dumps(answer["box_xyxy"]) for answer in alone}) == 3
    with ThreadPoolExecutor(9) as pool:
        together = list(pool.map(lambda photo: find(site, photo.read_bytes()).json, photos * 3))
    assert together == alone * 3


def test_nothing_of_an_upload_is_kept(site: Site, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert find(site, photo.read_bytes()).status == 200
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_photograph_is_refused_in_our_own_words(site: Site, photo: Path) -> None:
    whole = photo.read_bytes()
    for data, says in (
        (whole[: len(whole) // 2], "the photograph: cut short or damaged"),
        (b"<!DOCTYPE html>", "the photograph: not an image (a web page)"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "the photograph: WebP is not read; store the photo as JPEG or PNG."),
        (b"", "the photograph: empty file (0 bytes)"),
    ):
        reply = find(site, data)
        assert reply.status == 400
        assert says in reply.json["error"]
        assert "\n" not in reply.json["error"]


@pytest.mark.parametrize("phrase", ["?!", "", "x" * 20_000])
def test_a_phrase_that_asks_for_nothing_is_refused(site: Site, photo: Path, phrase: str) -> None:
    reply = find(site, photo.read_bytes(), phrase)
    assert reply.status == 400
    assert reply.json["error"]


def test_an_upload_beyond_the_limit_is_refused_before_it_is_read(site: Site) -> None:
    for size, status in ((UPLOAD_BYTES + 1, 413), (10**30, 413), (-1, 411), ("many", 411)):
        reply = ask(site, "POST", "/answer?phrase=ring", None, {**UPLOAD, "Content-Length": str(size)})
        assert reply.status == status
    endless = ask(site, "POST", "/answer?phrase=ring", None, {**UPLOAD, "Transfer-Encoding": "chunked"})
    assert endless.status == 411


def test_half_an_upload_is_refused(site: Site, photo: Path) -> None:
    with socket.create_connection((ADDRESS, site.server_port), timeout=60) as visitor:
        head = f"POST /answer?phrase=ring HTTP/1.1\r\nHost: {ADDRESS}:{site.server_port}\r\n"
        head += "Content-Type: application/octet-stream\r\nContent-Length: 1000\r\n\r\n"
        visitor.sendall(head.encode() + b"\xff" * 10)
        visitor.shutdown(socket.SHUT_WR)
        reply = visitor.makefile("rb").read()
    assert b" 400 " in reply.splitlines()[0]
    assert b"10 of 1,000 bytes came" in reply


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1:1", "127.0.0.1", "", "[::1]:{port}"]
)
def test_a_foreign_name_that_points_here_is_refused(site: Site, photo: Path, host: str) -> None:
    for method, path, body in (("GET", "/", None), ("GET", "/run", None), ("POST", "/answer?phrase=ring", b"")):
        headers = {**UPLOAD, "Host": host.format(port=site.server_port)}
        reply = ask(site, method, path, body, headers)
        assert reply.status == 421
        assert "weakmcn" not in reply.body.decode()


def test_both_names_of_this_machine_are_taken(site: Site) -> None:
    for name in (ADDRESS, "localhost"):
        assert ask(site, "GET", "/run", None, {"Host": f"{name}:{site.server_port}"}).status == 200


def test_a_page_from_elsewhere_is_not_answered(site: Site, photo: Path) -> None:
    data = photo.read_bytes()
    foreign = ask(site, "POST", "/answer?phrase=ring", data, {**UPLOAD, "Origin": "https://evil.example"})
    assert foreign.status == 403
    for kind in ("text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"):
        assert ask(site, "POST", "/answer?phrase=ring", data, {"Content-Type": kind}).status == 415
    asked_first = ask(site, "OPTIONS", "/answer", None, {"Origin": "https://evil.example"})
    assert asked_first.status >= 400
    own = {**UPLOAD, "Origin": f"http://{ADDRESS}:{site.server_port}"}
    answered = ask(site, "POST", "/answer?phrase=ring", data, own)
    assert answered.status == 200
    for reply in (foreign, asked_first, answered):
        assert not [name for name in reply.headers if name.lower().startswith("access-control")]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("GET", "/page.css", 200),
        ("GET", "/page.js", 200),
        ("GET", "/run", 200),
        ("GET", "/answer?phrase=ring", 405),
        ("POST", "/run", 405),
        ("GET", "/index.html", 404),
        ("GET", "/page/index.html", 404),
        ("GET", "/../server.py", 404),
        ("GET", "/%2e%2e/server.py", 404),
        ("GET", "//etc/passwd", 404),
        ("GET", "/favicon.ico", 404),
        ("HEAD", "/", 501),
        ("DELETE", "/", 501),
        ("PUT", "/answer", 501),
    ],
)
def test_only_its_own_routes_are_there_and_all_say_what_a_browser_may_do(
    site: Site, method: str, path: str, status: int
) -> None:
    reply = ask(site, method, path)
    assert reply.status == status
    policy = reply.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert reply.headers["Cache-Control"] == "no-store"
    assert reply.headers["Server"] == "weakmcn"


def test_the_page_names_nothing_outside_and_runs_nothing_inline(site: Site) -> None:
    page = ask(site, "GET", "/").body.decode()
    assert re.findall(r"https?://", page) == []
    assert not re.search(r"<script>|<style|\son\w+=|style=", page)
    assert "innerHTML" not in ask(site, "GET", "/page.js").body.decode()


def test_only_this_machine_can_reach_it(site: Site) -> None:
    assert site.socket.getsockname()[0] == "127.0.0.1"


def test_a_fault_of_the_program_is_told_on_the_terminal_alone(
    site: Site, photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*arguments: object) -> None:
        raise RuntimeError("a secret of ours")

    monkeypatch.setattr(site, "answer", fails)
    reply = find(site, photo.read_bytes())
    assert reply.status == 500
    assert "secret" not in reply.body.decode()
    assert "a secret of ours" in capsys.readouterr().err


def test_a_port_that_is_taken_is_told(run, demo: Path, site: Site) -> None:
    ended = run("serve", "--run", demo / "run", "--port", site.server_port)
    assert ended.status == 2
    assert f"--port {site.server_port}: cannot be had" in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_the_command_tells_its_address_and_ends_on_ctrl_c_whatever_its_visitors_do(
    commands: Commands, demo: Path, photo: Path, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    begun = commands.begin("serve", "--run", demo / "run", "--port", 0, folder=tmp_path)
    begun.until(lambda: "\n" in begun.out)
    port = re.match(r"http://127\.0\.0\.1:(\d+)/", begun.out)
    assert port, begun.out
    asking, waiting = (http.client.HTTPConnection(ADDRESS, int(port[1]), timeout=60) for _ in range(2))
    asking.request("GET", "/run")
    assert json.loads(asking.getresponse().read())["dataset"] == "pocket refcoco+"
    asking.request("POST", "/answer?phrase=ring", photo.read_bytes(), UPLOAD)
    waiting.putrequest("POST", "/answer?phrase=ring")  # and says no more
    time.sleep(0.1)  # the photograph is in hand
    started = time.monotonic()
    os.kill(begun.pid, number)
    assert begun.ended() == status, begun.err
    asking.close()
    waiting.close()
    assert "Traceback" not in begun.err
    assert time.monotonic() - started < 10


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")
def test_in_a_browser_a_photograph_and_a_phrase_give_a_picture_of_box_and_mask(
    site: Site, photo: Path, tmp_path: Path
) -> None:
    not_one = tmp_path / "page.jpg"
    not_one.write_bytes(b"<!DOCTYPE html>")
    expected = find(site, photo.read_bytes()).json
    with Browser(tmp_path / "profile") as browser:
        browser.open(f"http://{ADDRESS}:{site.server_port}/")
        browser.wait("document.querySelector('#run').textContent === 'runs/first: weakmcn, trained on refcoco+'")
        browser.press("#phrase", PHRASE)
        browser.wait("document.querySelector('#message').textContent === 'Choose a photograph first.'")

        browser.choose("#photo", photo)
        browser.wait("document.querySelector('#name').textContent.endsWith('.jpg')")
        browser.press("#phrase", PHRASE)
        browser.wait("document.querySelector('#asked').textContent !== ''")
        assert browser.value("document.querySelector('#asked').textContent") == f"“{PHRASE}”"
        facts = browser.value("[...document.querySelectorAll('dd')].map((each) => each.textContent)")
        x0, y0, x1, y1 = (int(np.floor(value + 0.5)) for value in expected["box_xyxy"])  # as JavaScript rounds
        box = f"{x0} {y0} to {x1} {y1}"
        assert facts == [box, f"{expected['objectness']:.2f}", f"{expected['mask_px']:,} px"]
        assert browser.value("document.querySelector('#picture').src") == expected["picture"]
        assert browser.value("document.querySelector('#picture').decode().then(() => true)")
        assert browser.value("document.querySelector('#picture').naturalWidth") > 0
        assert browser.errors == []  # the policy blocks nothing that the page needs

        browser.choose("#photo", not_one)
        browser.press("#phrase", PHRASE)
        browser.wait("document.querySelector('#message.fault') !== null")
        message = browser.value("document.querySelector('#message').textContent")
        assert message.startswith("The photograph: not an image (a web page)")
        browser.wait("document.querySelector('#result').hidden")  # and no broken picture
        browser.choose("#photo", photo)
        browser.wait("!document.querySelector('#result').hidden")
    shutil.rmtree(tmp_path / "profile", ignore_errors=True)
