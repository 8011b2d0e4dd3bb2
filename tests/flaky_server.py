"""A file server that fails now and then: ``python flaky_server.py '{"folder": ...}'``; says its port, then its log.

In a process of its own, since rasterio holds Python's lock in some calls that fetch. The log has a line for each
request: what was done about it, and its path.
"""

from __future__ import annotations

import datetime as dt
import json
import random
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from serving import ranged

KINDS = ("503", "400", "429", "truncated", "slow")


class Flaky:
    """What is served, and how badly."""

    def __init__(
        self,
        folder: str,
        log: str,
        share: float = 0.0,
        lifetime: float = 0.0,
        bearer: str = "",
        requests: int = 0,
        hang: str = "",
    ) -> None:
        self.folder, self.path = Path(folder), Path(log)
        self.share, self.lifetime, self.bearer, self.requests, self.hang = share, lifetime, bearer, requests, hang
        self.rng, self.lock, self.served, self.faults, self.hung = random.Random(0), threading.Lock(), 0, 0, 0

    def note(self, line: str) -> None:
        """Add a line to the log."""
        with self.lock, self.path.open("a") as log:
            log.write(f"{line}\n")

    def verdict(self, path: str, query: str, authorization: str) -> str:
        """What becomes of one request."""
        with self.lock:
            self.served += 1
            if self.hang and self.hang in path:
                self.hung += 1
                if self.hung <= (self.requests or self.hung):
                    return "hang"
            if self.lifetime:
                issued = float(parse_qs(query).get("sig", ["0"])[0])
                if time.time() - issued > self.lifetime:
                    return "expired"
            if self.bearer:
                old, new = self.bearer.split(",")
                if authorization != f"Bearer {old if self.served <= self.requests else new}":
                    return "401"
            if self.rng.random() < self.share:
                self.faults += 1
                return KINDS[self.faults % len(KINDS)]
            return "200"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    flaky: Flaky

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path.startswith("/token/"):
            self.token()
            return
        verdict = self.flaky.verdict(parts.path, parts.query, self.headers.get("Authorization", ""))
        self.flaky.note(f"{verdict} {parts.path}")
        if verdict == "hang":
            threading.Event().wait()
        file = self.flaky.folder / parts.path.lstrip("/")
        if verdict in ("503", "400", "429", "401", "expired"):
            self.say(403 if verdict == "expired" else int(verdict), {}, b"<html>refused</html>")
        elif not file.is_file():
            self.say(404, {}, b"")
        else:
            self.say(*ranged(file.read_bytes(), self.headers.get("Range")), how=verdict)

    do_HEAD = do_GET  # noqa: N815

    def token(self) -> None:
        """Issue a token that ends soon."""
        self.flaky.note(f"token {self.path}")
        ends = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=self.flaky.lifetime)
        token = {"msft:expiry": f"{ends:%Y-%m-%dT%H:%M:%SZ}", "token": f"st=1&sig={time.time()}"}
        self.say(200, {"Content-Type": "application/json"}, json.dumps(token).encode())

    def say(self, status: int, headers: dict[str, str], data: bytes, how: str = "200") -> None:
        """Send an answer, whole or not."""
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if how == "200":
            self.wfile.write(data)
            return
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        if how == "slow":
            threading.Event().wait(30)
        self.close_connection = True


class Server(ThreadingHTTPServer):
    """Takes as many connections at once as a job opens."""

    request_queue_size = 128
    daemon_threads = True


if __name__ == "__main__":
    Handler.flaky = Flaky(**json.loads(sys.argv[1]))
    server = Server(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
