"""The page of `weakmcn serve` and what answers it, over plain HTTP on this machine alone.

    GET  /  /page.css  /page.js     the page, files of this package
    GET  /run                       which run answers, and how large an upload may be, as JSON
    POST /answer?phrase=left+dog    body: a photograph's bytes; the answer, or {"error": one line}, as JSON

There is nothing else: no other path, no other method, no file of a visitor's on the disk. A browser can be made to send
requests here by any page it shows, so each must bear this server's own name (a foreign name that is made to point here
is refused) and none from another origin is answered. Uploads are bounded before they are read, and enter through the
door of all photographs (pipeline/images.py).
"""

import base64
import io
import json
import socket
import sys
import threading
import traceback
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from socketserver import TCPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ..pipeline.images import Photo, remark_on
from ..shards.errors import InputError, WeakmcnError
from .answer_files import answer_row, cut_to
from .answering import KEY, Answerer, Columns, with_words
from .pictures import Marks, marked_photo

ADDRESS = "127.0.0.1"
UPLOAD_BYTES = 32 << 20
"""Of the largest photograph that is taken."""
UPLOADS_AT_ONCE = 4
"""Held in memory; further ones wait."""
WAIT_S = 60
"""For a place among them, and for the bytes of a request to come."""
DRAIN_S = 2
"""Silence after which a refused upload is no longer waited for."""
PICTURE_PX = 960
"""Longer side of the picture in an answer."""
UPLOAD_TYPE = "application/octet-stream"
"""No form of a foreign page can send it without asking first, which is refused."""

PAGE = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
METHODS = {**dict.fromkeys(PAGE, "GET"), "/run": "GET", "/answer": "POST"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Connection": "close",
}


class RefusedError(Exception):
    """A request that is not answered: its status, and why in one line."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class Site(ThreadingHTTPServer):
    """Listens from construction on; `serve_forever` answers. Photographs are looked at one at a time.

    `server_close` hangs up on all visitors and waits for the photograph in hand: Python's end would abort a process
    whose threads are inside torch.
    """

    daemon_threads = False

    def __init__(self, port: int, answerer: Answerer, facts: dict[str, Any]) -> None:
        """port: 0 for any that is free. facts: of the run, for the page. InputError if the port cannot be had."""
        self.facts = {**facts, "upload_bytes": UPLOAD_BYTES}
        self.uploads = threading.BoundedSemaphore(UPLOADS_AT_ONCE)
        self._answerer = answerer
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._closing = False
        self._last: tuple[str, Columns] = ("", {})
        """Digest and columns of the photograph that was asked about last: the next phrase is often about it too."""
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as fault:
            raise InputError(
                f"--port {port}: cannot be had ({fault.strerror}); choose another, or 0 for any."
            ) from None

    def server_bind(self) -> None:
        """As of every TCP server; the one for HTTP asks the network for this machine's name."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = ADDRESS, self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):  # nobody is there to be told
            super().handle_error(request, client_address)

    def server_close(self) -> None:
        self._closing = True
        for connection in tuple(self._connections):
            with suppress(OSError):  # its visitor was quicker
                connection.shutdown(socket.SHUT_RDWR)
        super().server_close()

    @property
    def hosts(self) -> set[str]:
        """What a request may call this server."""
        names = (ADDRESS, "localhost")
        return {f"{name}:{self.server_port}" for name in names} | ({*names} if self.server_port == 80 else set())

    def answer(self, data: bytes, phrase: str) -> dict[str, Any]:
        """The answer to one phrase about the photograph in `data`. WeakmcnError if it cannot be given."""
        with_words(phrase, "the phrase")
        photo = Photo.of(KEY, data, Path("the photograph"), side=self._answerer.side)
        with self._lock:
            if self._closing:
                raise ConnectionAbortedError
            if photo.sha256 != self._last[0]:
                self._last = photo.sha256, self._answerer.see([photo])[0]
            (found,) = self._answerer.answers(photo, self._last[1], [phrase])
        row = {**answer_row(found), "remark": "; ".join(filter(None, [remark_on(data), found.told]))}
        if found.mask is not None:
            row["mask_px"] = int(found.mask.sum())
        marks = Marks(box=cut_to(photo, found.box), mask=found.mask)
        picture = io.BytesIO()
        marked_photo(photo.rgb, None, marks, PICTURE_PX, PICTURE_PX).save(picture, "PNG")
        return {**row, "picture": f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode('ascii')}"}


class _Handler(BaseHTTPRequestHandler):
    server: Site  # pyright: ignore[reportIncompatibleVariableOverride]
    timeout = WAIT_S

    def version_string(self) -> str:
        """For the header Server: no version to look up faults by."""
        return "weakmcn"

    def do_GET(self) -> None:
        self._reply(self._get)

    def do_POST(self) -> None:
        self._reply(self._post)

    def _get(self, path: str) -> tuple[str, bytes]:
        if path in PAGE:
            name, kind = PAGE[path]
            return kind, files("weakmcn.cli").joinpath("page", name).read_bytes()
        return "application/json", _json(self.server.facts)

    def _post(self, path: str) -> tuple[str, bytes]:
        del path  # there is one
        phrases = parse_qs(urlsplit(self.path).query, max_num_fields=8).get("phrase", [])
        if len(phrases) != 1:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "one phrase is needed: /answer?phrase=left+dog")
        length = self._length()
        if not self.server.uploads.acquire(timeout=WAIT_S):
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "too many photographs at once; try again.")
        try:
            data = self.rfile.read(length)
            if len(data) < length:
                raise RefusedError(HTTPStatus.BAD_REQUEST, f"{len(data):,} of {length:,} bytes came; send all of them.")
            return "application/json", _json(self.server.answer(data, phrases[0]))
        finally:
            self.server.uploads.release()

    def _length(self) -> int:
        """Bytes of the body, from its headers; RefusedError before any is read."""
        if self.headers.get_content_type() != UPLOAD_TYPE:
            raise RefusedError(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"the body must be a photograph, sent as {UPLOAD_TYPE}."
            )
        given = self.headers.get("Content-Length", "")
        if not (given.isascii() and given.isdigit()) or "Transfer-Encoding" in self.headers:
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "Content-Length is needed, in bytes.")
        if len(given) > 12 or int(given) > UPLOAD_BYTES:
            raise RefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the photograph: more than {UPLOAD_BYTES >> 20} MiB, the limit here; store it smaller.",
            )
        return int(given)

    def _check(self, path: str) -> None:
        """RefusedError for a request that another site may have caused, or for what is not here."""
        if self.headers.get("Host", "") not in self.server.hosts:
            raise RefusedError(HTTPStatus.MISDIRECTED_REQUEST, f"this is http://{ADDRESS}:{self.server.server_port}/")
        origin = self.headers.get("Origin")
        if origin is not None and origin not in {f"http://{host}" for host in self.server.hosts}:
            raise RefusedError(HTTPStatus.FORBIDDEN, "a page from elsewhere is not answered.")
        if path not in METHODS:
            raise RefusedError(HTTPStatus.NOT_FOUND, "there is no such page.")
        if METHODS[path] != self.command:
            raise RefusedError(HTTPStatus.METHOD_NOT_ALLOWED, f"write {METHODS[path]} {path}")

    def _reply(self, make: Any) -> None:
        path = urlsplit(self.path).path
        try:
            self._check(path)
            kind, body = make(path)
            self._send(HTTPStatus.OK, kind, body)
        except RefusedError as fault:
            self.send_error(fault.status, str(fault))
        except WeakmcnError as fault:
            self.send_error(HTTPStatus.BAD_REQUEST, str(fault))
        except (ConnectionError, TimeoutError):
            raise
        except Exception:  # a bug: its traceback belongs on the terminal, not on the page
            traceback.print_exc()
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, "a fault of the program; the terminal shows it.")

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """As JSON; also what the base class finds wrong with a request."""
        del explain
        self._send(code, "application/json", _json({"error": message or HTTPStatus(code).phrase}))
        self._drain()

    def _send(self, code: int, kind: str, body: bytes) -> None:
        self.send_response(code)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def _drain(self) -> None:
        """Take what still comes of a refused upload: closed over unread bytes, a connection loses the answer."""
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(DRAIN_S)
            left = 2 * UPLOAD_BYTES
            while left > 0 and (part := self.connection.recv(1 << 16)):
                left -= len(part)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what a visitor asks is nobody's business."""


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, allow_nan=False).encode("utf-8")
