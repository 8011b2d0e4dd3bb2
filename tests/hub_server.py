"""A Hugging Face Hub on 127.0.0.1 that keeps its repositories in a folder.

It answers what `huggingface_hub` asks to make a repository, commit files to it and fetch them: small files come in the
commit itself, which the Hub may ask for of any file. Every commit is a folder of its own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Hub:
    """What is there, and what was asked."""

    folder: Path
    port: int = 0
    heads: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def commit(self, repo: str, files: dict[str, bytes]) -> str:
        """Add a commit: the files of the last one, and these."""
        before = self.folder / repo / self.heads.get(repo, "none")
        kept = {p.name: p.read_bytes() for p in before.iterdir()} if before.is_dir() else {}
        name = hashlib.sha1(repr(sorted({**kept, **files}.items())).encode()).hexdigest()
        place = self.folder / repo / name
        place.mkdir(parents=True, exist_ok=True)
        for path, data in {**kept, **files}.items():
            (place / path).write_bytes(data)
        self.heads[repo] = name
        return name

    def file(self, repo: str, revision: str, path: str) -> tuple[str, bytes] | None:
        """Return commit and content of a file."""
        commit = self.heads.get(repo, "none") if revision == "main" else revision
        place = self.folder / repo / commit / path
        return (commit, place.read_bytes()) if place.is_file() else None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, values: Any) -> None:
        self._answer(200, json.dumps(values).encode(), Content_Type="application/json")

    def do_POST(self) -> None:
        path, body = self.path, self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.asked.append(f"POST {path}")
        self.hub.tokens.add(self.headers.get("Authorization", ""))
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self._json({"url": f"{self.hub.url}/{repo}", "name": repo, "id": "1"})
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            self._json({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif "/commit/" in path:
            repo = path.removeprefix("/api/models/").partition("/commit/")[0]
            lines = [json.loads(line) for line in body.splitlines() if line.strip()]
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            name = self.hub.commit(repo, files)
            self._json({"commitUrl": f"{self.hub.url}/{repo}/commit/{name}", "commitOid": name, "success": True})
        else:
            self._json({})

    def do_GET(self) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        repo, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        found = self.hub.file(repo, revision, name)
        if found is None:
            code = "EntryNotFound" if repo in self.hub.heads else "RepoNotFound"
            self._answer(404, b"", X_Error_Code=code)
            return
        commit, data = found
        etag = f'"{hashlib.sha1(data).hexdigest()}"'
        self._answer(200, data, ETag=etag, X_Repo_Commit=commit)

    def do_HEAD(self) -> None:
        self.do_GET()


@contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    """Serve a Hub until the block ends."""
    hub = Hub(folder)
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
