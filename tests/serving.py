"""Servers on 127.0.0.1 that behave as badly as a test wants: files by range, tokens, and a STAC API.

What GDAL reads must be served by another process (`Apart`): rasterio holds Python's lock in some calls that fetch, so a
server in the same process could not answer.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.managers import BaseManager
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4


@dataclass(frozen=True)
class Request:
    """What a client asked."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass
class Server:
    """Files by path, and what is answered instead of them."""

    port: int = 0
    root: str = field(default_factory=lambda: uuid4().hex)
    """A folder that stands for the server's own root."""
    files: dict[str, bytes] = field(default_factory=dict)
    scripts: dict[str, list[int]] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    hung: set[str] = field(default_factory=set)
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def asked(self, path: str | None = None) -> list[Request]:
        """Requests, of one path or all, in order."""
        return [r for r in list(self.requests) if path in (None, r.path)]

    def status(self, path: str) -> int:
        script = self.scripts.get(path)
        if not script:
            return 200
        return -script[0] if script[0] < 0 else script.pop(0)

    def answer(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of one request."""
        if request.path in self.hung:
            self.over.wait()
        if request.path in self.redirects:
            return 302, {"Location": self.redirects[request.path]}, b""
        code = self.status(request.path)
        if code != 200:
            return code, {}, b"<html>refused</html>"
        if request.path not in self.files:
            return 404, {}, b""
        return ranged(self.files[request.path], request.headers.get("Range"))


def ranged(data: bytes, asked: str | None) -> tuple[int, dict[str, str], bytes]:
    """The answer to a GET of a file with or without a range."""
    match = re.match(r"bytes=(\d+)-(\d*)", asked or "")
    if match is None:
        return 200, {"Accept-Ranges": "bytes"}, data
    first, last = int(match[1]), min(int(match[2] or len(data)), len(data) - 1)
    if first >= len(data):
        return 416, {}, b""
    return 206, {"Content-Range": f"bytes {first}-{last}/{len(data)}"}, data[first : last + 1]


@contextmanager
def serve(server: Server) -> Iterator[Server]:
    """Run a server while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = parts.path.removeprefix(f"/{server.root}")
            request = Request(self.command, path, parts.query, dict(self.headers), body)
            server.requests.append(request)
            status, headers, data = server.answer(request)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_HEAD = do_POST = do_GET  # noqa: N815

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.port = http.server_port
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        http.shutdown()
        http.server_close()


@dataclass
class TokenServer(Server):
    """Planetary Computer: its token end point, and a storage that takes the newest token alone."""

    secret: str = ""
    lifetime: float = 20
    """Seconds that a token lasts."""
    issued: int = 0

    def answer(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        if request.path.startswith("/token/"):
            code = self.status(request.path)
            if code != 200:
                return code, {}, b""
            self.issued += 1
            ends = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=self.lifetime)
            token = {"msft:expiry": f"{ends:%Y-%m-%dT%H:%M:%SZ}", "token": f"st=1&sig={self.secret}{self.issued}"}
            return 200, {"Content-Type": "application/json"}, json.dumps(token).encode()
        if request.query != f"st=1&sig={self.secret}{self.issued}":
            return 409, {}, b"PublicAccessNotPermitted"
        return super().answer(request)


class Apart:
    """A file server in another process, and what a test tells it and asks of it."""

    def __init__(self, kind: str = "Server", **fields: Any) -> None:
        self._stack = ExitStack()
        self._server = {"Server": Server, "TokenServer": TokenServer}[kind](**fields)
        self._stack.enter_context(serve(self._server))

    def url(self) -> str:
        """An address of this server's own: GDAL keeps what it read by address, and ports come back."""
        return f"{self._server.url}/{self._server.root}"

    def put(self, path: str, data: bytes) -> None:
        """Serve a file."""
        self._server.files[path] = data

    def script(self, path: str, *codes: int) -> None:
        """Answer with these status codes first, one a request.

        200 stands for the file. A negative code is answered for good. No codes: nothing but the file.
        """
        self._server.scripts[path] = list(codes)

    def script_left(self, path: str) -> list[int]:
        return self._server.scripts.get(path, [])

    def redirect(self, path: str, url: str) -> None:
        self._server.redirects[path] = url

    def hang(self, path: str) -> None:
        """Never answer while the server runs."""
        self._server.hung.add(path)

    def asked(self, path: str | None = None) -> list[Request]:
        """Requests so far, of one path or all, in order."""
        return self._server.asked(path)

    def forget(self) -> None:
        """Forget the requests so far."""
        self._server.requests.clear()

    def stop(self) -> None:
        self._stack.close()


class Process(BaseManager):
    """The other process."""

    Apart: Callable[..., Apart]


Process.register("Apart", Apart)


@dataclass
class StacApi(Server):
    """A STAC API with item search: filters by nothing but collections, so that the client's own filters show."""

    items: Sequence[Mapping[str, Any]] = ()
    page: int = 2
    conforms: Sequence[str] = (
        "https://api.stacspec.org/v1.0.0/core",
        "https://api.stacspec.org/v1.0.0/collections",
        "https://api.stacspec.org/v1.0.0/item-search",
        "https://api.stacspec.org/v1.0.0/item-search#query",
    )

    def answer(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        code = self.status(request.path)
        if code != 200:
            return code, {}, b'{"code": "ServerError"}'
        pages = {"/": self.landing, "/collections": self.collections, "/search": lambda: self.search(request)}
        if request.path not in pages:
            return 404, {}, b"{}"
        return 200, {"Content-Type": "application/json"}, json.dumps(pages[request.path]()).encode()

    def landing(self) -> dict[str, Any]:
        links = [
            {"rel": "self", "href": f"{self.url}/", "type": "application/json"},
            {"rel": "root", "href": f"{self.url}/", "type": "application/json"},
            {"rel": "data", "href": f"{self.url}/collections", "type": "application/json"},
            {"rel": "search", "href": f"{self.url}/search", "type": "application/geo+json", "method": "POST"},
        ]
        head = {"type": "Catalog", "id": "api", "description": "test", "stac_version": "1.0.0"}
        return {**head, "links": links, "conformsTo": list(self.conforms)}

    def collections(self) -> dict[str, Any]:
        extent = {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}}
        head = {"type": "Collection", "stac_version": "1.0.0", "description": "", "license": "other", "extent": extent}
        names = sorted({str(item["collection"]) for item in self.items})
        return {"collections": [{**head, "id": name, "links": []} for name in names], "links": []}

    def search(self, request: Request) -> dict[str, Any]:
        body = json.loads(request.body)
        found = [item for item in self.items if item["collection"] in body["collections"]]
        start = int(body.get("token", 0))
        links = []
        if start + self.page < len(found):
            following = {"rel": "next", "href": f"{self.url}/search", "method": "POST", "merge": True}
            links.append({**following, "body": {"token": start + self.page}})
        return {"type": "FeatureCollection", "features": found[start : start + self.page], "links": links}
